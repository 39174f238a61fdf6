"""What the machine can do at most, measured: copying, multiplying, and calling an op at all."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch

import pinmem
from benchmarks.plan import Plan
from benchmarks.timing import seconds_on_cpu, seconds_on_cuda
from pinmem import ops
from pinmem.info import versions


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


def device_name(device: str) -> str:
    """The GPU's, or the processor's, name."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


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


def dispatch(plan: Plan) -> dict[str, dict[str, float]]:
    """Microseconds of host time that a call costs however small its inputs are.

    Name -> forward and forward with backward, beside ``x * w`` for comparison.
    """
    if plan.smoke:
        number, samples = 2, 3
    else:
        number, samples = 100, 20
    found = {}
    for name, function, leaves in _tiny(plan):
        with torch.no_grad():
            forward = _microseconds(plan, lambda f=function, x=leaves: f(*x), number, samples)
        both = None
        if name != "upsampled_confusion":
            for leaf in leaves:
                leaf.requires_grad_()
            both = _microseconds(plan, lambda f=function, x=leaves: _both(f, x), number, samples)
        found[name] = {"forward": forward, "forward + backward": both}
    return found


def _tiny(plan: Plan) -> list[tuple[str, Callable[..., Any], list[torch.Tensor]]]:
    def of(*shape: int) -> torch.Tensor:
        return torch.ones(shape, device=plan.device)

    def maps() -> torch.Tensor:
        return of(1, 4, 1, 1)

    labels = torch.zeros((1, 1, 1), dtype=torch.uint8, device=plan.device)
    return [
        ("x * w", torch.mul, [maps(), maps()]),
        ("memory_read", ops.memory_read, [maps(), of(2, 4)]),
        ("memory_read_project", ops.memory_read_project, [maps(), of(2, 4), of(3, 8)]),
        (
            "upsampled_cross_entropy",
            lambda x: ops.upsampled_cross_entropy(x, labels),
            [maps()],
        ),
        ("class_sums", lambda x: ops.class_sums(x, labels, 2)[0], [maps()]),
        (
            "memory_update",
            lambda *x: ops.memory_update(*x, momentum=0.8),
            [of(2, 4), of(2, 4), of(2), of(2, 4), of(2)],
        ),
        ("upsampled_confusion", lambda x: ops.upsampled_confusion(x, labels), [maps()]),
    ]


def _both(function: Callable[..., Any], leaves: list[torch.Tensor]) -> Any:
    outputs = function(*leaves)
    first = outputs[0] if isinstance(outputs, tuple) else outputs
    return torch.autograd.grad(first, leaves, torch.ones_like(first), allow_unused=True)


def _microseconds(plan: Plan, call: Callable[[], Any], number: int, samples: int) -> float:
    def sample() -> float:
        seconds = seconds_on_cpu(call, number)
        if plan.device == "cuda":
            torch.cuda.synchronize()
        return seconds

    with pinmem.backend("auto"):
        sample()
        return 1e6 * median(_samples(sample, samples, 1.0))
