"""From images to logits: whole or by sliding windows, at several scales, mirrored as well.

Maps stay at the network's resolution; full-size logits exist for one class at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pinmem import ops
from pinmem.data import IGNORE_INDEX
from pinmem.models.heads import upsample

__all__ = ["Box", "Inference", "Prediction", "infer", "windows"]

Box = tuple[int, int, int, int]
"""Top, left, height, width."""

Forward = Callable[[Tensor], Sequence[Tensor]]
"""Images [B,3,H,W] -> maps [B,C,h,w] that stretch over them, such as logits."""


@dataclass(frozen=True)
class Inference:
    """How images are put through a network.

    Args:
        mode: whole images, or sliding windows whose logits are averaged where they overlap.
        crop: height and width of a window; one that covers the image is that of a whole image.
        stride: rows and columns from a window to the next.
        scales: the image is resized by each, its logits upsampled to the image and averaged.
        flip: average with the logits of the mirrored image.
    """

    mode: Literal["whole", "slide"] = "whole"
    crop: tuple[int, int] = (768, 768)
    stride: tuple[int, int] = (512, 512)
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        if min(self.crop) < 1:
            raise ValueError(f"crop: got {list(self.crop)}, expected at least 1")
        if any(not 1 <= s <= c for s, c in zip(self.stride, self.crop, strict=True)):
            raise ValueError(
                f"stride: got {list(self.stride)}, expected 1 up to the crop, {list(self.crop)}"
            )
        if not self.scales or any(not 0 < scale < 100 for scale in self.scales):
            raise ValueError(
                f"scales: got {list(self.scales)}, expected numbers above 0, below 100"
            )

    def describe(self, size: str) -> str:
        """The protocol in words; ``size`` says at which size images are read."""
        how = f"whole images at {size}"
        if self.mode == "slide":
            (height, width), (down, right) = self.crop, self.stride
            how = f"windows of {height}x{width}, stride {down}x{right}, over images at {size}"
        several = ", ".join(f"{scale:g}" for scale in self.scales)
        one = self.scales == (1.0,)
        return f"{how}, {'one scale' if one else f'scales {several}'}{', flip' * self.flip}"


class _Placed(NamedTuple):
    box: Box
    maps: Tensor  # [B,C,h,w], over the box


class _View(NamedTuple):
    """Maps of one resized version of the images, on its grid."""

    size: tuple[int, int]
    placed: list[_Placed]
    weight: int = 1  # how many versions it is the mean of

    def at_size(self, index: int, channel: int, size: tuple[int, int]) -> Tensor:
        if len(self.placed) == 1:
            return _stretch(_pick(self.placed[0].maps, index, channel), size)
        total = sum_of_windows = None
        for (top, left, height, width), maps in self.placed:
            part = _stretch(_pick(maps, index, channel), (height, width))
            if total is None or sum_of_windows is None:
                total, sum_of_windows = part.new_zeros(2, *self.size)
            rows, columns = slice(top, top + height), slice(left, left + width)
            total[rows, columns] += part
            sum_of_windows[rows, columns] += 1
        assert total is not None and sum_of_windows is not None
        return _stretch(total.div_(sum_of_windows), size)


def _pick(maps: Tensor, index: int, channel: int) -> Tensor:
    plane = maps[index, channel]
    return plane if plane.dtype == torch.float64 else plane.float()


def _stretch(plane: Tensor, size: tuple[int, int]) -> Tensor:
    if plane.shape == size:
        return plane
    return upsample(plane[None, None], size)[0, 0]


class Prediction:
    """Maps [B,C,H,W] of a batch of images, of which a channel at a time is at full size.

    Args:
        views: of the images; their weighted mean is meant.
        size: H and W.
    """

    def __init__(self, views: list[_View], size: tuple[int, int]) -> None:
        self.views = views
        self.size = size
        self.channels = views[0].placed[0].maps.shape[1]

    def channel(self, index: int, channel: int) -> Tensor:
        """A channel of an image at full size, [H,W], float32 or float64."""
        if len(self.views) == 1:
            return self.views[0].at_size(index, channel, self.size)
        parts = (view.at_size(index, channel, self.size) * view.weight for view in self.views)
        total = next(parts)
        for part in parts:
            total += part
        return total.div_(sum(view.weight for view in self.views))

    def labels(self, index: int) -> Tensor:
        """The channel with the largest value at every pixel, the first if several: uint8 [H,W]."""
        best = self.channel(index, 0)
        labels = torch.zeros(self.size, dtype=torch.uint8, device=best.device)
        for channel in range(1, self.channels):
            value = self.channel(index, channel)
            labels.masked_fill_(value > best, channel)
            best = torch.maximum(best, value)
        return labels

    def confusion(self, targets: Tensor) -> Tensor:
        """Counts [C,C], int64, of truth (rows) and prediction; `targets` uint8 [B,H,W].

        Raises:
            ValueError: a label is neither below C nor 255.
        """
        if len(self.views) == 1 and len(self.views[0].placed) == 1:
            return ops.upsampled_confusion(self.views[0].placed[0].maps, targets)
        total = torch.zeros((self.channels**2,), dtype=torch.int64, device=targets.device)
        for index, target in enumerate(targets):
            counted = target != IGNORE_INDEX
            truth = target[counted].long()
            if truth.numel() and int(truth.max()) >= self.channels:
                raise ValueError(
                    f"targets: got label {int(truth.max())}, "
                    f"expected 0..{self.channels - 1} or {IGNORE_INDEX}"
                )
            cells = truth * self.channels + self.labels(index)[counted]
            total += torch.bincount(cells, minlength=self.channels**2)
        return total.view(self.channels, self.channels)


def windows(size: tuple[int, int], inference: Inference) -> list[Box]:
    """The windows over an image of that size: the last ones are flush with the border."""
    if inference.mode == "whole":
        return [(0, 0, *size)]
    starts = []
    for length, crop, stride in zip(size, inference.crop, inference.stride, strict=True):
        last = max(length - crop, 0)
        starts.append([*range(0, last, stride), last])
    height, width = (min(pair) for pair in zip(size, inference.crop, strict=True))
    return [(top, left, height, width) for top in starts[0] for left in starts[1]]


@torch.no_grad()
def infer(
    forward: Forward,
    images: Tensor,
    inference: Inference,
    size: tuple[int, int] | None = None,
) -> list[Prediction]:
    """Put a batch of images through a network.

    Args:
        forward: the network, which may give several maps.
        images: [B,3,H,W], normalised.
        inference: how.
        size: of the predictions; None: of the images.

    Returns:
        For each map that `forward` gives, the prediction of it.
    """
    shape = (images.shape[2], images.shape[3])
    several: list[list[_View]] = []
    for scale in inference.scales:
        scaled = images
        resized = tuple(max(1, round(length * scale)) for length in shape)
        if resized != shape:
            scaled = F.interpolate(images, resized, mode="bilinear", antialias=True)
        for number, view in enumerate(_views(forward, scaled, inference)):
            several += [[]] * (number == len(several))
            several[number] = [*several[number], *view]
    return [Prediction(views, size or shape) for views in several]


def _views(forward: Forward, images: Tensor, inference: Inference) -> list[list[_View]]:
    """For every map: the view of the images, and of the mirrored ones where they are wanted."""
    size = (images.shape[2], images.shape[3])
    straight = _slide(forward, images, inference)
    if not inference.flip:
        return [[_View(size, placed)] for placed in straight]
    several = []
    mirrored = _slide(forward, images.flip(-1), inference)
    for placed, others in zip(straight, mirrored, strict=True):
        back = [
            _Placed((top, size[1] - left - width, height, width), maps.flip(-1))
            for (top, left, height, width), maps in others
        ]
        if len(placed) > 1:
            several.append([_View(size, placed), _View(size, back)])
            continue
        # Upsampling is linear: the mean of the small maps is that of the large ones.
        mean = (placed[0].maps + back[0].maps) / 2
        several.append([_View(size, [_Placed(placed[0].box, mean)], weight=2)])
    return several


def _slide(forward: Forward, images: Tensor, inference: Inference) -> list[list[_Placed]]:
    """For every map that `forward` gives, its windows."""
    several: list[list[_Placed]] = []
    for box in windows((images.shape[2], images.shape[3]), inference):
        top, left, height, width = box
        window = images[:, :, top : top + height, left : left + width]
        for number, maps in enumerate(forward(window)):
            if number == len(several):
                several.append([])
            several[number].append(_Placed(box, maps))
    return several
