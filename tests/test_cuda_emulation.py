"""What the emulation of the CUDA library finds: kernels of which the order of threads matters."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

import pinmem
from pinmem import backends

from .build_tools import ROOT, toolchain
from .cuda_emulation import missing
from .op_cases import FORMATS, Shape, assert_bitwise, build, everything

SHAPE = Shape(1, 3, 9, 12, 40, classes=21, channels=40)

# Threads hand a value to their neighbour in shared memory, and each counts what it got wrong.
PROGRAM = """
#include "csrc/cuda/device.h"
int wrong = 0;
void kernel() {
  __shared__ unsigned places[64];
  const unsigned i = threadIdx.x;
  places[i] = i + 1;
  %s
  if (places[(i + 1) %% 64] != (i + 1) %% 64 + 1) ++wrong;
}
int main() {
  cuda_on_cpu::launch(dim3{1}, 64, 0, kernel);
  return wrong == 0 ? 0 : 3;
}
"""


@pytest.mark.parametrize("backend, device", [("cuda", "cpu")])
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("op", [op for op, own in backends.ON_GPU.items() if own == "cuda"])
def test_the_order_of_threads_changes_nothing(
    op: str, layout: str, backend: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit: sums have a fixed order, and no barrier is missing."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    case = build(op, SHAPE).to(torch.float32, device, FORMATS[layout])
    with pinmem.backend(backend):
        expected = everything(case)
        monkeypatch.setenv("PINMEM_EMULATION_ORDER", "reverse")
        reverse = everything(case)
    assert_bitwise(reverse, expected)


@pytest.mark.skipif(bool(missing()), reason=missing())
@pytest.mark.parametrize(
    ("barrier", "forward", "reverse"),
    [
        ("__syncthreads();", 0, 0),
        # The last thread looks at the first, all others at their next: wrong in either order.
        ("", 3, 3),
        # The first warp looks at the second, which in one of the two orders has written before.
        ("__syncwarp();", 3, 0),
        # Half of the threads never come.
        ("if (i < 32) __syncthreads();", -6, -6),
    ],
)
def test_a_wrong_barrier_is_found(barrier: str, forward: int, reverse: int, tmp_path: Path) -> None:
    source, program = tmp_path / "kernel.cpp", tmp_path / "kernel"
    source.write_text(PROGRAM % barrier)
    compiler = toolchain.need_compiler()
    flags = [f"-I{ROOT}", "-DPINMEM_HOST_EMULATION", "-w", str(source), "-o", str(program)]
    subprocess.run([*compiler, *flags], check=True)
    for order, expected in (("forward", forward), ("reverse", reverse)):
        environment = {"PINMEM_EMULATION_ORDER": order}
        done = subprocess.run([program], env=environment, capture_output=True, text=True)
        assert done.returncode == expected, done.stderr
        assert expected >= 0 or "wait at a barrier that others never reach" in done.stderr
