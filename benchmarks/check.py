"""Whether results are right, asked right before they are timed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Roundings that plain PyTorch may happen to escape, of the largest value: one of the result's type
# or four of the accumulator's. Scalars are sums of terms of order one that may cancel.
FLOOR = {torch.float64: 1e-11, torch.float32: 2**-21, torch.bfloat16: 2**-8, torch.float16: 2**-11}
SCALAR_FLOOR = {torch.float64: 1e-14}  # else that of float32:
FLOAT32_SCALAR_FLOOR = 2**-23
# A baseline only has to compute the same thing: relative error of the whole result. In 16 bits
# PyTorch adds up the many terms of a gradient in that type.
LOOSE = {torch.float64: 1e-7, torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.1}
# Of a function with kinks (ReLU): whatever is within a rounding of one may get the other slope.
KINKED = 0.5
# Of the counted pixels, how many may lie on the border between two classes.
TIES = 1e-5


class Truth(NamedTuple):
    """Results in float64, and plain PyTorch's in the row's own type."""

    exact: Sequence[Tensor]
    plain: Sequence[Tensor]
    dtype: torch.dtype

    def fault(self, results: Sequence[Tensor], strict: bool, kinked_from: int | None = None) -> str:
        """What is wrong with results; empty where nothing is.

        Strict is the contract of an op: |ours - float64| <= 2 |plain PyTorch - float64| and a
        tiny floor, in the largest entry of every output and gradient. From ``kinked_from`` on they
        are gradients at kinks, which are only held to be the same gradients.
        """
        if len(results) != len(self.exact):
            return f"{len(results)} results, expected {len(self.exact)}"
        for i, (got, exact, plain) in enumerate(zip(results, self.exact, self.plain, strict=True)):
            if got.shape != exact.shape:
                return f"result {i}: shape {list(got.shape)}, expected {list(exact.shape)}"
            if not bool(got.isfinite().all()):
                return f"result {i}: not finite"
            if kinked_from is not None and i >= kinked_from:
                fault = self._loose(got, exact, max(KINKED, LOOSE[self.dtype]))
            elif strict:
                fault = self._strict(got, exact, plain)
            else:
                fault = self._loose(got, exact, LOOSE[self.dtype])
            if fault:
                return f"result {i}: {fault}"
        return ""

    def _strict(self, got: Tensor, exact: Tensor, plain: Tensor) -> str:
        if not exact.numel():
            return ""
        exact = exact.detach().double()
        error = float((got.detach().double() - exact).abs().max())
        theirs = float((plain.detach().double() - exact).abs().max())
        bound = 2 * theirs + FLOOR[self.dtype] * float(exact.abs().max())
        if exact.ndim == 0:
            bound += SCALAR_FLOOR.get(self.dtype, FLOAT32_SCALAR_FLOOR)
        if not got.is_floating_point():
            bound += TIES * float(exact.sum())
        if error <= bound:
            return ""
        return f"off by {error:.3g}, plain PyTorch by {theirs:.3g}, allowed {bound:.3g}"

    def _loose(self, got: Tensor, exact: Tensor, share: float) -> str:
        exact = exact.detach().double()
        error = float((got.detach().double() - exact).norm())
        bound = share * float(exact.norm()) + 1e-12
        return "" if error <= bound else f"off by {error:.3g} in norm, allowed {bound:.3g}"
