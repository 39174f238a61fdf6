"""The published augmentation, on torchvision's transforms v2.

Two halves that can run in different places. *Geometry* (scale, pad, crop, flip) needs an image with
its labels, runs where the files are read, and keeps both uint8. *Photometry* (colour jitter, blur,
normalisation) needs the image alone and takes a sample or a batch on any device. All randomness
comes from torch's CPU generator.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from pinmem.data.cityscapes_classes import IGNORE_INDEX

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "EvalTransform",
    "GaussianBlur",
    "Geometry",
    "Photometric",
    "TrainTransform",
    "crop_of_scaled",
    "eval_transform",
    "train_transform",
]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_CUBIC_REACH = 2  # pixels on either side that a bicubic filter reads, at the coarser resolution
_GRID_SEARCH = 16  # source pixels by which a window may grow at an end to meet the output's grid


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


class _Window(NamedTuple):
    """Resize source[start:stop] to ``size``, then drop the first ``skip``."""

    start: int
    stop: int
    size: int
    skip: int

    def nearest(self, length: int) -> Tensor:
        """Source indices under the centres of the ``length`` output pixels after ``skip``."""
        outputs = torch.arange(self.skip, self.skip + length)
        # In integers: a centre that falls on an edge between pixels rounds one way everywhere.
        return self.start + (2 * outputs + 1) * (self.stop - self.start) // (2 * self.size)


def _source_window(origin: int, length: int, source: int, scaled: int) -> _Window:
    """Where to read for output pixels [origin, origin + length) of an axis resized source->scaled.

    Of the ends that leave the filter room, the nearest to an edge of an output pixel are taken.
    """
    scale = scaled / source
    reach = math.ceil(_CUBIC_REACH / min(scale, 1.0)) + 1

    def off_grid(at: int) -> float:
        return abs(at * scale - round(at * scale))

    first = max(0, math.floor(origin / scale) - reach)
    last = min(source, math.ceil((origin + length) / scale) + reach)
    start = min(range(first, max(-1, first - _GRID_SEARCH - 1), -1), key=off_grid)
    stop = min(range(last, min(source, last + _GRID_SEARCH) + 1), key=off_grid)
    before = round(start * scale)
    return _Window(start, stop, round(stop * scale) - before, origin - before)


def crop_of_scaled(
    image: Tensor, target: Tensor, scaled: tuple[int, int], box: tuple[int, int, int, int]
) -> tuple[Tensor, Tensor]:
    """A box of the resized pair, reading only the source pixels it needs: several times faster.

    Image (bicubic, antialiased) and target (nearest) share one mapping. It is that of resizing the
    whole and cropping: exactly where the window read can begin and end on edges of output pixels
    (any scale n/16), moved by less than half a pixel otherwise.

    Args:
        image: uint8 [3, H, W].
        target: uint8 [H, W].
        scaled: height and width of the resized whole.
        box: top, left, height, width in the resized whole, inside it.
    """
    top, left, height, width = box
    y = _source_window(top, height, target.shape[0], scaled[0])
    x = _source_window(left, width, target.shape[1], scaled[1])
    # Channels last is what torch's vectorised 8-bit resize wants, and how decoders leave images.
    window = image[None, :, y.start : y.stop, x.start : x.stop]
    window = window.contiguous(memory_format=torch.channels_last)
    resized = F.resize(window, [y.size, x.size], v2.InterpolationMode.BICUBIC, antialias=True)
    labels = target.index_select(0, y.nearest(height)).index_select(1, x.nearest(width))
    return resized[0, :, y.skip : y.skip + height, x.skip : x.skip + width], labels


class Geometry(v2.Transform):
    """Random scale, padding, crop and horizontal flip of an image with its labels.

    (uint8 [3, H, W], uint8 [H, W]) -> (uint8 [3, h, w], uint8 [h, w]). The image is resized
    bicubically, labels to the nearest pixel; a scaled image smaller than the crop is centred on
    black with ignored labels.

    Args:
        crop_size: height and width of the result, or one number for both.
        scale: bounds of the uniform scale.
        flip: probability of mirroring.
    """

    def __init__(
        self,
        crop_size: int | tuple[int, int],
        *,
        scale: tuple[float, float] = (0.5, 2.0),
        flip: float = 0.5,
    ) -> None:
        super().__init__()
        height, width = (crop_size, crop_size) if isinstance(crop_size, int) else crop_size
        if min(height, width) < 1:
            raise ValueError(f"crop_size: expected positive numbers, got {crop_size}")
        if not 0 < scale[0] <= scale[1]:
            raise ValueError(f"scale: expected 0 < low <= high, got {scale}")
        self.crop_size = (height, width)
        self.scale = scale
        self.flip = flip

    def forward(
        self, image: Tensor, target: Tensor, centre: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw a scale, a place (over the pixel ``centre``, where given) and a side; cut out."""
        factor = _uniform(*self.scale)
        scaled = [max(1, int(extent * factor)) for extent in target.shape]
        size = [min(crop, extent) for crop, extent in zip(self.crop_size, scaled, strict=True)]
        origin = [
            int(torch.randint(extent - part + 1, ()))
            for extent, part in zip(scaled, size, strict=True)
        ]
        if centre is not None:
            for axis, pixel in enumerate(centre):
                room, at = scaled[axis] - size[axis], int(pixel * factor)
                first = at - int(torch.randint(size[axis], ()))
                origin[axis] = min(max(first, 0), room)
        mirrored = _uniform(0.0, 1.0) < self.flip
        pixels, labels = crop_of_scaled(
            image.as_subclass(Tensor),
            target.as_subclass(Tensor),
            (scaled[0], scaled[1]),
            (origin[0], origin[1], size[0], size[1]),
        )
        pixels, labels = self._pad(pixels, 0), self._pad(labels, IGNORE_INDEX)
        if mirrored:
            pixels, labels = pixels.flip(-1), labels.flip(-1)
        return tv_tensors.Image(pixels.contiguous()), tv_tensors.Mask(labels)

    def _pad(self, part: Tensor, value: int) -> Tensor:
        rows, columns = (c - e for c, e in zip(self.crop_size, part.shape[-2:], strict=True))
        if rows == columns == 0:
            return part
        sides = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
        return torch.nn.functional.pad(part, sides, value=value)

    def extra_repr(self) -> str:
        """For ``repr``."""
        return f"crop_size={self.crop_size}, scale={self.scale}, flip={self.flip}"


