"""Making a data set of street scenes, in parallel, in such a way that it can be taken up again."""

from __future__ import annotations

import multiprocessing
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from examples.streets.domains import STYLES
from examples.streets.scene import render_street
from examples.streets.writers import WRITERS

__all__ = ["Job", "generate", "scene_seed"]

_SPLITS = ("train", "val")


@dataclass(frozen=True)
class Job:
    """One scene to draw and write under ``root / domain``."""

    root: Path
    domain: str
    split: str
    index: int
    width: int
    height: int
    seed: int


def scene_seed(seed: int, domain: str, split: str, index: int) -> list[int]:
    """The seed of one scene: of its name alone, whatever else is drawn."""
    return [seed, zlib.crc32(domain.encode()), _SPLITS.index(split), index]


def _draw(job: Job) -> None:
    seed = scene_seed(job.seed, job.domain, job.split, job.index)
    picture, target = render_street(job.domain, seed, job.width, job.height)
    WRITERS[job.domain].write(job.root / job.domain, job.split, job.index, picture, target)


def _is_missing(job: Job) -> bool:
    paths = WRITERS[job.domain].paths(job.root / job.domain, job.split, job.index)
    return not all(path.exists() for path in paths)


def generate(
    root: Path,
    domains: Sequence[str],
    counts: dict[str, int],
    size: tuple[int, int],
    seed: int,
    workers: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[int, int]:
    """Write street scenes under ``root/<domain>``, leaving alone those that are there.

    Args:
        root: parent of the domains' folders.
        domains: names in ``examples.streets.style.STYLES``.
        counts: how many of each split, ``train`` and ``val``.
        size: width and height in pixels.
        seed: of the whole set, non-negative; the files' bytes depend on it and their names alone.
        workers: processes; with 1 the scenes are drawn in this one.
        progress: called with (scenes done, scenes to do) after each.

    Returns:
        How many were written and how many were there already.

    Raises:
        ValueError: an unknown domain, a negative count or seed, fewer workers than one.
    """
    for domain in domains:
        if domain not in STYLES:
            raise ValueError(f"domains: expected some of {', '.join(STYLES)}, got {domain!r}")
    numbers = {"train": counts["train"], "val": counts["val"], "seed": seed, "workers": workers - 1}
    for name, value in numbers.items():
        if value < 0:
            least = 1 if name == "workers" else 0
            raise ValueError(f"{name}: expected at least {least}, got {value + least}")
    every = [
        Job(root, domain, split, index, *size, seed)
        for domain in domains
        for split in _SPLITS
        for index in range(counts[split])
    ]
    missing = [job for job in every if _is_missing(job)]
    for done, _ in enumerate(_run(missing, workers), start=1):
        progress(done, len(missing))
    return len(missing), len(every) - len(missing)


def _run(jobs: list[Job], workers: int) -> Iterator[None]:
    """Yield once a job done; an error in any ends it."""
    if min(workers, len(jobs)) <= 1:
        for job in jobs:
            _draw(job)
            yield
        return
    # Not forked from this process, which may hold threads of torch.
    preload = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if preload else "spawn")
    if preload:
        context.set_forkserver_preload([__name__])  # the imports, once for all workers
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context) as pool:
        queue = iter(jobs)
        pending = {pool.submit(_draw, job) for job in islice(queue, 4 * workers)}
        while pending:
            finished, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in finished:
                future.result()
                yield
                pending |= {pool.submit(_draw, job) for job in islice(queue, 1)}
