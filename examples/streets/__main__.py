"""``python -m examples.streets --root DIR``: write street scenes as data sets."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from examples.streets.domains import STYLES
from examples.streets.generate import generate
from examples.streets.sheet import contact_sheet


def _size(text: str) -> tuple[int, int]:
    try:
        width, height = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT, got {text!r}") from None
    return width, height


def _domains(text: str) -> tuple[str, ...]:
    names = tuple(name for name in text.split(",") if name)
    unknown = [name for name in names if name not in STYLES]
    if unknown or not names:
        raise argparse.ArgumentTypeError(f"expected some of {','.join(STYLES)}, got {text!r}")
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m examples.streets",
        description="Draw street scenes with exact labels and write them in the folders and "
        "encodings of GTAV, SYNTHIA, Cityscapes and ACDC (night), under ROOT/gtav, "
        "ROOT/synthia, ROOT/cityscapes and ROOT/acdc. What is already there is kept, so an "
        "interrupted run can be repeated.",
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--root", type=Path, help="parent of the domains' folders")
    target.add_argument(
        "--sheet", type=Path, metavar="PNG", help="write a contact sheet here instead of data sets"
    )
    parser.add_argument("--domains", type=_domains, default=tuple(STYLES), help="default: all")
    parser.add_argument("--train", type=int, default=200, help="scenes a domain (200)")
    parser.add_argument("--val", type=int, default=50, help="scenes a domain (50)")
    parser.add_argument(
        "--size", type=_size, default=(512, 256), metavar="WxH", help="pixels (512x256)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes (one a core)"
    )
    return parser


class _Progress:
    """A line every other second, overwritten, on a terminal; one every 15 seconds in a log."""

    def __init__(self) -> None:
        self._first = self._shown = 0.0
        self._terminal = sys.stderr.isatty()
        self._every = 2 if self._terminal else 15

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done == 1:  # the clock starts here: what came before was the workers' start
            self._first = self._shown = now
        if done == 1 or (now - self._shown < self._every and done < total):
            return
        self._shown = now
        rate = (done - 1) / max(now - self._first, 1e-9)
        end = "\r" if self._terminal and done < total else "\n"
        left = f"{(total - done) / rate:.0f} s left"
        print(f"{done}/{total} scenes, {rate:.1f} a second, {left}", end=end, file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if min(options.size) < 32:
        parser.error(f"--size: expected at least 32 pixels a side, got {options.size}")
    try:
        if options.sheet:
            contact_sheet(options.sheet, options.domains, 4, options.size, options.seed)
            print(options.sheet)
            return 0
        counts = {"train": options.train, "val": options.val}
        written, kept = generate(
            options.root, options.domains, counts, options.size, options.seed, options.workers,
            _Progress(),
        )  # fmt: skip
    except ValueError as error:
        parser.error(f"--{error}")
    print(f"{written} scenes written, {kept} already there, under {options.root}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
