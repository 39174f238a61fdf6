"""The weights' gradients of convolutions on CPUs where oneDNN's take longer than matrix products.

With AVX2 but without AVX-512 oneDNN takes two to six times as long for them on large maps in
channels_last as for the convolution itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from pinmem.backends import is_as_on_gpu

aten = torch.ops.aten
# Where one of both is smaller, oneDNN is faster.
CHANNELS, WIDTH = 64, 16


def fast_weight_gradients(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Inside, backward passes on this device use matrix products where this CPU gains by them."""
    on_cpu = device.type == "cpu" and not is_as_on_gpu()
    if on_cpu and torch.backends.cpu.get_cpu_capability() == "AVX2":
        return ByMatrixProducts()
    return contextlib.nullcontext()


class ByMatrixProducts(TorchDispatchMode):
    """Inside, :func:`weight_gradient` computes what it can and is made for."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is aten.convolution_backward.default and _gains(*args):
            cotangent, features, weight, _, _, padding, dilation, *_, mask = args
            features_grad = bias_grad = None
            if mask[0] or mask[2]:
                features_grad, _, bias_grad = func(*args[:-1], [mask[0], False, mask[2]])
            kernel = weight.shape[2:]
            found = weight_gradient(cotangent, features, kernel, padding, dilation)
            return features_grad, found, bias_grad
        return func(*args, **(kwargs or {}))


def weight_gradient(
    cotangent: Tensor,
    features: Tensor,
    kernel: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """The weight's gradient of a convolution with stride 1, a matrix product a tap and image.

    Rows of both maps get the same length, so that a tap's features are those of the cotangent's
    pixels moved by one offset: an image is copied once, not for every tap.

    Args:
        cotangent: [B,O,h,w], of the convolution's output.
        features: [B,C,H,W], its input.
        kernel: height and width.
        padding: in rows and columns.
        dilation: likewise.

    Returns:
        [O,C,*kernel], in channels_last.
    """
    (high, wide), (down, right) = kernel, dilation
    outs, height, width = cotangent.shape[1:]
    edges = (0, 0, padding[1], padding[1], padding[0], padding[0])
    found = torch.empty(
        (outs, features.shape[1], high, wide), dtype=cotangent.dtype, device=cotangent.device,
        memory_format=torch.channels_last,
    )  # fmt: skip
    for image in range(len(features)):
        rows = F.pad(features[image].permute(1, 2, 0), edges)  # [H+2p,W+2p,C]
        length = rows.shape[1]
        out_rows = F.pad(cotangent[image].permute(1, 2, 0), (0, 0, 0, length - width))
        pixels = (height - 1) * length + width
        left = out_rows.flatten(0, 1)[:pixels].T  # [O,pixels]
        rows = rows.flatten(0, 1)
        for i in range(high):
            for j in range(wide):
                first = i * down * length + j * right
                tap = rows[first : first + pixels]  # [pixels,C]
                found[:, :, i, j].addmm_(left, tap, beta=min(image, 1))
    return found


def _gains(
    cotangent: Tensor, features: Tensor, weight: Tensor, sizes: Any, stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], transposed: bool, output_padding: Any,
    groups: int, mask: Sequence[bool],
) -> bool:  # fmt: skip
    """Whether it is a convolution that takes less time as matrix products."""
    return (
        mask[1]
        and groups == 1
        and not transposed
        and cotangent.ndim == 4
        and cotangent.dtype == torch.float32
        and weight.shape[2:].numel() > 1
        and weight.is_contiguous(memory_format=torch.channels_last)
        and set(stride) == {1}
        and min(weight.shape[:2]) >= CHANNELS
        # Where more of a row is padding, products with zeros take the gain.
        and cotangent.shape[3] >= max(WIDTH, 8 * padding[1])
    )
