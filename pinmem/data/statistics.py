"""Where the classes of a dataset lie: what class-uniform sampling draws from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pinmem.data.cache import fingerprint
from pinmem.data.dataset import SegmentationDataset
from pinmem.data.errors import DataError
from pinmem.writing import write_beside

__all__ = ["TILE", "ClassPlaces", "places_of", "statistics_file", "write_statistics"]

TILE = 1024
"""Pixels on a side of a tile: the published code looks for every class in each."""

Track = Callable[[Iterable[int]], Iterable[int]]


def places_of(target: np.ndarray, num_classes: int, tile: int = TILE) -> np.ndarray:
    """int32 [N, 3]: class, y and x of the centroid of every class in every tile of a target."""
    rows = []
    for top in range(0, target.shape[0], tile):
        for left in range(0, target.shape[1], tile):
            part = target[top : top + tile, left : left + tile]
            # A histogram a row and a histogram a column hold counts and both sums.
            by_row, by_column = _histograms(part), _histograms(part.T)
            counts = by_row.sum(axis=0)
            for number in np.flatnonzero(counts[:num_classes]):
                y = int(by_row[:, number] @ np.arange(len(by_row)) // counts[number])
                x = int(by_column[:, number] @ np.arange(len(by_column)) // counts[number])
                rows.append((number, top + y, left + x))
    return np.array(rows, np.int32).reshape(-1, 3)


def _histograms(lines: np.ndarray) -> np.ndarray:
    """int64 [lines, 256]."""
    shifted = lines.astype(np.int64) + 256 * np.arange(len(lines))[:, None]
    return np.bincount(shifted.ravel(), minlength=256 * len(lines)).reshape(-1, 256)


def statistics_file(dataset: SegmentationDataset, folder: Path) -> Path:
    """Where the statistics of these very files lie: changed labels have another name."""
    labels = (dataset.paths(index)[1] for index in range(len(dataset)))
    key = fingerprint(labels, dataset.encoding_key, len(dataset.classes), TILE)
    return folder / f"{dataset.name.replace('/', '-')}-{key}.npy"


def write_statistics(path: Path, places: list[np.ndarray]) -> None:
    """Write the places of every image, in order, beside and renamed."""
    numbers = np.repeat(np.arange(len(places)), [len(part) for part in places])
    table = np.column_stack([numbers, np.concatenate(places)]).astype(np.int32)
    write_beside(path, lambda file: np.save(file, table))


class ClassPlaces(NamedTuple):
    """Images and pixels of every class that occurs: int32 [n, 3] of image, y, x each."""

    classes: list[np.ndarray]

    @staticmethod
    def of(
        dataset: SegmentationDataset, folder: Path, track: Track = lambda items: items
    ) -> ClassPlaces:
        """Read the statistics of a dataset; where there are none, make them (one pass over labels).

        Raises:
            DataError: a label or the file is not readable, or no label holds a class.
        """
        path = statistics_file(dataset, folder)
        if not path.exists():
            count = len(dataset.classes)
            write_statistics(
                path,
                [
                    places_of(dataset.read_target(index).numpy(), count)
                    for index in track(range(len(dataset)))
                ],
            )
        try:
            table = np.load(path)
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: statistics cannot be read: {error}") from error
        found = [table[table[:, 1] == number][:, [0, 2, 3]] for number in np.unique(table[:, 1])]
        if not found:
            raise DataError(f"{dataset.name}: no label holds a class")
        return ClassPlaces(found)
