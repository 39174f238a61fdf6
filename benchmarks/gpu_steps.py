"""The steps of ``make gpu-check``: commands, limits and rehearsals."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from benchmarks import kernel_profile

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("build", "quick", "streams", "benchmarks", "sanitizers", "profile", "tests")
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
# Seconds of what comes after the benchmarks, which have what the steps before them left.
SANITIZING, PROFILING = 60, 45
# Tests of the CUDA library that run its kernels and little else: sanitizers are slow.
SANITIZED = "cuda-gpu and (test_same_bits_every_time or test_inputs_are_not_written)"


@dataclass
class Step:
    """Commands that run side by side, how long they may take together, and their rehearsal."""

    name: str
    commands: dict[str, list[str]]
    seconds: float
    rehearsal: dict[str, list[str]]
    environment: dict[str, str] = field(default_factory=dict)
    missing: str = ""


def steps(out: Path, arch: str, left: Callable[[], float]) -> Iterator[Step]:
    """All of them, in order.

    Args:
        out: the folder for the figures.
        arch: of the GPU, as TORCH_CUDA_ARCH_LIST has it.
        left: the seconds that are left for the benchmarks when it is their turn.
    """
    python = sys.executable
    install = [python, "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps"]
    yield Step(
        "build",
        {"pip": [*install, "-e", "."]},
        120,
        # Nothing is changed: other tests run beside it.
        {"pip": [*install, "--dry-run", "-e", "."]},
        # A container's Python is often marked as its distribution's; this adds one path to it.
        {
            "TORCH_CUDA_ARCH_LIST": arch,
            "MAX_JOBS": str(os.cpu_count() or 1),
            "PIP_BREAK_SYSTEM_PACKAGES": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        },
        "" if find_spec("pip") else "pip is not installed",
    )
    # The project's own options are for pytest-xdist, which need not be there.
    pytest = [python, "-m", "pytest", "-q", "-rfE", "-p", "no:cacheprovider", "-o", "addopts="]
    yield _tests("quick", [*pytest, "-m", "gpu_quick"], 110)
    stream_check = [python, "-m", "benchmarks.stream_check", "--device"]
    yield Step(
        "streams", {"streams": [*stream_check, "cuda"]}, 75, {"streams": [*stream_check, "cpu"]}
    )
    seconds = max(left(), 60)
    measure = [python, "-m", "benchmarks", "--json", str(out / "benchmarks.json"), "--seconds", "2"]
    # A row may take a while to end.
    measure += ["--budget", f"{seconds - 40:.0f}", "--device"]
    yield Step(
        "benchmarks",
        {"benchmarks": [*measure, "cuda"]},
        seconds,
        {"benchmarks": [*measure, "cpu", "--smoke"]},
    )
    tool = shutil.which("compute-sanitizer", path=search_path())
    checked = [*pytest, "-m", "gpu", "-k", SANITIZED, "tests/test_ops.py"]
    yield Step(
        "sanitizers",
        {name: [tool or "compute-sanitizer", *_options(name), *checked] for name in SANITIZERS},
        SANITIZING,
        {"selection": [*checked, "--collect-only"]},
        # Otherwise an allocation inside a larger one hides where it ends.
        {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        _sanitizer_missing(tool),
    )
    ncu = shutil.which("ncu", path=search_path())
    profiled = [python, "-m", "benchmarks.kernel_profile", "--device"]
    yield Step(
        "profile",
        {"ncu": [ncu or "ncu", *kernel_profile.OPTIONS, *profiled, "cuda"]},
        PROFILING,
        {"ncu": [*profiled, "cpu"]},
        missing="" if ncu else "ncu was not found",
    )
    yield _tests("tests", [*pytest, "-m", "gpu"], float("inf"))


def _tests(name: str, pytest: list[str], seconds: float) -> Step:
    """Tests in as many processes as there are shards; one, which names all, is rehearsed."""
    mark = pytest[-1]
    files = [str(path.relative_to(ROOT)) for path in marked(mark)]
    commands = {part: [*pytest, "-k", keys, *files] for part, keys in shards().items()}
    others = {"others": [*commands["others"], "--collect-only"]}
    return Step(name, commands, seconds, others if name == "quick" else {})


def shards() -> dict[str, str]:
    """Selections of which each test fits one: compiling Triton kernels takes most of the time."""
    parts = {
        f"{op} {form} {dtype}": f"[{op}-{form}- and -{dtype}]"
        for op in ("memory_read", "memory_read_project")
        for form in ("nchw", "nhwc")
        for dtype in ("float32", "bfloat16", "float16")
    }
    return {**parts, "others": f"not ({' or '.join(f'({keys})' for keys in parts.values())})"}


def marked(mark: str) -> list[Path]:
    """The test files in which something carries the marker, but for what cannot be imported."""
    files = sorted((ROOT / "tests").glob("test_*.py"))
    texts = {path: path.read_text() for path in files}
    able = all(map(find_spec, ("torchvision", "jsonargparse")))
    # The marker, or what the tests of all implementations of an op have it from.
    carries = re.compile(rf"mark\.{mark}\b" + (r"|\bimplementations\b" if mark == "gpu" else ""))
    trains = re.compile(r"torchvision|pinmem\.(config|models|step|train|evaluat)")
    return [
        path
        for path, text in texts.items()
        if carries.search(text) and (able or not trains.search(text))
    ]


def _options(tool: str) -> list[str]:
    options = ["--tool", tool, "--error-exitcode", "9", "--print-limit", "20"]
    # initcheck has to see who wrote what; the others need our kernels alone.
    return options if tool == "initcheck" else [*options, "--kernel-name", "kns=pinmem"]


def search_path() -> str:
    """Programs, those of CUDA too."""
    homes = (os.environ.get("CUDA_HOME"), "/usr/local/cuda")
    places = [f"{home}/{sub}" for home in homes if home for sub in ("bin", "compute-sanitizer")]
    return os.pathsep.join([os.environ.get("PATH", ""), *places])


def _sanitizer_missing(tool: str | None) -> str:
    if tool is None:
        return "compute-sanitizer was not found"
    return "" if (ROOT / "pinmem/_cuda.so").exists() else "pinmem/_cuda.so was not built"
