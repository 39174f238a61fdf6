"""Convolutions on a CPU that take less time than oneDNN's.

Those with 3x3 kernels and stride 1, and their gradients, take kernels of our own that multiply 16
times where the sum as written takes 36 (csrc/cpu/simd/conv3x3.h).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pinmem.backends import get_backend, is_as_on_gpu, unavailable

aten = torch.ops.aten
torch.library.define(
    "pinmem_cpu::conv3x3",
    "(Tensor features, Tensor weight, Tensor? bias, Tensor? other, int[2] padding, "
    "int[2] dilation, bool reversed, bool rectify) -> Tensor",
)
torch.library.define(
    "pinmem_cpu::conv3x3_weight_grad",
    "(Tensor cotangent, Tensor features, int[2] padding, int[2] dilation) -> Tensor",
)
_conv3x3 = torch.ops.pinmem_cpu.conv3x3.default
_weight_grad = torch.ops.pinmem_cpu.conv3x3_weight_grad.default

# Below, oneDNN is faster: channels in and out, outputs over all images in whole tiles, and by how
# much fewer the multiplications are.
CHANNELS, PIXELS, FEWER = 16, 256, 1.3


def conv3x3(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    other: Tensor | None = None,
    *,
    padding: Sequence[int],
    dilation: Sequence[int],
    rectify: bool = False,
) -> Tensor:
    """A convolution with stride 1, and what follows it: ``relu(convolution + other)``.

    It is below autograd: :func:`conv3x3_backward` has its gradients. A NaN or an infinity in the
    features is a NaN in every output whose tile of 2x2 reads it. (Lavin and Gray, "Fast Algorithms
    for Convolutional Neural Networks", CVPR 2016, section 4.1.)

    Args:
        features: [B,C,H,W], float32, in channels_last.
        weight: [O,C,3,3], likewise.
        bias: [O].
        other: what is added, a map like the output.
        padding: of zeros, rows and columns.
        dilation: likewise.
        rectify: whether negative outputs become 0.

    Returns:
        [B,O,h,w], in channels_last, bitwise the same at any number of threads.
    """
    bias = None if bias is None else bias.contiguous()
    return _conv3x3(features, weight, bias, other, padding, dilation, False, rectify)


def conv3x3_backward(
    cotangent: Tensor,
    features: Tensor,
    weight: Tensor,
    *,
    padding: Sequence[int],
    dilation: Sequence[int],
    wanted: Sequence[bool] = (True, True),
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of :func:`conv3x3`'s features and weight, None where not wanted.

    ``cotangent``: [B,O,h,w], that of its output, in channels_last; the rest as there, with a
    padding of 2 * dilation at most.
    """
    features_grad = weight_grad = None
    if wanted[0]:  # a convolution, with the weight reversed
        rest = [2 * d - p for p, d in zip(padding, dilation, strict=True)]
        features_grad = _conv3x3(cotangent, weight, None, None, rest, dilation, True, False)
    if wanted[1]:
        weight_grad = _weight_grad(cotangent, features, padding, dilation)
    return features_grad, weight_grad


def gains(
    features: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> bool:
    """Whether :func:`conv3x3` computes this convolution, and in less time than oneDNN."""
    if torch.compiler.is_compiling():
        return False
    if not (
        features.ndim == 4
        and weight.shape[2:] == (3, 3)
        and features.dtype == weight.dtype == torch.float32
        and features.device.type == weight.device.type == "cpu"
        and groups == 1
        and set(stride) == {1}
        and min(weight.shape[:2]) >= CHANNELS
        and len(padding) == len(dilation) == 2
        and all(0 <= p <= 2 * d > 0 for p, d in zip(padding, dilation, strict=True))
        and features.is_contiguous(memory_format=torch.channels_last)
        and weight.is_contiguous(memory_format=torch.channels_last)
        and _at_work()
    ):
        return False
    written = tiles = 1
    for size, p, d in zip(features.shape[2:], padding, dilation, strict=True):
        outputs = size + 2 * (p - d)
        if outputs < 1:
            return False
        # Taps that meet padding alone cost oneDNN nothing: where p <= d, these are left.
        written *= 3 * outputs - 2 * min(p, outputs)
        tiles *= d * ceil(ceil(outputs / d) / 2)
    return len(features) * 4 * tiles >= PIXELS and written >= FEWER * 16 * tiles


def _at_work() -> bool:
    """Whether our kernels are chosen, and there."""
    return get_backend() in ("auto", "cpu") and _available()


@functools.cache
def _available() -> bool:
    """Whether they are built, by this version, and vectors are wide enough for them."""
    return (
        not unavailable("cpu")
        and torch._C._dispatch_has_kernel_for_dispatch_key("pinmem_cpu::conv3x3", "CPU")
        and torch.ops.pinmem_cpu.isa_level() > 0
    )


def fast_convolutions(
    device: torch.device, network: nn.Module | None = None
) -> contextlib.AbstractContextManager[object]:
    """Inside, passes over maps on this device take what is faster.

    ``network``: whose forward passes these are; where it is compiled, they go without.
    """
    able = device.type == "cpu" and not is_as_on_gpu() and _available()
    if not able or (network is not None and is_compiled(network)):
        return contextlib.nullcontext()
    return FastConvolutions()


def is_compiled(network: nn.Module) -> bool:
    """Whether torch.compile has a part of it."""
    return any(
        module._compiled_call_impl is not None or hasattr(module, "_orig_mod")
        for module in network.modules()
    )


class FastConvolutions(TorchDispatchMode):
    """Inside, convolutions and their gradients, of any order, take what is faster."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if types:  # fake tensors and others with rules of their own
            return func(*args, **(kwargs or {}))
        if func is aten.convolution.default:
            features, weight, bias, stride, padding, dilation, transposed, _, groups = args
            if not transposed and gains(features, weight, stride, padding, dilation, groups):
                return conv3x3(features, weight, bias, padding=padding, dilation=dilation)
        if func is aten.convolution_backward.default:
            return _backward(*args)
        return func(*args, **(kwargs or {}))


def _backward(
    cotangent: Tensor, features: Tensor, weight: Tensor, sizes: Any, stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], transposed: bool, output_padding: Any,
    groups: int, mask: Sequence[bool],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """aten's convolution_backward."""
    if transposed or not gains(features, weight, stride, padding, dilation, groups):
        return aten.convolution_backward.default(
            cotangent, features, weight, sizes, stride, padding, dilation, transposed,
            output_padding, groups, mask,
        )  # fmt: skip
    laid_out = cotangent.contiguous(memory_format=torch.channels_last)
    found = conv3x3_backward(
        laid_out, features, weight, padding=padding, dilation=dilation, wanted=mask[:2]
    )
    return *found, cotangent.sum((0, 2, 3)) if mask[2] else None
