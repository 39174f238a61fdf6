"""Sliding windows, scales and flips against plain implementations; scores against others'."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pinmem.evaluation import Inference, infer, score
from pinmem.evaluation.inference import windows

CLASSES = 5


class Network(torch.nn.Module):
    """Two convolutions, a quarter of the size: its logits depend on where a window ends."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 8, 5, stride=2, padding=2)
        self.second = torch.nn.Conv2d(8, CLASSES, 5, stride=2, padding=2)

    def forward(self, images: Tensor) -> Tensor:
        return self.second(self.first(images).tanh())


def stretched(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=True)


def plain_window_logits(network: Network, image: Tensor, inference: Inference) -> Tensor:
    """Average of the windows' full-size logits, on a grid as mmsegmentation makes it."""
    height, width = image.shape[2:]
    (crop_y, crop_x), (stride_y, stride_x) = inference.crop, inference.stride
    total, count = torch.zeros(1, CLASSES, height, width, dtype=image.dtype), 0 * image[:, :1]
    for row in range(max(height - crop_y + stride_y - 1, 0) // stride_y + 1):
        for column in range(max(width - crop_x + stride_x - 1, 0) // stride_x + 1):
            bottom = min(row * stride_y + crop_y, height)
            right = min(column * stride_x + crop_x, width)
            top, left = max(bottom - crop_y, 0), max(right - crop_x, 0)
            window = image[:, :, top:bottom, left:right]
            total[:, :, top:bottom, left:right] += stretched(network(window), window.shape[2:])
            count[:, :, top:bottom, left:right] += 1
    assert count.min() >= 1
    return total / count


def plain_logits(network: Network, image: Tensor, inference: Inference) -> Tensor:
    """Full-size logits [1,K,H,W] of one image, step by step."""
    height, width = image.shape[2:]
    found = []
    for scale in inference.scales:
        size = (round(height * scale), round(width * scale))
        scaled = F.interpolate(image, size, mode="bilinear", antialias=True)
        for mirror in (False, True)[: 1 + inference.flip]:
            seen = scaled.flip(3) if mirror else scaled
            covered = all(c >= n for c, n in zip(inference.crop, size, strict=True))
            if inference.mode == "whole" or covered:
                logits = network(seen)
            else:
                logits = plain_window_logits(network, seen, inference)
            logits = stretched(logits, (height, width))
            found.append(logits.flip(3) if mirror else logits)
    return torch.stack(found).mean(dim=0)


CASES = [
    Inference(),
    Inference(flip=True),
    Inference(scales=(0.5, 1.0, 1.75)),
    Inference(scales=(0.5, 1.25), flip=True),
    Inference("slide", (24, 32), (17, 20)),
    Inference("slide", (24, 32), (24, 32), flip=True),
    Inference("slide", (200, 30), (100, 30)),
    Inference("slide", (300, 300), (200, 200), flip=True),
    Inference("slide", (24, 32), (17, 20), scales=(0.5, 1.0, 1.5), flip=True),
]


@pytest.mark.parametrize("inference", CASES, ids=str)
@pytest.mark.parametrize("size", [(48, 64), (61, 83)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@torch.no_grad()
def test_logits_equal_a_plain_implementation(inference, size, dtype, tolerance) -> None:
    network = Network().to(dtype)
    images = torch.randn(2, 3, *size, dtype=dtype)
    (got,) = infer(lambda window: (network(window),), images, inference)
    for index in range(2):
        full = torch.stack([got.channel(index, k) for k in range(CLASSES)])
        expected = plain_logits(network, images[index, None], inference)[0]
        torch.testing.assert_close(full, expected, rtol=tolerance, atol=tolerance)
        assert torch.equal(got.labels(index).long(), full.argmax(dim=0))


@pytest.mark.parametrize("inference", CASES, ids=str)
@torch.no_grad()
def test_the_confusion_is_that_of_argmax_and_bincount(inference) -> None:
    network = Network().double()
    images = torch.randn(2, 3, 61, 83, dtype=torch.float64)
    targets = torch.randint(0, CLASSES, (2, 61, 83), dtype=torch.uint8)
    targets[:, :7] = 255
    guess = torch.cat([plain_logits(network, image[None], inference) for image in images]).argmax(1)
    kept = targets != 255
    cells = CLASSES * targets[kept].long() + guess[kept]
    expected = torch.bincount(cells, minlength=CLASSES**2).view(CLASSES, CLASSES)
    (got,) = infer(lambda window: (network(window),), images, inference)
    assert torch.equal(got.confusion(targets), expected)
    targets[0, 20, 20] = CLASSES
    with pytest.raises(ValueError, match="target"):
        got.confusion(targets)


class LargestFloat(TorchDispatchMode):
    """The most elements that any floating-point result has."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                self.largest = max(self.largest, tensor.untyped_storage().nbytes() // 4)
        return result


@pytest.mark.parametrize("inference", CASES, ids=str)
def test_full_size_logits_exist_for_one_class_at_a_time(inference) -> None:
    height, width, classes = 64, 96, 64
    maps = torch.nn.AvgPool2d(4)
    targets = torch.zeros(2, height, width, dtype=torch.uint8)

    def forward(window: Tensor) -> tuple[Tensor]:
        return (maps(window[:, :1].expand(-1, classes, -1, -1)),)

    with LargestFloat() as seen:
        (got,) = infer(forward, torch.randn(2, 3, height, width), inference)
        got.confusion(targets)
    # The small maps of all views, or a few planes; all classes would be 64 planes.
    assert 0 < seen.largest < 30 * height * width


def test_labels_of_another_size_than_the_image() -> None:
    network = Network()
    image = torch.randn(1, 3, 30, 40)
    with torch.no_grad():
        (got,) = infer(lambda window: (network(window),), image, Inference(), (60, 80))
        expected = stretched(network(image), (60, 80))[0]
    torch.testing.assert_close(got.channel(0, 2), expected[2])


def test_windows_end_flush_with_the_border() -> None:
    slide = Inference("slide", (10, 20), (10, 15))
    assert windows((25, 20), slide) == [(0, 0, 10, 20), (10, 0, 10, 20), (15, 0, 10, 20)]
    assert windows((5, 36), slide) == [(0, 0, 5, 20), (0, 15, 5, 20), (0, 16, 5, 20)]
    assert windows((5, 7), Inference()) == [(0, 0, 5, 7)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": (0, 5)}, r"^crop: got \[0, 5\], expected at least 1"),
        ({"stride": (769, 5)}, r"^stride: got \[769, 5\], expected 1 up to the crop, \[768, 768\]"),
        ({"scales": ()}, r"^scales: got \[\], expected numbers above 0"),
        ({"scales": (1.0, -1.0)}, r"^scales: got \[1.0, -1.0\], expected numbers above 0"),
    ],
)
def test_an_inference_that_cannot_be(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        Inference(**options)


def mmsegmentation_miou(truth: Tensor, guess: Tensor, classes: int) -> float:
    """Its definition: histograms of intersection, prediction and label; the mean without NaN."""
    kept = truth != 255
    truth, guess = truth[kept].float(), guess[kept].float()

    def histogram(values: Tensor) -> Tensor:
        return torch.histc(values, bins=classes, min=0, max=classes - 1)

    both = histogram(guess[guess == truth])
    return float(np.nanmean((both / (histogram(guess) + histogram(truth) - both)).numpy()))


def test_the_mean_is_that_of_torchmetrics_and_mmsegmentation() -> None:
    from torchmetrics.functional import jaccard_index

    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 6, (4, 50, 60), generator=generator)
    guess = torch.where(torch.rand(truth.shape, generator=generator) < 0.6, truth, truth.roll(1))
    guess[guess == 2] = 1  # a class that is never predicted, and two that are nowhere
    truth[:, :5] = 255
    guess[:, :5] = 3
    kept = truth != 255
    confusion = torch.bincount(8 * truth[kept] + guess[kept], minlength=64).view(8, 8)
    got = score(confusion)
    assert got.iou.isnan().tolist() == [False] * 6 + [True] * 2
    assert got.iou[2] == 0
    metric = jaccard_index(
        guess[kept], truth[kept], task="multiclass", num_classes=8, average="macro"
    )
    assert math.isclose(got.miou, float(metric), rel_tol=1e-6)
    assert math.isclose(got.miou, mmsegmentation_miou(truth, guess, 8), rel_tol=1e-6)
    assert math.isclose(got.miou, 0.38348, abs_tol=1e-5)


def test_a_mean_over_some_classes_counts_errors_of_the_others() -> None:
    confusion = torch.tensor([[6, 2, 0], [0, 4, 0], [2, 0, 8]])
    got = score(confusion, [0, 1])
    assert got.iou[:2].tolist() == [6 / 10, 4 / 6] and got.iou[2].isnan()
    assert got.miou == (6 / 10 + 4 / 6) / 2
