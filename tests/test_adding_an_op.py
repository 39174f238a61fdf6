"""docs/adding_an_op.md: the op that the page adds, added to a copy of the repository, works."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from .build_tools import ROOT

OP = "slot_norms"
BLOCK = re.compile(r'^```(\w+) title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)
FOLDERS = ("benchmarks", "csrc", "kernels", "pinmem", "tests")
# Every test of an op but those of the command lines, which want all ops built.
ASKED = ["", "_backends", "_errors", "_properties", "_transforms"]
TESTS = [f"tests/test_ops{part}.py" for part in ASKED]
TESTS += ["tests/test_benchmarks.py", "tests/test_benchmarks_gpu_check.py"]


def follow(page: str, tree: Path) -> None:
    """Write the page's new files, and add its lines to the files that are there."""
    for language, name, text in BLOCK.findall(page):
        path = tree / name
        if language != "diff":
            assert not path.exists(), f"{name} is there already"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            continue
        lines = text.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if line[0] == " ")
        whole = path.read_text()
        assert whole.count(before) == 1, f"{name} has not, or not once:\n{before}"
        path.write_text(whole.replace(before, "".join(line[1:] for line in lines)))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the repository after the page, with a C++ library of the new op alone."""
    ignored = shutil.ignore_patterns("*.so", "__pycache__", "_build.txt", "kernels")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    (tmp_path / "pinmem/kernels").symlink_to("../kernels")
    for name in ("setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    follow((ROOT / "docs/adding_an_op.md").read_text(), tmp_path)
    for source in (tmp_path / "csrc/cpu").rglob("*.cpp"):
        if source.stem not in ("library", OP):
            source.unlink()
    run(tmp_path, "setup.py", "-q", "build_ext", "--inplace")
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc", dirs_exist_ok=True)
    return tmp_path


def run(tree: Path, *command: str) -> str:
    """What Python says in the copy, whose packages come first; it has to succeed."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "PINMEM_REQUIRE_CUDA": "0"}
    environment.pop("PINMEM_CPU_LIBRARY", None)
    done = subprocess.run(
        [sys.executable, *command],
        cwd=tree, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("c++"), reason="there is no C++ compiler")
def test_the_op_of_the_page_passes_every_test_of_an_op(tree: Path) -> None:
    report = tree / "report.xml"
    chosen = ["-k", f"{OP} or every_op", f"--junitxml={report}"]
    said = run(tree, "-m", "pytest", "-q", *TESTS, *chosen)
    cases = ElementTree.parse(report).iter("testcase")
    passed = [case.get("name", "") for case in cases if not len(case)]
    triton = "triton-gpu" if torch.cuda.is_available() else "triton-interpreter"
    for test, backends in {
        "test_values": ["cpu", triton],
        "test_gradcheck": ["cpu"],
        "test_opcheck": ["cpu", triton],
        "test_compile": ["cpu", triton],
        "test_transform": ["cpu", triton],
        "test_bad_arguments": ["cpu", "reference"],
        "test_pytorchs_own_dispatch": [OP],
        "test_every_op_has_its_files": [""],
        "test_every_op_has_a_file_and_a_row": [""],
        "test_a_gpu_is_asked_for_every_op": [""],
    }.items():
        for backend in backends:
            ran = [name for name in passed if name.startswith(test) and backend in name]
            assert ran, f"{test} did not run for {backend}:\n{said}"
