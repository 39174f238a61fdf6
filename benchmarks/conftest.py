"""For ``pytest benchmarks/<op>.py``: the same rows under pytest-benchmark's own statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import pinmem
from benchmarks.case import FILES, cases, title
from benchmarks.plan import Plan
from benchmarks.timing import Rotation


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--smoke", action="store_true", help="rehearse on tiny inputs")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """The files are named after the ops, not after pytest."""
    explicit = file_path in [Path(a.partition("::")[0]).absolute() for a in parent.config.args]
    if file_path.stem in FILES and not explicit:
        return pytest.Module.from_parent(parent, path=file_path)
    return None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for every implementation of every row of the file."""
    if "call" not in metafunc.fixturenames:
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    plan = Plan.of(device, metafunc.config.getoption("smoke"))
    rows = [
        pytest.param(case, name, id=f"{name}-{title(case)}")
        for case in cases(plan, [metafunc.module.__name__.rpartition(".")[2]])
        for name in (*case.ours, *case.baselines)
    ]
    metafunc.parametrize("case, name", rows)


@pytest.fixture
def call(case: Any, name: str) -> Any:
    """The row's work as a function, after its check."""
    fault = case.check(name)
    if fault:
        pytest.fail(f"refused: {fault}")
    with pinmem.backend(case.backend_of(name)):
        once = Rotation([case.call(name, seed) for seed in range(case.sets)])
        once()
        yield _waiting(once) if case.plan.device == "cuda" else once
    case.release()


def _waiting(once: Any) -> Any:
    def timed() -> None:
        once()
        torch.cuda.synchronize()

    return timed
