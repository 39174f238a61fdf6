"""A progress bar with images per second, on the terminal's error stream, and nothing elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Item = TypeVar("Item")


def progress(
    items: Iterable[Item], what: str, total: int, images: Callable[[Item], int] = lambda item: 1
) -> Iterator[Item]:
    """Go through items under a bar.

    Args:
        items: what is gone through.
        what: the bar's title.
        total: number of images.
        images: how many an item has.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(what, total=total, speed="")
        began, done = time.perf_counter(), 0
        for item in items:
            yield item
            done += images(item)
            speed = done / (time.perf_counter() - began)
            bar.update(task, completed=done, speed=f"{speed:.1f} images/s")
