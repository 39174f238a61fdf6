"""Several ranks are one process: on gloo, each with its share of the images."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from pinmem import checkpoint
from pinmem.batches import Batches
from pinmem.config import TrainConfig
from pinmem.distributed import Ranks
from pinmem.launch import take_place
from pinmem.models import build_model
from pinmem.prepare import open_sources
from pinmem.step import batches_of, build_optimizer, iterate

from . import ranks
from .kill_check import status_of
from .kill_ranks_check import ROUNDING, apart, begin, kill_one, options_of, wait_for
from .ranks import CASES, DTYPES, Case
from .scenes import small_run, tiny_run

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
    return {1: [alone], **{size: _load(folder, size) for size in SIZES}}


def _load(folder: Path, size: int) -> list[dict[str, dict[str, Tensor]]]:
    return [torch.load(folder / f"{size}-{rank}.pt") for rank in range(size)]


def assert_one(wanted: dict[str, Tensor], ends: list[dict[str, Tensor]]) -> None:
    """Every rank ends bitwise the same, and as one process to 1e-10."""
    got, *others = ends
    assert not [k for k in got for other in others if not torch.equal(got[k], other[k])]
    assert torch.equal(got["random"], wanted["random"])
    for name, value in wanted.items():
        error = (got[name] - value).double().norm()
        # The bias before a normalisation has no gradient but rounding.
        assert error <= 1e-10 * value.double().norm() + 1e-14, name


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_ranks_take_the_steps_of_one_process(found: Found, case: Case, size: int) -> None:
    """Weights, statistics, momenta, memory, losses after three iterations.

    A class is seen by one rank only, one has no label in one iteration, counts differ.
    """
    assert_one(found[1][0][str(case)], [each[str(case)] for each in found[size]])


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs")
def test_ranks_on_gpus_take_the_steps_of_one(tmp_path: Path) -> None:
    mp.spawn(ranks.gpu_worker, (2, str(tmp_path)), 2)
    ends = _load(tmp_path, 2)
    for case in CASES:
        assert_one(ranks.run(case, None, "cuda"), [each[str(case)] for each in ends])


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
    limit = {torch.float64: 1e-11, torch.float32: 5e-6, torch.bfloat16: 5e-3}[dtype]
    for name, value in wanted.items():
        got = parts[0][name]
        if value.ndim == 4:
            got = torch.cat([part[name] for part in parts])
        assert (got.double() - value).norm() <= limit * value.double().norm(), name


@pytest.mark.parametrize("size", SIZES)
def test_what_one_rank_cannot_represent_all_skip(found: Found, size: int) -> None:
    for each in found[size]:
        end = each["overflow"]
        assert end["scaled kept"] and not end["plain kept"]
        assert not end["scaled total"].isfinite() and not end["plain total"].isfinite()


@pytest.mark.parametrize("size", SIZES)
def test_ranks_load_and_jitter_the_batches_of_one(tmp_path: Path, size: int) -> None:
    """The last batch of those that initialise the memory is smaller, and no multiple."""
    options = tiny_run(tmp_path, batch_size=6, iterations=2, memory_init_draws=5, crop_size=32)
    config = TrainConfig(**options)
    sources = open_sources(config)

    def batches(place: Ranks | None) -> list[list[Tensor]]:
        mine = Batches(config, sources, torch.device("cpu"), place)
        found = [
            [mine.augment(images, [1], 1 + index), labels]
            for index, (images, labels) in enumerate(mine.loader(1))
        ]
        return found + [
            [mine.augment_for_memory(images, index), labels]
            for index, (images, labels) in enumerate(mine.for_memory())
        ]

    whole = batches(None)
    parts = [batches(Ranks(rank, size, 6 // size)) for rank in range(size)]
    assert [len(images) for images, _ in whole] == [6, 6, 4]
    for index, pair in enumerate(whole):
        for kind, wanted in enumerate(pair):
            assert torch.equal(wanted, torch.cat([part[index][kind] for part in parts]))


def test_a_rank_that_dies_ends_the_run_and_another_number_goes_on(tmp_path: Path) -> None:
    """The others end at once and say why; one process ends as two ranks would have."""
    whole, broken = options_of(tmp_path / "whole"), options_of(tmp_path / "broken")
    assert [status_of(process) for process in begin(whole, 2)] == [0, 0]
    waited = kill_one(broken, 2, victim=1, wait=lambda: wait_for(1, tmp_path / "broken"))
    assert waited is not None and waited < 20
    assert "rank 0 lost another one" in (tmp_path / "output.txt").read_text()
    assert [status_of(process) for process in begin(broken | {"resume": True}, 1)] == [0]
    assert apart(tmp_path / "whole", tmp_path / "broken") < ROUNDING
    scores = [
        checkpoint.load(tmp_path / name / "last.pt")["scores"] for name in ("whole", "broken")
    ]
    assert scores[0] == scores[1] and len(scores[0]) == 3


def test_a_signal_to_one_rank_stops_all(tmp_path: Path) -> None:
    options = options_of(tmp_path / "run") | {"iterations": 200, "validate_every": 0}
    processes = begin(options, 2)
    wait_for(1, tmp_path / "run")
    os.kill(processes[1], signal.SIGTERM)
    assert [status_of(process) for process in processes] == [143, 143]
    output = (tmp_path / "output.txt").read_text()
    stopped = re.search(r"stopped by SIGTERM at iteration (\d+); to go on: torchrun", output)
    assert stopped and checkpoint.load(tmp_path / "run" / "last.pt")["iteration"] == int(stopped[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 4}, "batch_size: got 4 for 3 ranks, expected a multiple of 3"),
        (
            {"batch_size": 6, "accumulate": 3},
            "batch_size: got 6 for 3 ranks in 3 micro-batches, expected a multiple of 9",
        ),
        ({"batch_size": 6, "compile": True}, "compile: got true, expected false with 3 ranks"),
    ],
)
def test_options_that_do_not_go_with_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        take_place(TrainConfig(**small_run(tmp_path) | options))


def test_a_restart_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for restarts in ("0", "1"):
        config = TrainConfig(**small_run(tmp_path, overwrite=True))
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restarts)
        assert take_place(config)[1] is None
        assert (config.resume, config.overwrite) == (restarts == "1", restarts == "0")


PAGE = Path(__file__).parent.parent / "docs" / "distributed.md"


@pytest.mark.parametrize(
    ("mode", "order"), [("joint", 1), ("mldg", 1), ("memory-mldg", 1), ("memory-mldg", 2)]
)
def test_the_page_says_how_many_bytes_an_iteration_sends(
    tmp_path: Path, mode: str, order: int
) -> None:
    """Payload, which depends on neither the images' size nor the number of ranks."""
    options = tiny_run(tmp_path, mode=mode, meta_order=order, num_classes=19)
    config = TrainConfig(**options)
    dist.init_process_group("gloo", f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        model = build_model("deeplabv3plus_r50", memory="memory" in mode).train()
        alone = Ranks(0, 1)
        images = torch.randn(2, 2, 3, 32, 32)
        labels = torch.randint(19, (2, 2, 32, 32), dtype=torch.uint8)
        split = ([0], [1]) if config.meta else ([0, 1], [])
        optimizer = build_optimizer(config, model)
        batches = batches_of(images, labels, split)
        iterate(config, model, optimizer, batches, 1e-3, ranks=alone)
    finally:
        dist.destroy_process_group()
    assert f"| {mode}, order {order} | {alone.bytes:,} |" in PAGE.read_text()
