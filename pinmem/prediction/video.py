"""Videos, frame by frame, through PyAV."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pinmem.data import DataError
from pinmem.extras import optional
from pinmem.prediction.pictures import write_picture

__all__ = ["FolderWriter", "VideoWriter", "frames", "needs_av", "properties"]


def needs_av() -> Any:
    """PyAV, or a ``ValueError`` that names the extra."""
    return optional("av", "video", "a video")


def properties(path: Path) -> tuple[int, Fraction]:
    """The number of frames, 0 where the file does not say, and frames per second.

    Raises:
        DataError: the file is no video.
    """
    av = needs_av()
    try:
        with av.open(str(path)) as file:
            stream = file.streams.video[0]
            return stream.frames, stream.average_rate or Fraction(25)
    except (av.FFmpegError, IndexError) as error:
        raise DataError(f"{path}: video cannot be opened: {error}") from error


def frames(path: Path) -> Iterator[Tensor]:
    """The frames, uint8 [3,H,W], turned as viewers show them.

    Raises:
        DataError: the file is damaged.
    """
    av = needs_av()
    try:
        with av.open(str(path)) as file:
            for frame in file.decode(video=0):
                pixels = frame.to_ndarray(format="rgb24")
                turned = np.rot90(pixels, k=round(frame.rotation / 90))
                yield torch.from_numpy(np.ascontiguousarray(turned)).permute(2, 0, 1)
    except (av.FFmpegError, IndexError) as error:
        raise DataError(f"{path}: video cannot be decoded: {error}") from error


class VideoWriter:
    """Writes pictures of one size as a video, beside ``path`` until it is closed.

    Args:
        path: ends in ``.mp4``.
        rate: pictures per second.
    """

    def __init__(self, path: Path, rate: Fraction) -> None:
        self.path = path
        self.beside = path.with_name(f".{path.name}.partial{path.suffix}")
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = needs_av().open(str(self.beside), "w")
        self.rate = rate
        self.stream: Any = None

    def write(self, picture: Image.Image) -> None:
        """Add a picture; an odd row or column at its end is cut: the format has none."""
        av = needs_av()
        width, height = picture.width // 2 * 2, picture.height // 2 * 2
        if self.stream is None:
            codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
            self.stream = self.file.add_stream(codec, rate=self.rate)
            self.stream.width, self.stream.height = width, height
            self.stream.pix_fmt = "yuv420p"
            if codec == "libx264":
                self.stream.options = {"crf": "18"}
        frame = av.VideoFrame.from_ndarray(
            np.asarray(picture.convert("RGB").crop((0, 0, width, height))), format="rgb24"
        )
        self.file.mux(self.stream.encode(frame))

    def close(self, complete: bool) -> None:
        """Give the file its name, or remove it where it is not complete."""
        if self.stream is not None and complete:
            self.file.mux(self.stream.encode())
        self.file.close()
        if complete:
            self.beside.replace(self.path)
        else:
            self.beside.unlink(missing_ok=True)


class FolderWriter:
    """Writes pictures as numbered PNGs, in a folder beside ``path`` until it is closed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.beside = path.with_name(f".{path.name}.partial")
        shutil.rmtree(self.beside, ignore_errors=True)
        self.beside.mkdir(parents=True)
        self.number = 0

    def write(self, picture: Image.Image) -> None:
        """Add a picture."""
        write_picture(self.beside / f"{self.number:06d}.png", picture)
        self.number += 1

    def close(self, complete: bool) -> None:
        """Give the folder its name, or remove it where it is not complete."""
        if complete:
            shutil.rmtree(self.path, ignore_errors=True)
            self.beside.replace(self.path)
        else:
            shutil.rmtree(self.beside, ignore_errors=True)
