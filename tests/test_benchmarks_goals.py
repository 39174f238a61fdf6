"""Goals beside results: what is met, what is missed, and that a miss is explained."""

from __future__ import annotations

import pytest

from benchmarks import goals
from benchmarks.case import FILES
from benchmarks.plan import BACKWARD


def results_of(op: str, ours: float, eager: float, **more: float) -> dict:
    found = {"cpu": {"median": ours, "peak": 50_000_000}, "eager": {"median": eager}}
    row = {
        "op": op, "variant": "", "pass": BACKWARD, "dtype": "float32", "ours": ["cpu"],
        "results": found | {name: {"median": value} for name, value in more.items()},
        "moved": 4_000_000, "operations": 1_000_000,
    }  # fmt: skip
    return {
        "environment": {"device": "cpu"},
        "ceilings": {"copy": 1e10, "matrix": 1e11},
        "dispatch": {"memory_update": {"cpu": {"ours": {BACKWARD: 70.0}}}},
        "rows": [row],
    }


def line(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(f"| {start}"))


def test_a_goal_that_is_met_and_one_that_is_missed() -> None:
    text = goals.markdown(results_of("class_sums", 0.002, 0.1, compiled=0.002))
    assert line(text, "class_sums: time against eager") == (
        "| class_sums: time against eager | 30x | 50x |  |"
    )
    assert "| **1.0x** |" in line(text, "class_sums: time against compiled")
    assert "- class_sums: 2 ms, of which its floor takes 0.4 ms" in text


def test_the_worst_row_counts() -> None:
    results = results_of("class_sums", 0.002, 0.1)
    results["rows"] += results_of("class_sums", 0.002, 0.01)["rows"]
    assert "| **5.0x** |" in line(goals.markdown(results), "class_sums: time against eager")


def test_a_missed_call_is_held_against_calling_at_all() -> None:
    text = goals.markdown(results_of("memory_update", 130e-6, 300e-6, compiled=200e-6))
    assert "- memory_update: 130 us, of which 70 us are calling an op" in text


def test_memory_is_bounded_from_above() -> None:
    text = goals.markdown(results_of("memory_module", 1.0, 1.0, published=30.0))
    assert "| 60 MB | 50 MB |" in line(text, "memory_module: peak memory")
    assert "| 20x | 30x |" in line(text, "memory_module: time against published")


def test_the_share_of_the_bandwidth_is_that_of_the_largest_maps() -> None:
    results = results_of("class_sums", 0.002, 0.1)
    goal = goals.Goal("class_sums", BACKWARD, "copy", 0.85, "share of copy")
    small = results_of("class_sums", 1.0, 0.1)["rows"]
    small[0]["moved"] /= 100
    found = list(goals._values(goal, "float32", results))
    results["rows"] += small
    assert list(goals._values(goal, "float32", results)) == found and len(found) == 1


def test_what_was_not_weighed_has_no_figure() -> None:
    results = results_of("memory_module", 1.0, 1.0, published=30.0)
    results["rows"][0]["results"]["cpu"]["peak"] = None
    assert "| 60 MB |  |" in line(goals.markdown(results), "memory_module: peak memory")


def test_a_miss_without_its_baseline_is_a_time() -> None:
    results = results_of("memory_update", 130e-6, 100e-6)
    results["dispatch"] = {}
    assert "- memory_update: 0.13 ms" in goals.markdown(results)


def test_a_refused_row_has_no_figure() -> None:
    results = results_of("class_sums", 0.002, 0.1)
    results["rows"][0]["results"]["cpu"] = {"refused": "result 0: not finite"}
    assert line(goals.markdown(results), "class_sums: time against eager").endswith("| 30x |  |  |")


@pytest.mark.parametrize("device", sorted(goals.GOALS))
def test_every_goal_names_a_row(device: str) -> None:
    assert {goal.op for goal in goals.GOALS[device]} <= {*FILES}
