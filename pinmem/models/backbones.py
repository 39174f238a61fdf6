"""Torchvision's ResNets as dense feature extractors, dilated the way the paper's networks are."""

from __future__ import annotations

from typing import NamedTuple

import torchvision
from torch import Tensor, nn

from pinmem.recompute import Stage

__all__ = ["Backbone", "BackboneFeatures", "ResNetBackbone"]

RESNETS = ("resnet18", "resnet50", "resnet101")
OUTPUT_STRIDES = (8, 16, 32)


class BackboneFeatures(NamedTuple):
    """The maps a head reads: `low_level` at 1/4, `stage3` and `stage4` at up to 1/output_stride."""

    low_level: Tensor
    stage3: Tensor
    stage4: Tensor


class Backbone(nn.Module):
    """What `Segmenter` asks of a backbone: map images [B,3,H,W] to `BackboneFeatures`.

    channels: of `low_level`, `stage3` and `stage4`.
    output_stride: input pixels per pixel of `stage4`.
    """

    channels: tuple[int, int, int]
    output_stride: int

    def stages(self) -> list[Stage]:
        """What an activation checkpoint may run again; nothing unless a backbone says so."""
        return []


class ResNetBackbone(Backbone):
    """A torchvision ResNet without its classifier, at output stride 8, 16 or 32.

    Below 32, a stage's stride is dropped and every 3x3 convolution in it is dilated instead, those
    of its first block too. That is the published network; torchvision's own
    `replace_stride_with_dilation` leaves the first block undilated, and published weights then
    give other logits.

    Args:
        name: "resnet18", "resnet50" or "resnet101".
        output_stride: input pixels per pixel of `stage4`: 8, 16 or 32.
        weights: None for random weights (He initialisation), "imagenet" for torchvision's
            IMAGENET1K_V1, or the name of any member of torchvision's weights enum.
        stride_in_conv1: stage 2 strides in the first convolution of its first block, as Caffe's
            ResNets and the published DeepLabV2 do.

    Raises:
        ValueError: for an unknown `name`, `output_stride` or `weights`.
    """

    def __init__(
        self,
        name: str,
        output_stride: int,
        weights: str | None = None,
        *,
        stride_in_conv1: bool = False,
    ) -> None:
        super().__init__()
        if name not in RESNETS:
            raise ValueError(f"name: got {name!r}, expected one of {', '.join(RESNETS)}")
        if output_stride not in OUTPUT_STRIDES:
            raise ValueError(f"output_stride: got {output_stride!r}, expected 8, 16 or 32")
        resnet = torchvision.models.get_model(name, weights=_weights_member(name, weights))
        self.output_stride = output_stride
        expansion = resnet.layer1[0].expansion
        self.channels = (64 * expansion, 256 * expansion, 512 * expansion)
        self.conv1 = resnet.conv1
        self.bn1 = resnet.bn1
        self.relu = resnet.relu
        self.maxpool = resnet.maxpool
        self.layer1 = resnet.layer1
        self.layer2 = resnet.layer2
        self.layer3 = resnet.layer3
        self.layer4 = resnet.layer4
        if stride_in_conv1:
            self.layer2[0].conv1.stride = (2, 2)
            self.layer2[0].conv2.stride = (1, 1)
        if output_stride == 8:
            _dilate(self.layer3, 2)
        if output_stride <= 16:
            _dilate(self.layer4, 32 // output_stride)

    def stem(self, images: Tensor) -> Tensor:
        """What comes before the first stage: images [B,3,H,W] to features at 1/4."""
        return self.maxpool(self.relu(self.bn1(self.conv1(images))))

    def stages(self) -> list[Stage]:
        """What an activation checkpoint may run again: the stem, and every block."""
        blocks = [*self.layer1, *self.layer2, *self.layer3, *self.layer4]
        return [Stage(self, "stem", ("conv1", "bn1")), *map(Stage, blocks)]

    def forward(self, images: Tensor) -> BackboneFeatures:
        """Map images [B,3,H,W] to their features; every stride rounds up, as ceil(H/4)."""
        low_level = self.layer1(self.stem(images))
        stage3 = self.layer3(self.layer2(low_level))
        return BackboneFeatures(low_level, stage3, self.layer4(stage3))


def _dilate(stage: nn.Module, dilation: int) -> None:
    for module in stage.modules():
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
            if module.kernel_size == (3, 3):
                module.dilation = module.padding = (dilation, dilation)


def _weights_member(name: str, weights: str | None) -> torchvision.models.WeightsEnum | None:
    if weights is None:
        return None
    members = torchvision.models.get_model_weights(name).__members__
    key = "IMAGENET1K_V1" if weights == "imagenet" else weights
    if key not in members:
        expected = ", ".join(["imagenet", *members])
        raise ValueError(f"weights: got {weights!r}, expected None or one of {expected}")
    return members[key]
