"""Any feature backbone of timm by name: pyramids as they are, plain transformers with a neck."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pinmem.extras import optional
from pinmem.recompute import Stage

from .backbones import Backbone, BackboneFeatures

__all__ = ["PREFIX", "TimmBackbone"]

PREFIX = "timm:"


class TimmBackbone(Backbone):
    """A timm model as a dense feature extractor.

    A network with several resolutions gives its first map at 1/4 (or coarser) and its last two. A
    plain transformer has one resolution: the low-level map is that of an early block, upsampled
    four times by a neck of two transposed convolutions (Li et al., "Exploring Plain Vision
    Transformer Backbones", section 3). A transformer's position embeddings are resized to the
    images, and the images to a multiple of its patches. Images come with ImageNet's mean and
    deviation and are normalised again where the model was trained with others.

    Args:
        name: timm's name of the model, with or without the tag of its weights.
        output_stride: input pixels per pixel of `stage4`; None for the model's own.
        weights: None for random weights; "imagenet" for timm's own of the name (downloaded once,
            into its cache), on whatever they were trained; or a file in any format timm reads.

    Raises:
        ValueError: timm is not installed, or has no such model, stride or weights; or the model
            takes images of one size only, or has too few resolutions.
    """

    def __init__(
        self, name: str, output_stride: int | None = None, weights: str | None = None
    ) -> None:
        super().__init__()
        optional("timm", "timm", f"model {PREFIX}{name}")
        net, levels, any_size = _create(name, output_stride, weights)
        self.net: nn.Module = net
        low_channels, stage3, stage4 = (level["num_chs"] for level in levels)
        self.output_stride = levels[-1]["reduction"]
        self.neck: nn.Sequential | None = None
        if isinstance(self.net, _PlainTransformer):
            self.neck = _neck(low_channels)
            low_channels //= 4
        self.channels = (low_channels, stage3, stage4)
        self.multiple = self.output_stride if any_size else 1
        self.channels_last = str(getattr(self.net, "output_fmt", "NCHW")).endswith("NHWC")
        self.renormalize = _renormalization(net.pretrained_cfg)
        _differentiable_twice(self.net)

    def pretrained(self) -> nn.Module:
        """Timm's network without the neck."""
        return self.net

    def stages(self) -> list[Stage]:
        """What an activation checkpoint may run again: the blocks that stand in a sequence."""
        modules = [*_blocks(self.net), *([self.neck] if self.neck else [])]
        return [Stage(module) for module in modules]

    def forward(self, images: Tensor) -> BackboneFeatures:
        """Map images [B,3,H,W] to their features."""
        if self.renormalize is not None:
            images = self.renormalize(images)
        if self.multiple > 1:
            # Rounded up without a negative number, which ONNX divides otherwise.
            size = [(n + self.multiple - 1) // self.multiple for n in images.shape[-2:]]
            size = [n * self.multiple for n in size]
            images = F.interpolate(images, size, mode="bilinear", align_corners=True)
        low_level, stage3, stage4 = self.net(images)
        if self.channels_last:
            low_level, stage3, stage4 = (m.permute(0, 3, 1, 2) for m in (low_level, stage3, stage4))
        if self.neck:
            low_level = self.neck(low_level)
        return BackboneFeatures(low_level, stage3, stage4)


class _Affine(nn.Module):
    """Images [B,3,H,W] times a scale plus a shift, each of three channels."""

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: list[float], shift: list[float]) -> None:
        super().__init__()
        for name, values in (("scale", scale), ("shift", shift)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return images * self.scale + self.shift


def _renormalization(trained: dict[str, Any]) -> _Affine | None:
    """From ImageNet's mean and deviation to those a model was trained with; None where equal."""
    from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    mean, std = trained["mean"], trained["std"]
    if (tuple(mean), tuple(std)) == (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD):
        return None
    from_mean, from_std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    scale = [f / s for f, s in zip(from_std, std, strict=True)]
    shift = [(f - m) / s for f, m, s in zip(from_mean, mean, std, strict=True)]
    return _Affine(scale, shift)


def _neck(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(channels, channels // 2, 2, 2),
        nn.BatchNorm2d(channels // 2),
        nn.GELU(),
        nn.ConvTranspose2d(channels // 2, channels // 4, 2, 2),
    )


class _HardSigmoid(nn.Module):
    """torch's `nn.Hardsigmoid`, whose backward pass has no derivative there."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(x + 3) / 6


def _differentiable_twice(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Hardsigmoid):
            setattr(module, name, _HardSigmoid())
        else:
            _differentiable_twice(child)


class _PlainTransformer(nn.Module):
    """A timm transformer's maps after some of its blocks, through its last normalisation."""

    def __init__(self, net: Any, indices: tuple[int, ...]) -> None:
        super().__init__()
        # What comes after the last block, but for its normalisation, is of no use here.
        net.prune_intermediate_layers(list(indices), prune_norm=False)
        self.net, self.indices, self.pretrained_cfg = net, list(indices), net.pretrained_cfg

    def forward(self, images: Tensor) -> list[Tensor]:
        net: Any = self.net
        return net.forward_intermediates(
            images, indices=self.indices, norm=True, output_fmt="NCHW", intermediates_only=True
        )


def _create(
    name: str, output_stride: int | None, weights: str | None
) -> tuple[Any, list[dict[str, Any]], bool]:
    """A module that returns three maps, what timm says of each, and if it is built for any size."""
    import timm

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture) or (tag and name not in timm.list_pretrained()):
        known = timm.list_pretrained() if timm.is_model(architecture) else timm.list_models()
        near = difflib.get_close_matches(name if tag else architecture, known, n=1)
        hint = f", did you mean {PREFIX + near[0]!r}?" if near else ""
        raise ValueError(f"name: got {PREFIX + name!r}, which timm does not have{hint}")
    options: dict[str, Any] = {} if weights is None else {"pretrained": True}
    if weights not in (None, "imagenet"):
        if not os.path.isfile(weights):  # type: ignore[arg-type]
            raise ValueError(f"weights: got {weights!r}, expected None, 'imagenet' or a file")
        options["pretrained_cfg_overlay"] = {"file": weights}
    any_size = True
    try:
        # Transformers that can take images of any size have to be told to.
        info = _probe(name, dynamic_img_size=True)
        options["dynamic_img_size"] = True
    except TypeError:
        any_size = False
        info = _probe(name)
        if timm.get_pretrained_cfg_value(name, "fixed_input_size"):
            raise ValueError(
                f"name: got {PREFIX + name!r}, which takes images of one size only"
            ) from None
    if output_stride is not None:
        try:
            info = _probe(name, output_stride=output_stride)
            options["output_stride"] = output_stride
        except (TypeError, NotImplementedError, AssertionError):
            if output_stride != info[-1]["reduction"]:
                raise ValueError(
                    f"output_stride: got {output_stride}, which timm does not build {name} with"
                ) from None
    plain = len({level["reduction"] for level in info}) == 1
    last = len(info) - 1
    low = last // 3 if plain else next(i for i, v in enumerate(info) if v["reduction"] >= 4)
    indices = (low, 2 * last // 3 if plain else last - 1, last)
    if not indices[0] < indices[1] < indices[2]:
        raise ValueError(f"name: got {PREFIX + name!r}, which has too few resolutions")
    levels = [info[i] for i in indices]
    try:
        if plain:
            net = timm.create_model(name, num_classes=0, **options)
            return _PlainTransformer(net, indices), levels, any_size
        net = timm.create_model(name, features_only=True, out_indices=indices, **options)
        return net, levels, any_size
    except Exception as error:
        if weights is None:
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"weights: timm could not load {weights} for {name}: {reason}") from error


def _probe(name: str, **options: Any) -> list[dict[str, Any]]:
    """The resolutions of a model, of which nothing is allocated."""
    import timm

    with torch.device("meta"):
        net: Any = timm.create_model(name, features_only=True, **options)
        return net.feature_info.info


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The largest modules with parameters that a plain `nn.Sequential` calls, outermost first.

    Those take one tensor and return one; what lies in a list, or in a class of its own (HRNet's
    hands on lists), may take more.
    """
    for child in module.children():
        if type(module) is not nn.Sequential or type(child) is nn.Sequential:
            yield from _blocks(child)
        elif next(child.parameters(), None) is not None:
            yield child
