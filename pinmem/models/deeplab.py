"""DeepLab networks with a class memory between the encoder and the decoder."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pinmem.recompute import Stage

from ..memory import ClassMemory
from .backbones import Backbone, MobileNetV2Backbone, ResNetBackbone, ShuffleNetV2Backbone
from .heads import ASPP, SummedASPP, auxiliary_head, conv_norm_relu, init_head, upsample
from .timm_backbone import PREFIX, TimmBackbone
from .whitening import InstanceNormResNet

__all__ = ["MODEL_NAMES", "Features", "Segmenter", "SegmenterOutput", "build_model"]


class Features(NamedTuple):
    """What `Segmenter.encode` returns and `Segmenter.decode` takes.

    query: [B,256,h,w], read from and written to the memory, h = ceil(H/output_stride).
    low_level: what the decoder joins, mostly [B,C,ceil(H/4),ceil(W/4)].
    stage3: the map the auxiliary head reads.
    whitened: the standardised maps of a network with a whitening loss.
    """

    query: Tensor
    low_level: Tensor
    stage3: Tensor
    whitened: tuple[Tensor, ...] = ()


class SegmenterOutput(NamedTuple):
    """What `Segmenter.forward` returns.

    logits: [B,K,h',w'] at the decoder's resolution: that of the low-level map, mostly 1/4, and 1/8
        in DeepLabV2.
    aux_logits: [B,K,h3,w3] at the resolution of stage 3; None in eval mode.
    scores: [B,K,h,w], cosine of each query with each slot; None without a memory.
    query: [B,256,h,w], what the memory was read with.
    whitened: the standardised maps of a network with a whitening loss.
    """

    logits: Tensor
    aux_logits: Tensor | None
    scores: Tensor | None
    query: Tensor
    whitened: tuple[Tensor, ...] = ()


class Segmenter(nn.Module):
    """A segmentation network whose deep features may be refined by a class memory.

    images -> backbone -> aspp -> bottleneck -> query -> memory -> decoder -> logits. The decoder
    joins low-level features where there is a `low_level` module (DeepLabV3+), and works at the
    resolution of the query where there is none (DeepLabV2).

    Args:
        backbone: maps images to low-level, stage 3 and stage 4 features.
        aspp: the atrous pyramid on stage 4.
        num_classes: K, the number of classes and of memory slots.
        low_level: whether the decoder reads low-level features.
        decoder_convs: the number of 3x3 convolutions in the decoder.
        memory: the class memory over K slots of 256 channels, or None.
    """

    def __init__(
        self,
        backbone: Backbone,
        aspp: ASPP | SummedASPP,
        num_classes: int,
        *,
        low_level: bool = True,
        decoder_convs: int = 2,
        memory: ClassMemory | None = None,
    ) -> None:
        super().__init__()
        low_channels, stage3_channels, _ = backbone.channels
        self.num_classes = num_classes
        self.frozen = False
        self.backbone = backbone
        self.aspp = aspp
        self.bottleneck = (
            nn.Identity() if aspp.out_channels == 256 else conv_norm_relu(aspp.out_channels, 256)
        )
        self.low_level = conv_norm_relu(low_channels, 48) if low_level else None
        widths = [256 + 48 * low_level] + [256] * decoder_convs
        self.decoder = nn.Sequential(
            *(
                layer
                for i in range(decoder_convs)
                for layer in conv_norm_relu(widths[i], widths[i + 1], 3)
            )
        )
        self.classifier = nn.Conv2d(256, num_classes, 1)
        self.aux_head = auxiliary_head(stage3_channels, num_classes)
        for head in (self.aspp, self.bottleneck, self.low_level, self.decoder):
            if head is not None:
                init_head(head)
        init_head(self.classifier, self.aux_head)
        # Last, since it comes initialised.
        self.memory = memory

    @property
    def output_stride(self) -> int:
        """Input pixels per pixel of the query."""
        return self.backbone.output_stride

    def stages(self) -> list[Stage]:
        """What an activation checkpoint may run again: the backbone's stages and the heads."""
        heads = (self.aspp, self.bottleneck, self.low_level, self.aux_head)
        # The decoder has the largest maps: a convolution at a time.
        convolutions = [m for m in self.decoder if not isinstance(m, nn.ReLU)]
        parts = [part for part in (*heads, *convolutions) if part is not None]
        stages = [*self.backbone.stages(), *map(Stage, parts)]
        # What is frozen keeps nothing for a derivative.
        return [stage for stage in stages if any(p.requires_grad for p in stage.parameters)]

    def freeze_backbone(self) -> None:
        """Train neck, heads and memory alone.

        The backbone's pretrained part requires no gradient and stays in evaluation mode.
        """
        self.frozen = True
        self.backbone.pretrained().requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Segmenter:
        """Set the mode of every module but those that are frozen."""
        super().train(mode)
        if self.frozen:
            self.backbone.pretrained().eval()
        return self

    def encode(self, images: Tensor) -> Features:
        """Run trunk, pyramid and bottleneck only: all that writing a memory needs.

        Args:
            images: [B,3,H,W], floating point, normalised with ImageNet's mean and deviation.

        Raises:
            ValueError: where `images` has another shape or type.
        """
        if images.dim() != 4 or images.shape[1] != 3 or not images.is_floating_point():
            got = f"{images.dtype} {list(images.shape)}"
            raise ValueError(f"images: got {got}, expected floating point [B,3,H,W]")
        maps = self.backbone(images)
        query = self.bottleneck(self.aspp(maps.stage4))
        return Features(query, maps.low_level, maps.stage3, maps.whitened)

    def decode(self, features: Features, memory: Tensor | None = None) -> SegmenterOutput:
        """Read the memory and classify: `decode(encode(images))` is `forward(images)`.

        Args:
            features: from `encode`.
            memory: [K,256], read instead of the stored memory (the M' of a meta-test step); a
                gradient reaches it.

        Raises:
            ValueError: where `memory` is given to a network without one.
        """
        deep, scores = features.query, None
        if self.memory is not None:
            deep, scores = self.memory.read(features.query, memory)
        elif memory is not None:
            raise ValueError("memory: got a tensor, expected None: this network has no memory")
        if self.low_level is not None:
            fine = self.low_level(features.low_level)
            deep = torch.cat([fine, upsample(deep, fine.shape[-2:])], dim=1)
        logits = self.classifier(self.decoder(deep))
        aux_logits = self.aux_head(features.stage3) if self.training else None
        return SegmenterOutput(logits, aux_logits, scores, features.query, features.whitened)

    def forward(self, images: Tensor, memory: Tensor | None = None) -> SegmenterOutput:
        """Segment images [B,3,H,W]; see `encode` and `decode` for the arguments and errors."""
        return self.decode(self.encode(images), memory)

    def predict(self, images: Tensor) -> Tensor:
        """Segment images [B,3,H,W] into full-size logits [B,K,H,W]."""
        return upsample(self(images).logits, images.shape[-2:])


