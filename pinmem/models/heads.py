"""The parts a DeepLab adds to a backbone: atrous pyramids, decoder, auxiliary head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ASPP", "SummedASPP", "auxiliary_head", "conv_norm_relu", "init_head", "upsample"]


def upsample(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize [B,C,h,w] to [B,C,*size]: bilinear with align_corners=True, as everywhere here."""
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=True)


def conv_norm_relu(
    in_channels: int, out_channels: int, kernel_size: int = 1, dilation: int = 1
) -> nn.Sequential:
    """Make a bias-free convolution that keeps the map's size, BatchNorm and ReLU."""
    padding = dilation * (kernel_size // 2)
    return nn.Sequential(
        nn.Conv2d(
            in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=False
        ),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling of DeepLabV3+: [B,C,h,w] -> [B,5*256,h,w].

    Concatenates, in this order, the image-pooling branch, a 1x1 branch and one 3x3 branch a rate.
    The rates are 6, 12 and 18 at output stride 16 and scale inversely with it.
    """

    def __init__(self, in_channels: int, output_stride: int) -> None:
        super().__init__()
        rate = 96 // output_stride
        self.pooling = conv_norm_relu(in_channels, 256)
        self.branches = nn.ModuleList(
            [
                conv_norm_relu(in_channels, 256),
                *(conv_norm_relu(in_channels, 256, 3, dilation=k * rate) for k in (1, 2, 3)),
            ]
        )
        self.out_channels = 5 * 256

    def forward(self, maps: Tensor) -> Tensor:
        """Map [B,C,h,w] to [B,1280,h,w]."""
        outputs = [branch(maps) for branch in self.branches]
        # Upsampling a single pixel repeats it.
        pooled = self.pooling(F.adaptive_avg_pool2d(maps, 1)).expand_as(outputs[0])
        # torch.cat falls back to contiguous unless every input is channels_last.
        if outputs[0].is_contiguous(memory_format=torch.channels_last):
            pooled = pooled.contiguous(memory_format=torch.channels_last)
        return torch.cat([pooled, *outputs], dim=1)


class SummedASPP(nn.Module):
    """The pyramid of DeepLabV2: the sum of 3x3 branches at rates 6, 12, 18, 24.

    [B,C,h,w] -> [B,256,h,w]. Each branch is convolution, BatchNorm and ReLU, as published.
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.dilated = nn.ModuleList(
            [conv_norm_relu(in_channels, 256, 3, dilation=rate) for rate in (6, 12, 18, 24)]
        )
        self.out_channels = 256

    def forward(self, maps: Tensor) -> Tensor:
        """Map [B,C,h,w] to [B,256,h,w]."""
        first, *others = self.dilated
        total: Tensor = first(maps)
        for branch in others:
            total = total + branch(maps)
        return total


def auxiliary_head(in_channels: int, num_classes: int) -> nn.Sequential:
    """Make the auxiliary classifier on stage 3: [B,C,h,w] -> [B,K,h,w]."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 512, 3, padding=1),
        nn.BatchNorm2d(512),
        nn.ReLU(inplace=True),
        nn.Dropout2d(0.1),
        nn.Conv2d(512, num_classes, 1),
    )


def init_head(*modules: nn.Module) -> None:
    """Initialise as published: He-normal (fan in) convolutions, biases 0, BatchNorm 1 and 0."""
    for module in (layer for root in modules for layer in root.modules()):
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