class GaussianBlur(v2.Transform):
    """Gaussian blur with sigma drawn from U(low, high) pixels, cut off at four sigma.

    Float [..., H, W] -> the same. ``v2.GaussianBlur`` with these parameters takes five times as
    long on a CPU, convolving in two dimensions at once; the borders are reflected in both.
    """

    def __init__(self, sigma: tuple[float, float] = (0.15, 1.3)) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, image: Tensor) -> Tensor:
        """Blur with a sigma drawn anew."""
        sigma = _uniform(*self.sigma)
        radius = min(int(4 * sigma + 0.5), min(image.shape[-2:]) - 1)
        taps = [math.exp(-0.5 * (offset / sigma) ** 2) for offset in range(radius + 1)]
        total = 2 * sum(taps) - taps[0]
        taps = [tap / total for tap in taps]
        lead = image.shape[:-2]
        planes = image.reshape(-1, *image.shape[-2:])
        planes = torch.nn.functional.pad(planes, [radius] * 4, mode="reflect")
        return _convolve(_convolve(planes, taps, 1), taps, 2).reshape(*lead, *image.shape[-2:])

    def extra_repr(self) -> str:
        """For ``repr``."""
        return f"sigma={self.sigma}"


def _convolve(planes: Tensor, taps: list[float], dim: int) -> Tensor:
    """Symmetric convolution along one axis; ``taps[0]`` is the centre, the result is shorter."""
    radius = len(taps) - 1
    length = planes.shape[dim] - 2 * radius
    out = planes.narrow(dim, radius, length) * taps[0]
    for offset, tap in enumerate(taps[1:], start=1):
        pair = planes.narrow(dim, radius - offset, length) + planes.narrow(
            dim, radius + offset, length
        )
        out.add_(pair, alpha=tap)
    return out


