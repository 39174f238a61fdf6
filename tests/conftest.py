"""One thread a test process, Triton's interpreter where no GPU is, and the marker ``gpu``."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

GPU = torch.cuda.is_available()
if GPU:
    # Read at the first product: what deterministic algorithms need.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
else:
    # Read when a kernel is declared: before anything imports pinmem.kernels.
    os.environ.setdefault("TRITON_INTERPRET", "1")
torch.set_num_threads(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without a GPU its tests are skipped, and say so."""
    for item in items:
        if item.get_closest_marker("gpu") and not GPU:
            item.add_marker(pytest.mark.skip(reason="no GPU on this machine"))


@pytest.fixture(autouse=True)
def _emulated(request: pytest.FixtureRequest) -> Iterator[None]:
    """Without a GPU the backend ``cuda`` is its emulation, in tests that name it."""
    named = getattr(getattr(request.node, "callspec", None), "params", {})
    if (named.get("backend"), named.get("device")) != ("cuda", "cpu"):
        yield
        return
    from . import cuda_emulation

    if reason := cuda_emulation.missing():
        pytest.skip(reason)
    with cuda_emulation.emulated():
        yield


@pytest.fixture(autouse=True)
def _float32_products() -> Iterator[None]:
    """Float32 convolutions without TF32, which a GPU has by default: so errors are comparable."""
    settings = torch.backends.cudnn.conv
    before = settings.fp32_precision
    settings.fp32_precision = "ieee"
    yield
    settings.fp32_precision = before


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
