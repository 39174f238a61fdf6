"""Which pictures and videos are meant, and where their results go."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pinmem.data.tree import is_hidden, walk
from pinmem.prediction.pictures import INDEXED

__all__ = ["PICTURES", "VIDEOS", "Found", "Source", "find", "plan"]

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
VIDEOS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v")


@dataclass(frozen=True)
class Source:
    """A picture or video, and the files its results go to, by kind."""

    path: Path
    results: dict[str, Path]

    @property
    def is_video(self) -> bool:
        """Whether it is a video: its name says."""
        return self.path.suffix.lower() in VIDEOS


@dataclass
class Found:
    """Files that are meant, each with the folder its results keep its place below."""

    files: dict[Path, Path]
    skipped: int = 0


def find(inputs: Sequence[str], recursive: bool, out: Path) -> Found:
    """The pictures and videos that some inputs mean, in order.

    Args:
        inputs: files, folders and glob patterns.
        recursive: whether sub-folders of folders count.
        out: folder of the results, absolute; it is not read.

    Raises:
        ValueError: an input means nothing, or is the folder of the results.
    """
    found = Found({})
    for text in inputs:
        source = Path(text)
        if source.is_dir():
            if source.absolute() == out:
                raise ValueError(f"out: got {out}, which is read too, expected another folder")
            below = source.iterdir()
            if recursive:
                below = (parent / name for parent, names in walk(source) for name in names)
            there = [path for path in sorted(below) if not path.absolute().is_relative_to(out)]
            files = [path for path in there if path.is_file() and _counts(path, source)]
            found.skipped += len(there) - len(files)
            base = source
        elif source.exists():
            files, base = [source], source.parent
        else:
            if not glob.has_magic(text):
                raise ValueError(f"images: no such file or folder: {text!r}")
            there = [Path(name) for name in sorted(glob.glob(text, recursive=True))]
            base = _fixed(text)
            files = [p for p in there if p.is_file() and _counts(p, base)]
        if not files:
            expected = ", ".join((*PICTURES, *VIDEOS))
            raise ValueError(f"images: no picture or video in {text!r} ({expected})")
        for path in files:
            found.files.setdefault(Path(os.path.abspath(path)), base.absolute())
    return found


def plan(found: Found, out: Path, kinds: Sequence[str]) -> list[Source]:
    """Where every result goes: below ``out`` as its source lies below its folder.

    Files that differ in their suffix alone keep it in the results' names.

    Raises:
        ValueError: two sources would write one file.
    """
    places = {path: out / path.parent.relative_to(base) for path, base in found.files.items()}
    stems = Counter((place, path.stem) for path, place in places.items())
    owners: dict[Path, Path] = {}
    sources = []
    for path, place in places.items():
        name = path.stem if stems[place, path.stem] == 1 else path.name
        video = path.suffix.lower() in VIDEOS
        results = {}
        for kind in kinds:
            suffix = ".png" if not video else "" if kind in INDEXED else ".mp4"
            result = place / f"{name}_{kind}{suffix}"
            if (other := owners.setdefault(result, path)) != path:
                raise ValueError(f"images: {other} and {path} would both be written to {result}")
            results[kind] = result
        sources.append(Source(path, results))
    return sources


def _fixed(pattern: str) -> Path:
    """The folders of a glob pattern before its first wildcard."""
    parts = Path(pattern).parts[:-1]
    return Path(*_until_magic(parts))


def _until_magic(parts: Sequence[str]) -> Iterator[str]:
    for part in parts:
        if glob.has_magic(part):
            return
        yield part


def _counts(path: Path, base: Path) -> bool:
    hidden = is_hidden(path.relative_to(base).as_posix())
    return path.suffix.lower() in (*PICTURES, *VIDEOS) and not hidden
