"""RobustNet's baselines on ResNet-50: instance normalisation, and selective whitening (ISW).

Choi et al., "RobustNet: Improving Domain Generalization in Urban-Scene Segmentation via Instance
Selective Whitening", CVPR 2021.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import Bottleneck

from pinmem.recompute import Stage

from .backbones import BackboneFeatures, ResNetBackbone, branch

__all__ = ["InstanceNormResNet", "sensitive_covariances"]

_CLUSTERS = 3
_EPS = 1e-5


class InstanceNormResNet(ResNetBackbone):
    """A ResNet-50 with instance normalisation after the first convolution and stages 1 and 2.

    It takes the place of the stem's BatchNorm, and comes before the last ReLU of a stage. What
    RobustNet calls IBN has learnt scales and offsets there; ISW has none, and a loss on the
    covariances of the channels.

    Args:
        output_stride: 8, 16 or 32.
        weights: see `ResNetBackbone`.
        whitening: no scales and offsets, and `whitened` maps for `whitening_loss` (ISW).
    """

    mask0: Tensor
    mask1: Tensor
    mask2: Tensor

    def __init__(
        self, output_stride: int, weights: str | None = None, *, whitening: bool = False
    ) -> None:
        super().__init__("resnet50", output_stride, weights)
        self.whitening = whitening
        norm = nn.InstanceNorm2d(64, affine=not whitening)
        if not whitening:
            norm.load_state_dict({"weight": self.bn1.weight, "bias": self.bn1.bias})
        self.bn1 = norm
        # Not in place: what is normalised is looked at again by the loss.
        self.relu = nn.ReLU()
        for layer in (self.layer1, self.layer2):
            layer[-1] = _NormalizedBlock(layer[-1], affine=not whitening)
        # A matter of training: published checkpoints do not hold them.
        for index, channels in enumerate((64, 256, 512) if whitening else ()):
            mask = torch.zeros(channels, channels, dtype=torch.bool)
            self.register_buffer(f"mask{index}", mask, persistent=False)

    @property
    def masks(self) -> tuple[Tensor, ...]:
        """Which covariances the loss is on: bool [C,C] for each whitened map; none at first."""
        return self.mask0, self.mask1, self.mask2

    def normalized_stem(self, images: Tensor) -> Tensor:
        """The first convolution, normalised: images [B,3,H,W] to [B,64,H/2,W/2]."""
        return self.bn1(self.conv1(images))

    def stages(self) -> list[Stage]:
        """What an activation checkpoint may run again: the stem, and every block."""
        return [Stage(self, "normalized_stem", ("conv1", "bn1")), *super().stages()[1:]]

    def forward(self, images: Tensor) -> BackboneFeatures:
        """Map images [B,3,H,W] to their features."""
        first = self.normalized_stem(images)
        second = self.layer1(self.maxpool(self.relu(first)))
        low_level = self.relu(second)
        third = self.layer2(branch(low_level))
        stage3 = self.layer3(self.relu(third))
        whitened = (first, second, third) if self.whitening else ()
        return BackboneFeatures(low_level, stage3, self.layer4(branch(stage3)), whitened)

    def whitening_loss(self, whitened: Sequence[Tensor]) -> Tensor:
        """The mean absolute covariance of the masked pairs of channels (equation 17), a scalar.

        Zero, with a gradient of zero, until `masks` are chosen by `sensitive_covariances`.

        Args:
            whitened: of `BackboneFeatures`.
        """
        losses = [
            (covariances(maps).abs() * mask).sum(dim=(1, 2)).mean() / mask.sum().clamp_min(1)
            for maps, mask in zip(whitened, self.masks, strict=True)
        ]
        return torch.stack(losses).mean()


class _NormalizedBlock(Bottleneck):
    """A torchvision bottleneck block with instance normalisation in place of its last ReLU."""

    def __init__(self, block: Bottleneck, *, affine: bool) -> None:
        channels, width = block.conv3.out_channels, block.conv3.in_channels
        super().__init__(channels, width)
        self.load_state_dict(block.state_dict())
        self.instance_norm_layer = nn.InstanceNorm2d(channels, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B,C,h,w] to the same shape, normalised."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        return self.instance_norm_layer(self.bn3(self.conv3(out)) + x)


def covariances(maps: Tensor) -> Tensor:
    """The channels' covariances in each image: standardised [B,C,h,w] to [B,C,C]."""
    with torch.autocast(maps.device.type, enabled=False):
        flat = maps.flatten(2).to(torch.promote_types(maps.dtype, torch.float32))
        products = flat @ flat.transpose(1, 2) / (flat.shape[-1] - 1)
    return products + _EPS * torch.eye(flat.shape[1], dtype=flat.dtype, device=flat.device)


@torch.no_grad()
def sensitive_covariances(
    backbone: InstanceNormResNet, views: Iterable[tuple[Tensor, Tensor]]
) -> tuple[Tensor, ...]:
    """Which covariances change with the colours of an image: masks for `whitening_loss`.

    Of every pair of channels the variance between two views, averaged over the images, is sorted
    into three clusters; all but the lowest are sensitive (section 3.4).

    Args:
        backbone: in evaluation mode.
        views: pairs of normalised batches [B,3,H,W], the same images in different colours.
    """
    totals: list[Tensor] = []
    for one, other in views:
        pairs = zip(backbone(one).whitened, backbone(other).whitened, strict=True)
        # The unbiased variance of two numbers.
        found = [((covariances(a) - covariances(b)).square() / 2).sum(0) for a, b in pairs]
        totals = [t + f for t, f in zip(totals, found, strict=True)] if totals else found
    masks = []
    for total in totals:
        variance = total.triu(diagonal=1)
        masks.append(variance > _lowest_cluster(variance.flatten().double().cpu()))
    return tuple(masks)


def _lowest_cluster(values: Tensor) -> float:
    """The largest value of the lowest of three clusters (k-means in one dimension)."""
    ordered = values.sort().values
    sums = F.pad(ordered.cumsum(0), (1, 0))
    squares = F.pad(ordered.square().cumsum(0), (1, 0))
    count = len(ordered)
    # Lloyd's steps from many pairs of cuts at once; the best of where they end.
    grid = torch.linspace(0, 1, 34, dtype=torch.float64)[1:-1]
    ranks = torch.cat([grid, 1 - (1 - grid) ** 8]).mul(count).long().unique().clamp(1, count - 1)
    cuts = F.pad(torch.combinations(ranks, _CLUSTERS - 1), (1, 0))
    cuts = F.pad(cuts, (0, 1), value=count)
    for _ in range(100):
        sizes = cuts.diff(dim=1)
        means = sums[cuts].diff(dim=1) / sizes.clamp_min(1)
        middles = (means[:, 1:] + means[:, :-1]) / 2
        moved = cuts.clone()
        moved[:, 1:-1] = torch.searchsorted(ordered, middles.contiguous())
        if torch.equal(moved, cuts):
            break
        cuts = moved
    sizes = cuts.diff(dim=1)
    spread = squares[cuts].diff(dim=1) - sums[cuts].diff(dim=1).square() / sizes.clamp_min(1)
    best = cuts[spread.sum(dim=1).argmin()]
    return float(ordered[max(int(best[1]) - 1, 0)])