class Photometric(v2.Transform):
    """Colour jitter, blur, ImageNet normalisation: uint8 -> float32, on any device.

    Takes an image [3, H, W], or a batch [..., 3, H, W] whose images each get parameters of their
    own. Jitter is (brightness .4, contrast .4, saturation .4, hue .1) with probability 0.5, or,
    ``hard`` (the published augmentation of the meta-test domain), (.8, .8, .8, .3) always.
    """

    def __init__(self, *, hard: bool = False) -> None:
        super().__init__()
        jitter = v2.ColorJitter(0.8, 0.8, 0.8, 0.3) if hard else v2.ColorJitter(0.4, 0.4, 0.4, 0.1)
        self.jitter = jitter if hard else v2.RandomApply([jitter], p=0.5)
        self.blur = GaussianBlur()

    def forward(self, image: Tensor) -> Tensor:
        """Jitter, blur and normalise an image, or each of a batch."""
        if image.ndim > 3:
            flat = image.reshape(-1, *image.shape[-3:])
            return torch.stack([self.forward(one) for one in flat]).reshape(image.shape)
        # Float first: hue and blur on 8 bits would convert there and back each, at twice the time.
        pixels = F.to_dtype(image.as_subclass(Tensor), torch.float32, scale=True)
        return _normalize(self.blur(self.jitter(pixels)))


def _normalize(pixels: Tensor) -> Tensor:
    mean, std = _channel_statistics(pixels.device)
    return (pixels - mean).div_(std)


@functools.cache
def _channel_statistics(device: torch.device) -> Tensor:
    """Mean and deviation [2,3,1,1]; copied to a GPU once, since copying waits for it."""
    return torch.tensor([IMAGENET_MEAN, IMAGENET_STD])[..., None, None].to(device)


class TrainTransform(v2.Transform):
    """``geometry`` then ``photometric``: uint8 pair -> (float32 [3, h, w], uint8 [h, w])."""

    def __init__(self, geometry: Geometry, photometric: Photometric) -> None:
        super().__init__()
        self.geometry = geometry
        self.photometric = photometric

    def forward(
        self, image: Tensor, target: Tensor, centre: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Both halves, one after the other."""
        image, target = self.geometry(image, target, centre)
        return self.photometric(image), target


class EvalTransform(v2.Transform):
    """Normalisation alone: uint8 [..., 3, H, W] -> float32, and the target as it is."""

    def forward(self, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Normalise the image."""
        pixels = F.to_dtype(image.as_subclass(Tensor), torch.float32, scale=True)
        return _normalize(pixels), target


def train_transform(
    crop_size: int | tuple[int, int],
    *,
    scale: tuple[float, float] = (0.5, 2.0),
    hard: bool = False,
) -> TrainTransform:
    """The published training augmentation.

    Scale U(0.5, 2), padding (image 0, labels 255), random crop, mirror with p = 0.5; then colour
    jitter, blur with sigma U(0.15, 1.3), ImageNet normalisation. Its ``.geometry`` and
    ``.photometric`` can be used apart, the second on a batch on a GPU.

    Args:
        crop_size: (height, width) or one number for both; the paper's is 768.
        scale: bounds of the uniform scale.
        hard: the stronger jitter of the meta-test domain.
    """
    return TrainTransform(Geometry(crop_size, scale=scale), Photometric(hard=hard))


def eval_transform() -> EvalTransform:
    """What a network sees at evaluation: the whole image, normalised."""
    return EvalTransform()
