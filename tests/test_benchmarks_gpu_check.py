"""``make gpu-check``: what it keeps, what it kills, and that its steps fit into its time."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from _pytest.mark.expression import Expression

from benchmarks import gpu_check, gpu_steps, kernel_profile
from benchmarks.case import OPS
from benchmarks.gpu_steps import Step
from pinmem import backends

ROOT = Path(__file__).resolve().parent.parent
# A program whose child outlives it where the program alone is killed.
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
child.wait()
"""


def step(name: str, code: str, seconds: float = 60) -> Step:
    commands = {name: [sys.executable, "-c", code]}
    return Step(name, commands, seconds, commands)


def run(out: Path, monkeypatch: pytest.MonkeyPatch, *steps: Step) -> tuple[int, list[dict], str]:
    """Status, outcomes and log of a run of these steps."""
    monkeypatch.setattr(gpu_check, "steps", lambda *_: iter(steps))
    status = gpu_check.Check(out, False, 1, "9.0").run()
    outcomes = json.loads((out / "gpu-check.json").read_text())["steps"]
    return status, outcomes, (out / "gpu-check.log").read_text()


def alive(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    try:
        return state.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(log: str) -> bool:
    """Whether the child that a log names ends."""
    found = re.search(r"^child (\d+)$", log, re.MULTILINE)
    assert found is not None
    return any(not alive(int(found[1])) or time.sleep(0.05) for _ in range(100))


def test_each_step_is_written_and_none_stops_the_next(tmp_path, monkeypatch) -> None:
    look = f"print(open({str(tmp_path / 'gpu-check.json')!r}).read())"
    steps = [step("wrong", "import sys; print('why'); sys.exit(3)"), step("look", look)]
    absent = Step("absent", {"absent": [str(tmp_path / "nothing")]}, 60, {})
    status, outcomes, log = run(tmp_path, monkeypatch, *steps, absent, step("last", "pass"))
    assert status == 1
    verdicts = {outcome["name"]: outcome["verdict"] for outcome in outcomes}
    assert verdicts == {"wrong": "FAILED", "look": "ok", "absent": "FAILED", "last": "ok"}
    assert outcomes[0]["note"].startswith("wrong: status 3: why")
    # What the second step found on disk.
    assert '"name": "wrong"' in log.partition("=== look")[2]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["gpu-check.json", "gpu-check.log"]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc")
def test_a_step_is_killed_with_its_children(tmp_path, monkeypatch) -> None:
    steps = step("slow", PARENT, seconds=1), step("next", "pass")
    status, outcomes, log = run(tmp_path, monkeypatch, *steps)
    assert status == 1 and outcomes[0]["note"].startswith("stopped after 1 s: slow")
    assert [outcome["verdict"] for outcome in outcomes] == ["FAILED", "ok"]
    assert gone(log)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc")
def test_who_ends_the_check_ends_what_it_runs(tmp_path: Path) -> None:
    code = (
        "from benchmarks import gpu_check; from tests import test_benchmarks_gpu_check as tests;"
        "gpu_check.steps = lambda *_: iter([tests.step('slow', tests.PARENT)]);"
        f"gpu_check.main(['--smoke', '--out', {str(tmp_path)!r}])"
    )
    check = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    children = Path(f"/proc/{check.pid}/task/{check.pid}/children")
    try:
        while not children.read_text().strip():
            assert check.poll() is None
            time.sleep(0.05)
        time.sleep(1)
        check.send_signal(signal.SIGTERM)
        assert check.wait(20) == 143
    finally:
        check.kill()
    assert gone((tmp_path / "gpu-check.log").read_text())


def test_commands_of_a_step_run_side_by_side(tmp_path, monkeypatch) -> None:
    def sanitizer(errors: int) -> list[str]:
        code = f"import sys; print('ERROR SUMMARY: {errors} errors'); sys.exit({errors and 9})"
        return [sys.executable, "-c", code]

    several = Step("several", {"clean": sanitizer(0), "dirty": sanitizer(2)}, 60, {})
    _, (outcome,), _ = run(tmp_path, monkeypatch, several)
    assert outcome["verdict"] == "FAILED"
    assert outcome["note"] == "dirty: status 9: ERROR SUMMARY: 2 errors; 2 errors"


def test_limits_fit_into_nine_minutes(tmp_path: Path) -> None:
    """Also where every step takes all of its own; then the benchmarks have two minutes or so."""
    later, limits = gpu_steps.SANITIZING + gpu_steps.PROFILING, {}
    left = lambda: 9 * 60 - 20 - sum(limits.values()) - later  # noqa: E731
    for each in gpu_steps.steps(tmp_path, "9.0", left):
        limits[each.name] = each.seconds
    assert tuple(limits) == gpu_steps.NAMES
    # The last one takes what is left.
    assert limits.pop("tests") == float("inf")
    assert sum(limits.values()) == 9 * 60 - 20 and limits["benchmarks"] >= 105


def selected(mark: str) -> list[str]:
    """The names of the tests that carry a marker."""
    pytest_ = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts="]
    files = [str(path) for path in gpu_steps.marked(mark)]
    command = [*pytest_, "-m", mark, "--collect-only", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    found = [line.rpartition("::")[2] for line in done.stdout.splitlines() if "::" in line]
    assert found, done.stdout + done.stderr
    return found


def test_every_test_on_a_gpu_is_in_one_shard() -> None:
    shards = {part: Expression.compile(keys) for part, keys in gpu_steps.shards().items()}
    for name in selected("gpu"):
        fit = [part for part, keys in shards.items() if keys.evaluate(partial(_within, name))]
        ours = re.match(r"test_values\[(memory_read\w*)-(n...)-.*-(\w+)\]", name)
        assert fit == [" ".join(ours.groups()) if ours else "others"], name


def _within(name: str, key: str, **_: object) -> bool:
    return key in name


def test_a_gpu_is_asked_for_every_op_in_every_type_first() -> None:
    wanted = set()
    for op in OPS:
        backend = "cuda" if (ROOT / f"csrc/cuda/{op}.cu").exists() else "triton"
        wanted |= {(op, backend, f"{dtype}") for dtype in backends.DTYPES[backend]}
    pattern = re.compile(r"test_values\[(\w+)-n...-(\w+)-gpu-.*-k19-.*-(\w+)\]")
    names = [pattern.fullmatch(name) for name in selected("gpu_quick")]
    assert {(n[1], n[2], f"torch.{n[3]}") for n in names if n is not None} == wanted
    assert None not in names


def test_the_slowest_kernels_are_read_from_csv() -> None:
    metrics = list(kernel_profile.METRICS)
    lines = ["==PROF== Connected", '"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"']
    for i, nanoseconds in enumerate(("1,500", "90", "20,000", "1", "2", "3", "4")):
        lines.append(f'"{i}","kernel_{i}(float, int)","{metrics[0]}","ns","{nanoseconds}"')
        lines.append(f'"{i}","kernel_{i}(float, int)","{metrics[1]}","%","55.5"')
        lines.append(f'"{i}","kernel_{i}(float, int)","something else","","n/a"')
    found = kernel_profile.slowest(lines)
    assert [line.partition("(")[0] for line in found] == [f"kernel_{i}" for i in (2, 0, 1, 6, 5)]
    assert found[0].endswith("(launch 2): 20000 ns, 56 % of the memory's peak")


def test_a_profiler_without_permission_is_skipped(tmp_path, monkeypatch) -> None:
    denied = step("ncu", "print('==ERROR== ERR_NVGPUCTRPERM'); raise SystemExit(1)")
    status, (outcome,), _ = run(tmp_path, monkeypatch, denied)
    assert (status, outcome["verdict"], outcome["lines"]) == (0, "skipped", [])
