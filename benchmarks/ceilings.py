"""What the machine can do at most, measured: copying and multiplying."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch

from benchmarks.plan import Plan
from benchmarks.timing import seconds_on_cpu, seconds_on_cuda
from pinmem.info import device_name, versions


def environment(plan: Plan) -> dict[str, Any]:
    """Date, versions and device, for the JSON file."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()) + " UTC",
        "device": plan.device,
        "device_name": device_name(plan.device),
        "threads": plan.threads,
        "layout": "channels last" if plan.channels_last else "NCHW",
        "smoke": plan.smoke,
        "versions": versions(),
    }


def measure(plan: Plan) -> dict[str, float]:
    """Bytes a second of a large copy, read and written, and operations a second of a product."""
    return {"copy": copy_bandwidth(plan), "matrix": matrix_rate(plan)}


def copy_bandwidth(plan: Plan) -> float:
    """Bytes a second, counting each byte as read and as written."""
    count = 2**20 if plan.smoke else 2**32 if plan.device == "cuda" else 2**28
    source = torch.randint(0, 255, (count,), dtype=torch.uint8, device=plan.device)
    target = torch.empty_like(source)
    return 2 * count / _median(plan, lambda: target.copy_(source))


def matrix_rate(plan: Plan) -> float:
    """Operations a second of a matrix product: bfloat16 on a GPU, float32 on a CPU."""
    side = 64 if plan.smoke else 8192 if plan.device == "cuda" else 2048
    dtype = torch.bfloat16 if plan.device == "cuda" else torch.float32
    left, right = (torch.randn(side, side, device=plan.device).to(dtype) for _ in range(2))
    return 2 * side**3 / _median(plan, lambda: left @ right)


def _median(plan: Plan, call: Callable[[], Any]) -> float:
    timer = seconds_on_cuda if plan.device == "cuda" else seconds_on_cpu
    for _ in range(2):
        call()
    return median(_samples(lambda: timer(call, 1), 3 if plan.smoke else 15, 5.0))


def _samples(sample: Callable[[], float], most: int, seconds: float) -> Iterator[float]:
    """At least three samples, and at most so many in so much time."""
    until = time.monotonic() + seconds
    for i in range(most):
        if i >= 3 and time.monotonic() > until:
            return
        yield sample()
