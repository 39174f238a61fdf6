"""Timing implementations in turn, in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median, quantiles
from typing import Any, NamedTuple

import torch

from benchmarks.plan import Plan

# A sample shorter than this repeats its call: timers and events have an overhead.
SAMPLE_SECONDS = 0.002


class Timing(NamedTuple):
    """Seconds per call: median and quartiles over the repetitions."""

    median: float
    low: float
    high: float
    repetitions: int


def summary(samples: Sequence[float]) -> Timing:
    """Median and quartiles of at least one sample."""
    low, _, high = quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else 3 * samples
    return Timing(median(samples), low, high, len(samples))


class Rotation:
    """Calls the same function on one set of inputs after the other."""

    def __init__(self, calls: Sequence[Callable[[], Any]]) -> None:
        self.calls, self.next = calls, 0

    def __call__(self) -> Any:
        call = self.calls[self.next]
        self.next = (self.next + 1) % len(self.calls)
        return call()


def seconds_on_cpu(call: Callable[[], Any], number: int) -> float:
    begun = time.perf_counter()
    for _ in range(number):
        call()
    return (time.perf_counter() - begun) / number


def seconds_on_cuda(call: Callable[[], Any], number: int) -> float:
    """Between two events around the calls: what the device or the host takes, if that is longer."""
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begun.record()
    for _ in range(number):
        call()
    ended.record()
    torch.cuda.synchronize()
    return begun.elapsed_time(ended) / 1000 / number


def alternate(
    calls: Mapping[str, Callable[[], Any]],
    choose: Callable[[str], Any],
    plan: Plan,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Timing]:
    """Time every call once per repetition, so that a slow spell of the machine meets all of them.

    Args:
        calls: by name.
        choose: makes the context to run a name in; entered outside the timed part.
        plan: how often, and for how long.
        clock: tells when the time is up.
    """
    timer = seconds_on_cuda if plan.device == "cuda" else seconds_on_cpu
    numbers = {}
    for name, call in calls.items():
        with choose(name):
            call()
            once = timer(call, 1)
        numbers[name] = max(1, min(100, round(SAMPLE_SECONDS / max(once, 1e-9))))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    until = clock() + plan.seconds
    for repetition in range(plan.repetitions):
        if repetition >= plan.least and clock() > until:
            break
        for name, call in calls.items():
            with choose(name):
                samples[name].append(timer(call, numbers[name]))
    return {name: summary(found) for name, found in samples.items()}
