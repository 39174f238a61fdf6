"""Several ranks are one process: on gloo, each with its share of the images."""

from __future__ import annotations

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor

from . import ranks
from .ranks import CASES, DTYPES, Case

SIZES = (2, 3)
Found = dict[int, list[dict[str, dict[str, Tensor]]]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What every rank of two and of three found, and one process alone."""
    folder = tmp_path_factory.mktemp("ranks")
    running = [mp.spawn(ranks.worker, (size, str(folder)), size, join=False) for size in SIZES]
    alone = {str(case): ranks.run(case, None) for case in CASES}
    # Plain PyTorch in float64 is what every type is measured against.
    alone |= {str(dtype): ranks.normalised(torch.float64, None) for dtype in DTYPES}
    for processes in running:
        while not processes.join():
            pass
    by_size = {n: [torch.load(folder / f"{n}-{rank}.pt") for rank in range(n)] for n in SIZES}
    return {1: [alone], **by_size}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_ranks_take_the_steps_of_one_process(found: Found, case: Case, size: int) -> None:
    """Weights, statistics, momenta, memory, losses: after three iterations, bitwise on all ranks.

    A class is seen by one rank only, one has no label in one iteration, counts differ.
    """
    wanted = found[1][0][str(case)]
    got, *others = (each[str(case)] for each in found[size])
    assert not [k for k in got for other in others if not torch.equal(got[k], other[k])]
    assert torch.equal(got["random"], wanted["random"])
    for name, value in wanted.items():
        error = (got[name] - value).double().norm()
        # The bias before a normalisation has no gradient but rounding.
        assert error <= 1e-10 * value.double().norm() + 1e-14, name


def test_the_cases_differ(found: Found) -> None:
    """Orders, modes and what is frozen lead elsewhere: the comparison above is of something."""
    ends = [found[1][0][str(case)]["decoder.0.weight"] for case in CASES[:6]]
    gaps = [(a - b).norm() / a.norm() for i, a in enumerate(ends) for b in ends[:i]]
    assert min(gaps) > 1e-6


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_batch_normalisation_over_ranks(found: Found, dtype: torch.dtype, size: int) -> None:
    wanted = found[1][0][str(dtype)]
    parts = [each[str(dtype)] for each in found[size]]
    limit = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 2e-2}[dtype]
    for name, value in wanted.items():
        got = parts[0][name]
        if value.ndim == 4:
            got = torch.cat([part[name] for part in parts])
        assert (got.double() - value).norm() <= limit * value.double().norm(), name
