"""What a backbone is, and torchvision's as the published networks use them."""

from __future__ import annotations

import itertools
import os
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.error import URLError

import torchvision
from torch import Tensor, nn

from pinmem.recompute import Stage

from .state import mismatch, read_file

__all__ = [
    "Backbone",
    "BackboneFeatures",
    "MobileNetV2Backbone",
    "ResNetBackbone",
    "ShuffleNetV2Backbone",
]

RESNETS = ("resnet18", "resnet50", "resnet101")
OUTPUT_STRIDES = (8, 16, 32)


class BackboneFeatures(NamedTuple):
    """The maps a head reads.

    low_level: what the decoder joins, at 1/4 (1/8 in the published mobile networks).
    stage3, stage4: at up to 1/output_stride.
    whitened: the standardised maps of :class:`~pinmem.models.whitening.InstanceNormResNet`.
    """

    low_level: Tensor
    stage3: Tensor
    stage4: Tensor
    whitened: tuple[Tensor, ...] = ()


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

    def whitening_loss(self, whitened: Sequence[Tensor]) -> Tensor:
        """The loss on the `whitened` maps of a backbone that has some."""
        raise NotImplementedError(f"{type(self).__name__} has no whitening loss")

    def pretrained(self) -> nn.Module:
        """The part whose weights may come pretrained, which `Segmenter.freeze_backbone` freezes."""
        return self


