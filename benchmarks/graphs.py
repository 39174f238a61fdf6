"""Recording a call as a CUDA graph."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch


def captured(call: Callable[[], Any], device: str) -> Callable[[], Any]:
    """A function that replays what ``call`` launches, and returns the results it overwrites.

    On a CPU, where there is nothing to record, the call itself.

    Raises:
        RuntimeError: the call cannot be recorded, for instance because it synchronises.
    """
    if device == "cpu":
        call()
        return call
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(2):
            call()
        # A recording that fails half-way leaves the allocator in disorder: look first.
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    torch.cuda.current_stream().wait_stream(aside)
    torch.cuda.synchronize()
    # Nodes of a graph of autograd that still lives elsewhere would wait for another stream.
    gc.collect()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()

    def replay() -> Any:
        graph.replay()
        return results

    return replay
