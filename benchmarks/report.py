"""Results into the documentation: ``python -m benchmarks --report benchmarks/results/*.json``.

Tables and plots between the markers of docs/performance.md, so that no figure is typed by hand.
Plots need matplotlib (``pip install -e .[bench]``); without it the tables come alone.
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
DOCUMENT = ROOT / "docs/performance.md"
BEGIN = "<!-- Results: written by `python -m benchmarks --report`, not by hand. -->"
END = "<!-- End of results. -->"


def write(files: Sequence[Path], document: Path = DOCUMENT) -> None:
    """Replace everything between the markers of the document.

    Raises:
        SystemExit: a file is no result of a run, or the document lacks the markers.
    """
    text = document.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise SystemExit(f"{document}: expected one line '{BEGIN}' and one '{END}'")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    sections = [section(file, load(file), document) for file in files]
    document.write_text(f"{before}{BEGIN}\n\n" + "\n\n".join(sections) + f"\n\n{END}{after}")


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


def section(file: Path, results: dict[str, Any], document: Path) -> str:
    """One machine's part of the document."""
    parts = [f"### {results['environment']['device_name']} (`{file.name}`)", ""]
    if not results["environment"].get("smoke"):
        parts += [goals.markdown(results), ""]
    parts += [table.markdown(results)]
    if find_spec("matplotlib") is None:
        print("matplotlib is not installed: tables without plots")
        return "\n".join(parts)
    from benchmarks import plots

    folder = document.parent / "images"
    folder.mkdir(exist_ok=True)
    for name, what in plots.draw(results, folder, f"performance-{file.stem}").items():
        parts += ["", f"![{what}](images/{name})"]
    return "\n".join(parts)
