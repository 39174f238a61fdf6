"""Results into the documentation: ``python -m benchmarks --report benchmarks/results/*.json``.

A page of tables and plots per machine, so that no figure is typed by hand. Plots need matplotlib
(``pip install -e .[bench]``); without it the tables come alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks import goals, table

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs/results"
NOTE = "<!-- Written by `python -m benchmarks --report`, not by hand. -->"


def write(files: Sequence[Path], pages: Path = PAGES) -> None:
    """Write the page of every file of results, ``pages/NAME.md``, and its plots beside it.

    Raises:
        SystemExit: a file is no result of a run.
    """
    pages.mkdir(parents=True, exist_ok=True)
    for file in files:
        (pages / f"{file.stem}.md").write_text(page(file, load(file), pages))


def save(file: Path, results: dict[str, Any]) -> None:
    """Write results as JSON, beside the file and then in its place: never half a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f".{file.name}")
    beside.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(beside, file)


def load(file: Path) -> dict[str, Any]:
    """The results in a JSON file that ``--json`` wrote."""
    try:
        results = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise SystemExit(f"{file}: {error}") from None
    if not isinstance(results, dict) or not {"environment", "rows"} <= results.keys():
        raise SystemExit(f"{file}: got no benchmark results, expected a file of --json")
    return results


def page(file: Path, results: dict[str, Any], pages: Path) -> str:
    """One machine's page."""
    parts = [f"# {results['environment']['device_name']}", "", NOTE, ""]
    if not results["environment"].get("smoke"):
        parts += [goals.markdown(results), ""]
    parts += [table.markdown(results)]
    if find_spec("matplotlib") is None:
        print("matplotlib is not installed: tables without plots")
        return "\n".join(parts) + "\n"
    from benchmarks import plots

    for name, what in plots.draw(results, pages, file.stem).items():
        parts += ["", f"![{what}]({name})"]
    return "\n".join(parts) + "\n"