class ResNetBackbone(Backbone):
    """A torchvision ResNet without its classifier, at output stride 8, 16 or 32.

    Below 32, a stage's stride is dropped and every 3x3 convolution in it is dilated instead, those
    of its first block too. That is the published network; torchvision's own
    `replace_stride_with_dilation` leaves the first block undilated, and published weights then
    give other logits.

    Args:
        name: "resnet18", "resnet50" or "resnet101".
        output_stride: input pixels per pixel of `stage4`: 8, 16 or 32.
        weights: see `classifier`.
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
        _check_output_stride(output_stride)
        resnet = classifier(name, weights)
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
        """What an activation checkpoint may run again: stem, blocks, layers of six blocks at most.

        When a layer runs again as a whole the decoder's maps are free; only the first layer's are
        too large for that.
        """
        layers = (self.layer2, self.layer3, self.layer4)
        parts = [part for layer in layers for part in ([layer] if len(layer) <= 6 else layer)]
        return [Stage(self, "stem", ("conv1", "bn1")), *map(Stage, [*self.layer1, *parts])]

    def forward(self, images: Tensor) -> BackboneFeatures:
        """Map images [B,3,H,W] to their features; every stride rounds up, as ceil(H/4)."""
        low_level = self.layer1(self.stem(images))
        stage3 = self.layer3(self.layer2(branch(low_level)))
        return BackboneFeatures(low_level, stage3, self.layer4(branch(stage3)))


class _MobileBackbone(Backbone):
    """Five layers one after the other, the second giving the low-level map, at 1/8.

    Below output stride 32 the convolutions that stride in `layer3` (and, at 8, in `layer2`) are
    dilated instead, and only they: the published network.
    """

    def __init__(self, output_stride: int, layers: list[nn.Sequential]) -> None:
        super().__init__()
        _check_output_stride(output_stride)
        self.output_stride = output_stride
        self.layer0, self.layer1, self.layer2, self.layer3, self.layer4 = layers
        if output_stride == 8:
            _dilate_strided(self.layer2, 2)
        if output_stride <= 16:
            _dilate_strided(self.layer3, 32 // output_stride)

    def stages(self) -> list[Stage]:
        """What an activation checkpoint may run again: the first and last layer, every block."""
        return [
            Stage(self.layer0),
            *map(Stage, [*self.layer1, *self.layer2, *self.layer3]),
            Stage(self.layer4),
        ]

    def forward(self, images: Tensor) -> BackboneFeatures:
        """Map images [B,3,H,W] to their features; every stride rounds up, as ceil(H/8)."""
        low_level = self.layer1(self.layer0(images))
        stage3 = self.layer3(self.layer2(branch(low_level)))
        return BackboneFeatures(low_level, stage3, self.layer4(branch(stage3)))


class MobileNetV2Backbone(_MobileBackbone):
    """torchvision's MobileNetV2, cut as RobustNet's and the paper's code cut it.

    Args:
        output_stride: 8, 16 or 32.
        weights: see `classifier`.
    """

    def __init__(self, output_stride: int, weights: str | None = None) -> None:
        blocks = classifier("mobilenet_v2", weights).features
        cuts = (0, 2, 7, 11, 18, 19)
        layers = [nn.Sequential(*blocks[i:j]) for i, j in itertools.pairwise(cuts)]
        super().__init__(output_stride, layers)
        self.channels = (32, 320, 1280)


class ShuffleNetV2Backbone(_MobileBackbone):
    """torchvision's ShuffleNetV2 of width 1, cut as RobustNet's and the paper's code cut it.

    Args:
        output_stride: 8, 16 or 32.
        weights: see `classifier`.
    """

    def __init__(self, output_stride: int, weights: str | None = None) -> None:
        net = classifier("shufflenet_v2_x1_0", weights)
        # Published checkpoints have this "layer" in the first and last name.
        stem = nn.Sequential(OrderedDict(layer=nn.Sequential(net.conv1, net.maxpool)))
        top = nn.Sequential(OrderedDict(layer=net.conv5))
        super().__init__(output_stride, [stem, net.stage2, net.stage3, net.stage4, top])
        self.channels = (116, 464, 1024)


def classifier(name: str, weights: str | None) -> Any:
    """A torchvision classifier.

    Args:
        name: torchvision's.
        weights: None for random weights; "imagenet" for its IMAGENET1K_V1, or another member of
            its weights enum (downloaded once, into torchvision's cache); or a file of its state
            dict, with or without the last layer.

    Raises:
        ValueError: no such weights, or they do not fit, or cannot be downloaded.
    """
    if weights is None:
        return torchvision.models.get_model(name, weights=None)
    members = torchvision.models.get_model_weights(name).__members__
    key = "IMAGENET1K_V1" if weights == "imagenet" else weights
    if key in members:
        try:
            return torchvision.models.get_model(name, weights=members[key])
        except URLError as error:
            raise ValueError(
                f"weights: got {weights}, which cannot be downloaded ({error.reason}); "
                "a local file or null goes without"
            ) from error
    if not os.path.isfile(weights):
        expected = ", ".join(["imagenet", *members])
        raise ValueError(f"weights: got {weights!r}, expected None or one of {expected}, or a file")
    net = torchvision.models.get_model(name, weights=None)
    found = read_file(weights)
    last = ("fc.", "classifier.")
    wanted = {key: v for key, v in net.state_dict().items() if not key.startswith(last)}
    found = {key: v for key, v in found.items() if not key.startswith((*last, "__metadata__"))}
    # Files of before 2018 count no batches.
    counts = {key: v for key, v in wanted.items() if key.endswith("num_batches_tracked")}
    if problems := mismatch(counts | found, wanted):
        raise ValueError(f"weights {weights}: do not fit {name}: {problems}")
    net.load_state_dict(found, strict=False)
    return net


def _check_output_stride(output_stride: int) -> None:
    if output_stride not in OUTPUT_STRIDES:
        raise ValueError(f"output_stride: got {output_stride!r}, expected 8, 16 or 32")


def branch(features: Tensor) -> Tensor:
    """An alias: what goes on from here adds its gradients up before the heads' are added.

    So the order of a sum, and its last bit, are the same where a stage is run again.
    """
    return features.view_as(features)


def _dilate(stage: nn.Module, dilation: int) -> None:
    for module in stage.modules():
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
            if module.kernel_size == (3, 3):
                module.dilation = module.padding = (dilation, dilation)


def _dilate_strided(stage: nn.Module, dilation: int) -> None:
    for module in stage.modules():
        if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
            module.stride = (1, 1)
            module.dilation = module.padding = (dilation, dilation)
