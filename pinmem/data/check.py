"""``python -m pinmem.data.check --dataset gtav --root DIR``: what lies there, and what is wrong.

Looks for the splits of a dataset in every layout it is handed out in, and reports the pairs found,
labels and images that are missing, and pairs whose image and label differ in size (read from the
headers). ``--decode`` also decodes every file and checks every label value.
Exits with 0 if all is well, with 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from pinmem.data.dataset import SegmentationDataset
from pinmem.data.decode import image_size
from pinmem.data.errors import DataError
from pinmem.data.layouts import LAYOUTS, Layout

__all__ = ["SplitReport", "check_split", "main"]


@dataclass
class SplitReport:
    """What ``check_split`` found in one split; ``problems`` are lines for people to read."""

    split: str
    where: str
    pairs: int
    sizes: dict[tuple[int, int], int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def lines(self, limit: int) -> list[str]:
        """The report, with at most ``limit`` problems."""
        sizes = ", ".join(
            f"{count} of {width}x{height}"
            for (height, width), count in sorted(self.sizes.items(), key=lambda item: -item[1])[:5]
        )
        head = f"{self.split}: {self.pairs} pairs in {self.where}" + (
            f" ({sizes})" if sizes else ""
        )
        shown = [f"  {problem}" for problem in self.problems[:limit]]
        if len(self.problems) > limit:
            shown.append(f"  ... and {len(self.problems) - limit} more")
        verdict = f"  {len(self.problems)} wrong" if self.problems else "  all well"
        return [head, *shown, verdict]


def check_split(layout: Layout, root: Path, split: str, *, decode: bool = False) -> SplitReport:
    """Inspect one split of a dataset.

    Args:
        layout: from ``pinmem.data.layouts.LAYOUTS``.
        root: the dataset's folder.
        split: ``train``, ``val`` or ``test``.
        decode: decode every file and check every label value; without it, headers are compared.
    """
    found = layout.find(root, split)
    if found is None:
        patterns = " and ".join(layout.patterns(split))
        return SplitReport(split, str(root), 0, problems=[f"no image found: looked for {patterns}"])
    folders, folder = found
    pairs = folders.pairs(root, split, folder)
    report = SplitReport(split, str(root / folders.images.format(split=folder)), 0)
    present = []
    for image, label in pairs:
        if label.is_file():
            present.append((image, label))
        else:
            report.problems.append(f"{image}: its label {label} is missing")
    for label in folders.unpaired_labels(root, split, folder):
        report.problems.append(f"{label}: its image is missing")
    report.pairs = len(present)
    dataset = SegmentationDataset(layout.name, present, layout.encoding)
    with ThreadPoolExecutor() as pool:  # waiting for a disk, not for a processor
        for size, problem in pool.map(lambda i: _inspect(dataset, i, decode), range(len(present))):
            if size is not None:
                report.sizes[size] = report.sizes.get(size, 0) + 1
            if problem is not None:
                report.problems.append(problem)
    return report


def _inspect(
    dataset: SegmentationDataset, index: int, decode: bool
) -> tuple[tuple[int, int] | None, str | None]:
    image, label = dataset.paths(index)
    try:
        size, label_size = image_size(image), image_size(label)
        if size != label_size:
            return size, (
                f"{image} is {size[1]}x{size[0]}, its label {label} is "
                f"{label_size[1]}x{label_size[0]}"
            )
        if decode:
            dataset[index]
    except DataError as error:
        return None, str(error)
    return size, None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pinmem.data.check",
        description="Say what a dataset folder holds, what is missing and which pairs do not fit.",
    )
    parser.add_argument("--dataset", required=True, choices=tuple(LAYOUTS))
    parser.add_argument("--root", required=True, type=Path, help="the dataset's folder")
    parser.add_argument(
        "--split",
        action="append",
        choices=("train", "val", "test"),
        help="check this split alone; may be repeated (default: train and val)",
    )
    parser.add_argument(
        "--decode", action="store_true", help="decode every file and check every label value"
    )
    parser.add_argument(
        "--limit", type=int, default=20, help="show at most this many problems a split (20)"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the check; returns the exit status."""
    options = _parser().parse_args(arguments)
    if not options.root.is_dir():
        print(f"--root: no such folder: {options.root}")
        return 1
    wrong = False
    for split in options.split or ("train", "val"):
        report = check_split(LAYOUTS[options.dataset], options.root, split, decode=options.decode)
        wrong = wrong or bool(report.problems)
        print("\n".join(report.lines(options.limit)))
    return int(wrong)


if __name__ == "__main__":
    raise SystemExit(main())