class _Architecture(NamedTuple):
    backbone: Callable[[int, str | None], Backbone]  # of output stride and weights
    output_strides: tuple[int, ...]  # the published one first
    version: int = 3


_STRIDES = (16, 8, 32)
_ARCHITECTURES = {
    "deeplabv3plus_r18": _Architecture(partial(ResNetBackbone, "resnet18"), (32, 16, 8)),
    "deeplabv3plus_r50": _Architecture(partial(ResNetBackbone, "resnet50"), _STRIDES),
    "deeplabv3plus_r101": _Architecture(partial(ResNetBackbone, "resnet101"), _STRIDES),
    "deeplabv3plus_r50_ibn": _Architecture(InstanceNormResNet, _STRIDES),
    "deeplabv3plus_r50_isw": _Architecture(partial(InstanceNormResNet, whitening=True), _STRIDES),
    "deeplabv3plus_mobilenetv2": _Architecture(MobileNetV2Backbone, _STRIDES),
    "deeplabv3plus_shufflenetv2": _Architecture(ShuffleNetV2Backbone, _STRIDES),
    "deeplabv2_r101": _Architecture(
        partial(ResNetBackbone, "resnet101", stride_in_conv1=True), (8,), version=2
    ),
}

MODEL_NAMES = tuple(_ARCHITECTURES)


def build_model(
    name: str,
    num_classes: int = 19,
    memory: bool = True,
    *,
    weights: str | None = None,
    output_stride: int | None = None,
    momentum: float = 0.8,
    temperature: float = 1.0,
) -> Segmenter:
    """Build a published architecture, initialised as the published one is, or one on timm.

    Args:
        name: one of `MODEL_NAMES`; or `timm:` and the name of a timm model, such as
            `timm:convnext_tiny` or `timm:vit_small_patch14_dinov2`, for DeepLabV3+ on that.
        num_classes: K, the number of classes and of memory slots.
        memory: whether the network has a class memory.
        weights: None for a random backbone; "imagenet" for torchvision's IMAGENET1K_V1 or timm's
            own (downloaded once); another member of torchvision's weights enum, such as
            "IMAGENET1K_V2"; or a local file of the backbone's weights.
        output_stride: 8, 16 or 32; None for the published one: 32 for deeplabv3plus_r18, 8 for
            deeplabv2_r101, which has no other, 16 for the rest; and timm's own there.
        momentum: share of the old memory kept in a write.
        temperature: divides the scores in the reading loss.

    Raises:
        ValueError: for an unknown `name` (naming the nearest), `weights` or `output_stride`, or
            `num_classes` below 1, or where timm is not installed.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes: got {num_classes}, expected at least 1")
    v2 = False
    if name.startswith(PREFIX):
        backbone: Backbone = TimmBackbone(name.removeprefix(PREFIX), output_stride, weights)
    elif name not in _ARCHITECTURES:
        nearest = difflib.get_close_matches(name, MODEL_NAMES, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"name: got {name!r}, did you mean {nearest!r}? Expected one of "
            + ", ".join([*MODEL_NAMES, f"{PREFIX}NAME"])
        )
    else:
        architecture = _ARCHITECTURES[name]
        stride = architecture.output_strides[0] if output_stride is None else output_stride
        if stride not in architecture.output_strides:
            expected = " or ".join(str(s) for s in sorted(architecture.output_strides))
            raise ValueError(f"output_stride: got {stride!r}, expected {expected} for {name}")
        backbone = architecture.backbone(stride, weights)
        v2 = architecture.version == 2
    deep_channels = backbone.channels[-1]
    return Segmenter(
        backbone,
        SummedASPP(deep_channels) if v2 else ASPP(deep_channels, backbone.output_stride),
        num_classes,
        low_level=not v2,
        decoder_convs=1 if v2 else 2,
        memory=ClassMemory(num_classes, 256, momentum, temperature) if memory else None,
    )
