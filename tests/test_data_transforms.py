"""The augmentation has the published parameters, and reading a window changes nothing."""

from __future__ import annotations

import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from pinmem.data import IGNORE_INDEX, eval_transform, seeded, train_transform
from pinmem.data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    GaussianBlur,
    Geometry,
    Photometric,
    crop_of_scaled,
)


def smooth_pair(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A smooth image, uint8, and labels in blocks."""
    coarse = torch.rand(1, 3, height // 16 + 1, width // 16 + 1) * 255
    image = F.resize(coarse, [height, width], InterpolationMode.BICUBIC)[0].clamp(0, 255).byte()
    blocks = torch.randint(0, 19, (height // 8 + 1, width // 8 + 1), dtype=torch.uint8)
    target = blocks.repeat_interleave(8, 0).repeat_interleave(8, 1)[:height, :width].contiguous()
    return tv_tensors.Image(image), tv_tensors.Mask(target)


def resized_then_cropped(image, target, scaled, box):
    top, left, height, width = box
    whole = F.resize(image, list(scaled), InterpolationMode.BICUBIC, antialias=True)
    rows = (2 * torch.arange(scaled[0]) + 1) * target.shape[0] // (2 * scaled[0])
    columns = (2 * torch.arange(scaled[1]) + 1) * target.shape[1] // (2 * scaled[1])
    labels = target[rows][:, columns]
    inside = (slice(top, top + height), slice(left, left + width))
    return whole[(..., *inside)], labels[inside]


@pytest.mark.parametrize("scale", [0.5, 0.625, 0.75, 1.0, 1.25, 1.5, 1.875, 2.0])
def test_window_equals_resize_then_crop(scale):
    image, _ = smooth_pair(128, 256)
    target = torch.randint(0, 19, (128, 256), dtype=torch.uint8)  # no neighbour passes for another
    scaled = (int(128 * scale), int(256 * scale))
    for top, left in ((0, 0), (scaled[0] - 48, scaled[1] - 60), (11, 37), (5, 64)):
        box = (top, left, 48, 60)
        pixels, labels = crop_of_scaled(image, target, scaled, box)
        expected_pixels, expected_labels = resized_then_cropped(image, target, scaled, box)
        assert torch.equal(labels, expected_labels)
        assert (pixels.int() - expected_pixels.int()).abs().max() <= 1


@pytest.mark.parametrize("scaled", [(113, 227), (133, 260), (201, 409), (77, 131)])
def test_window_of_any_scale_moves_less_than_half_a_pixel(scaled):
    image, target = smooth_pair(128, 256)
    for top, left in ((0, 0), (scaled[0] - 48, scaled[1] - 60), (11, 37), (17, 64)):
        box = (top, left, 48, 60)
        pixels, labels = crop_of_scaled(image, target, scaled, box)
        expected_pixels, expected_labels = resized_then_cropped(image, target, scaled, box)
        assert pixels.shape == (3, 48, 60)
        assert (pixels.int() - expected_pixels.int()).abs().float().mean() < 4
        # Labels differ at most where a neighbour has another one.
        shifted = torch.stack(
            [expected_labels.roll((y, x), (0, 1)) for y in (-1, 0, 1) for x in (-1, 0, 1)]
        )
        assert (shifted == labels).any(0)[1:-1, 1:-1].all()


@pytest.mark.parametrize("scaled", [(113, 227), (131, 259), (201, 409)])
def test_image_and_labels_stay_together(scaled):
    """An image that shows its own labels still shows them after scaling and cropping."""
    target = torch.zeros(128, 256, dtype=torch.uint8)
    target[:, 100:], target[70:] = 1, 1
    image = (target * 255).expand(3, -1, -1).contiguous()
    pixels, labels = crop_of_scaled(image, target, scaled, (20, 40, 64, 80))
    assert ((pixels[0] > 127) == (labels == 1)).float().mean() > 0.985


def test_geometry_shapes_types_and_padding():
    image, target = smooth_pair(40, 60)
    image = (image | 1).as_subclass(tv_tensors.Image)  # nothing in it is black
    geometry = Geometry((96, 128), scale=(1.0, 1.0), flip=0.0)
    pixels, labels = geometry(image, target)
    assert isinstance(pixels, tv_tensors.Image)
    assert isinstance(labels, tv_tensors.Mask)
    assert pixels.shape == (3, 96, 128)
    assert labels.shape == (96, 128)
    assert pixels.dtype == labels.dtype == torch.uint8
    rows, columns = slice(28, 68), slice(34, 94)
    assert torch.equal(pixels[:, rows, columns], image)
    assert torch.equal(labels[rows, columns], target)
    labels[rows, columns] = IGNORE_INDEX
    pixels[:, rows, columns] = 0
    assert (labels == IGNORE_INDEX).all()
    assert (pixels == 0).all()


def test_geometry_flips_both():
    image, target = smooth_pair(32, 48)
    pixels, labels = Geometry((32, 48), scale=(1.0, 1.0), flip=1.0)(image, target)
    assert torch.equal(pixels, image.flip(-1))
    assert torch.equal(labels, target.flip(-1))


def test_geometry_draws_scale_place_and_side():
    """The label of every pixel is its own column and row: what was drawn can be read off."""
    target = torch.arange(200, dtype=torch.uint8).expand(200, -1).contiguous()
    image = target.expand(3, -1, -1).contiguous()
    geometry = Geometry(50)
    scales, lefts, flips = [], [], 0
    for _ in range(300):
        columns = geometry(image, target)[1][25].float()
        scales.append(49 / (columns[-1] - columns[0]).abs().item())
        flips += int(columns[-1] < columns[0])
        lefts.append(columns.min().item())
    assert 0.48 < min(scales) < 0.56
    assert 1.85 < max(scales) < 2.15
    assert 1.1 < sum(scales) / 300 < 1.4
    assert 115 < flips < 185
    assert min(lefts) < 8
    assert max(lefts) > 140


def test_bad_geometry():
    with pytest.raises(ValueError, match="crop_size: expected positive numbers, got 0"):
        Geometry(0)
    with pytest.raises(ValueError, match="scale: expected 0 < low <= high"):
        Geometry(8, scale=(2.0, 1.0))


@pytest.mark.parametrize("sigma", [0.2, 0.7, 1.3])
def test_blur_is_torchvisions(sigma):
    image = torch.rand(3, 40, 50)
    expected = F.gaussian_blur(image, [11, 11], [sigma, sigma])
    assert (GaussianBlur((sigma, sigma))(image) - expected).abs().max() < 2e-4


def test_blur_draws_the_published_sigma():
    assert GaussianBlur().sigma == (0.15, 1.3)
    impulse = torch.zeros(1, 41, 41)
    impulse[0, 20, 20] = 1.0
    peaks = torch.tensor([GaussianBlur()(impulse)[0, 20, 20].item() for _ in range(200)])
    assert peaks.max() > 0.95  # sigma near 0.15
    assert 0.093 < peaks.min() < 0.11  # 1 / (2 pi 1.3^2) is 0.094


def test_jitter_parameters():
    soft, hard = Photometric().jitter, Photometric(hard=True).jitter
    assert isinstance(soft, v2.RandomApply)
    assert soft.p == 0.5
    (inner,) = soft.transforms
    assert (inner.brightness, inner.contrast, inner.saturation) == ((0.6, 1.4),) * 3
    assert inner.hue == (-0.1, 0.1)
    assert isinstance(hard, v2.ColorJitter)
    assert hard.brightness == pytest.approx((0.2, 1.8))
    assert hard.contrast == hard.saturation == hard.brightness
    assert hard.hue == (-0.3, 0.3)


def test_normalisation():
    grey = torch.full((3, 4, 4), 51, dtype=torch.uint8)
    target = torch.zeros(4, 4, dtype=torch.uint8)
    pixels, labels = eval_transform()(tv_tensors.Image(grey), target)
    assert pixels.dtype == torch.float32
    assert labels is target
    expected = (0.2 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    assert torch.allclose(pixels[:, 1, 2], expected, atol=1e-6)


@pytest.mark.parametrize("hard", [False, True])
def test_train_transform(hard):
    image, target = smooth_pair(64, 96)
    transform = train_transform((32, 40), hard=hard)
    with seeded(5):
        pixels, labels = transform(image, target)
    assert pixels.dtype == torch.float32
    assert labels.dtype == torch.uint8
    assert pixels.shape == (3, 32, 40)
    assert labels.shape == (32, 40)
    with seeded(5):  # the two halves apart are the whole
        cut, cut_labels = transform.geometry(image, target)
        apart = transform.photometric(cut)
    assert torch.equal(pixels, apart)
    assert torch.equal(labels, cut_labels)


def test_photometric_treats_every_image_of_a_batch_alone():
    image, _ = smooth_pair(32, 32)
    batch = image.as_subclass(torch.Tensor).expand(2, 3, -1, -1, -1).contiguous()
    photometric = Photometric(hard=True)
    with seeded(1):
        together = photometric(batch)
    with seeded(1):
        apart = [photometric(batch[0, i]) for i in range(3)]
    assert together.shape == batch.shape
    assert torch.equal(together[0, 2], apart[2])
    assert not torch.allclose(together[0, 0], together[0, 1], atol=0.05)


@pytest.mark.gpu
def test_photometric_on_a_gpu_is_the_same():
    image, _ = smooth_pair(64, 64)
    with seeded(2):
        here = Photometric(hard=True)(image)
    with seeded(2):
        there = Photometric(hard=True)(image.cuda())
    assert there.is_cuda
    assert torch.allclose(here, there.cpu(), atol=1e-3)
