"""``python -m pinmem.data.check --dataset gtav --root DIR``: what lies there, and what is wrong.

Looks for the splits of a dataset in every layout of its description, reads every label and the
header of every image, and reports pairs, classes, what is missing, differs in size, cannot be read
or is skipped, and how to mend it. ``--decode`` decodes the images too and says what the decoder
warned of. Exits with 0 if all is well, with 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

from pinmem.data.classes import Classes
from pinmem.data.dataset import SPLIT_ALIASES, SegmentationDataset
from pinmem.data.decode import image_size, read_image, read_label
from pinmem.data.description import Description
from pinmem.data.errors import DataError
from pinmem.data.files import Found, find_all, find_files, searched
from pinmem.data.jpeg import decoder_warnings
from pinmem.data.parse import open_description
from pinmem.data.sheet import write_sheet
from pinmem.data.statistics import places_of, statistics_file, write_statistics

__all__ = ["SplitReport", "check_split", "main"]

_ADVICE = {
    "no files": "--root is the folder that holds the first folder of these patterns; "
    "other arrangements are described in a .yaml of your own (docs/data.md)",
    "folder": "see that the folder is there and may be read",
    "statistics": "mend the labels above and run this again",
    "no label": "unpack the labels beside the images, or take these images away",
    "no image": "unpack the images, or take these labels away",
    "size": "image and label are not of one frame: fetch both anew, or take the pair away",
    "unreadable": "fetch the file anew, and see that it may be read",
    "label": "these labels were made for other classes, or saved by a program that changed them: "
    "fetch them anew, or describe them in a .yaml of your own (encoding, ignore)",
    "two images": "keep one image per label",
    "damaged": "the decoder went on behind damaged data, part of the picture is made up: "
    "fetch it anew",
    "no class": "these labels are dummies (a test split?) or mean something else",
}


@dataclass
class SplitReport:
    """What ``check_split`` found in one split; ``problems`` are (kind, line for people)."""

    split: str
    where: str
    classes: Classes
    published: tuple[int, ...] = ()
    pairs: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, dtype=np.int64))
    problems: list[tuple[str, str]] = field(default_factory=list)
    skipped: dict[str, list[Path]] = field(default_factory=dict)
    advice: dict[str, str] = field(default_factory=dict)

    def lines(self, limit: int) -> list[str]:
        """The report, with at most ``limit`` problems of each kind."""
        sizes = ", ".join(
            f"{count} of {width}x{height}" for (height, width), count in self.sizes.most_common(5)
        )
        out = [
            f"{self.split}: {self.pairs} pairs in {self.where}" + (f" ({sizes})" if sizes else "")
        ]
        if self.published and self.pairs and self.pairs not in self.published:
            out.append(f"  published: {' or '.join(map(str, self.published))}, here {self.pairs}")
        if self.pixels.any():
            out += self._class_lines()
        for reason, paths in self.skipped.items():
            out.append(f"  skipped, {reason}: {len(paths)}, such as {paths[0]}")
        for kind in dict.fromkeys(kind for kind, _ in self.problems):
            lines = [line for of, line in self.problems if of == kind]
            out += [f"  {line}" for line in lines[:limit]]
            if len(lines) > limit:
                out.append(f"  ... and {len(lines) - limit} more")
            if advice := self.advice.get(kind) or _ADVICE.get(kind):
                out.append(f"  -> {advice}")
        out.append(f"  {len(self.problems)} wrong" if self.problems else "  all well")
        return out

    def _class_lines(self) -> list[str]:
        shares = 100 * self.pixels / self.pixels.sum()
        shown = [
            f"{name} {shares[number]:.2f}" if self.pixels[number] else f"{name} none"
            for number, name in enumerate(self.classes.names)
        ]
        ignored = f"ignored {shares[255]:.2f}"
        return [f"  pixels in percent: {', '.join([*shown, ignored])}"]


class _Inspection(NamedTuple):
    size: tuple[int, int] | None
    pixels: list[int] | None
    places: np.ndarray | None
    problem: tuple[str, str] | None


def check_split(
    description: Description,
    root: Path,
    split: str,
    *,
    subsets: Sequence[str] = (),
    decode: bool = False,
    statistics: Path | None = None,
    console: Console | None = None,
) -> tuple[SplitReport, SegmentationDataset | None]:
    """Inspect one split of a dataset; every file is looked at, whatever the others hold.

    Args:
        description: from ``pinmem.data.description``.
        root: the dataset's folder.
        split: ``train``, ``val``, ``test`` or one of the description's own.
        subsets: of the description; all if empty.
        decode: decode the images too.
        statistics: write the class statistics for class-uniform sampling into this folder.
        console: shows a progress bar on it.

    Returns:
        The report and the pairs as a dataset; None where there are none.
    """
    subsets = tuple(subsets or description.subsets)
    chosen = "" if subsets == description.subsets else f":{subsets[0]}"
    report = SplitReport(split, str(root), description.classes, description.counts.get(split, ()))
    try:
        found = find_files(description, root, split, subsets)
    except DataError as error:
        report.problems.append(("folder", str(error)))
        return report, None
    if found is None:
        line = f"no image found: looked for {searched(description, split)}"
        report.problems.append(("no files", line))
        return report, None
    _report_files(report, found, description, root)
    used = {image for image, _ in found.pairs}
    if not found.layout.list:
        for other in find_all(description, root, split, subsets):
            if more := [image for image, _ in other.pairs if image not in used]:
                report.skipped[f"another arrangement, {other.where}"] = more
    dataset = SegmentationDataset(
        f"{description.name}{chosen}/{split}",
        found.pairs,
        found.layout.encoding,
        classes=description.classes,
    )
    places = []
    with ThreadPoolExecutor() as pool:  # decoders let other threads run
        results = pool.map(
            lambda index: _inspect(dataset, index, decode, statistics is not None),
            range(len(dataset)),
        )
        shown = track(
            results, f"{split}: reading", len(dataset), console=console, transient=True,
            disable=console is None,
        )  # fmt: skip
        for result in shown:
            if result.size is not None:
                report.sizes[result.size] += 1
            if result.pixels is not None:
                report.pixels += result.pixels
            if result.places is not None:
                places.append(result.places)
            if result.problem is not None:
                report.problems.append(result.problem)
    if report.pixels.any() and not report.pixels[: len(report.classes)].any():
        report.problems.append(("no class", f"no labelled pixel in {len(dataset)} labels"))
    if statistics is not None and dataset:
        if len(places) == len(dataset):
            write_statistics(statistics_file(dataset, statistics), places)
        else:
            report.problems.append(("statistics", "not written: some labels cannot be read"))
    return report, dataset


def _report_files(report: SplitReport, found: Found, description: Description, root: Path) -> None:
    report.where = str(root / found.where)
    report.pairs = len(found.pairs)
    report.skipped = found.skipped
    if description.missing_labels:
        report.advice["no label"] = description.missing_labels
    for image, label in found.without_label:
        report.problems.append(("no label", f"{image}: its label {label} is missing"))
    for path in found.without_image:
        listed = found.layout.list or found.layout.pairs
        reason = "is listed, but missing" if listed else "its image is missing"
        report.problems.append(("no image", f"{path}: {reason}"))
    shared = Counter(label for _, label in found.pairs)
    for label, count in shared.items():
        if count > 1:
            report.problems.append(("two images", f"{label}: label of {count} images"))


def _inspect(dataset: SegmentationDataset, index: int, decode: bool, places: bool) -> _Inspection:
    image, label = dataset.paths(index)
    size, pixels, where = None, None, None
    kind = "unreadable"
    try:
        size = image_size(image)
        raw = read_label(label)
        kind = "label"
        target = dataset.decode_target(index, raw).numpy()
        pixels = Image.fromarray(target).histogram()
        if places:
            where = places_of(target, len(dataset.classes))
        problem = None
        if size != target.shape:
            problem = (
                "size",
                f"{image} is {size[1]}x{size[0]}, its label {label} is "
                f"{target.shape[1]}x{target.shape[0]}",
            )
        if decode:
            kind = "unreadable"
            read_image(image)
            if warning := decoder_warnings(image):
                problem = problem or ("damaged", f"{image}: {warning}")
    except DataError as error:
        problem = (kind, str(error))
    except (MemoryError, OSError) as error:
        problem = (kind, f"{image} or its label: {error or 'does not fit into memory'}")
    return _Inspection(size, pixels, where, problem)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pinmem.data.check",
        description="Say what a dataset holds, what is missing or skipped, which files are bad.",
    )
    parser.add_argument(
        "--dataset", required=True, help="a known name (gtav, acdc, acdc:fog ...) or a .yaml file"
    )
    parser.add_argument("--root", type=Path, help="its folder; --dataset gtav=DIR says it too")
    parser.add_argument(
        "--split", action="append", help="check this split alone; may be repeated (train and val)"
    )
    parser.add_argument("--decode", action="store_true", help="decode every image too")
    parser.add_argument("--sheet", type=Path, help="write a PNG of pictures with their labels")
    parser.add_argument(
        "--statistics", type=Path, help="write statistics for class-uniform sampling here"
    )
    parser.add_argument(
        "--limit", type=int, default=20, help="show at most this many problems of a kind (20)"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the check; returns the exit status."""
    options = _parser().parse_args(arguments)
    name, _, folder = options.dataset.partition("=")
    try:
        description, subsets = open_description(name)
    except ValueError as error:
        print(f"--dataset: {error}")
        return 1
    root = options.root or (Path(folder) if folder else description.root)
    if root is None or not os.path.isdir(root):
        print(f"--root: no such folder, or not readable: {root}" if root else "--root: missing")
        return 1
    wrong, sheets = False, []
    known = [s for s in ("train", "val") if any(of.holds(s) for of in description.layouts)]
    for name in options.split or known:
        split = SPLIT_ALIASES.get(name, name)
        report, dataset = check_split(
            description, root, split, subsets=subsets, decode=options.decode,
            statistics=options.statistics, console=Console(stderr=True),
        )  # fmt: skip
        kinds = [kind for kind, _ in report.problems]
        published = description.counts.get(split)
        if split == "val" and not (options.split or published) and kinds == ["no files"]:
            print(f"val: {report.problems[0][1]}; a run that learns from it goes without")
            continue
        wrong = wrong or bool(kinds)
        print("\n".join(report.lines(options.limit)))
        if dataset:
            sheets.append(dataset)
    if options.sheet and sheets:
        write_sheet(options.sheet, sheets)
        print(f"sheet: {options.sheet}")
    return int(wrong)


if __name__ == "__main__":
    raise SystemExit(main())
