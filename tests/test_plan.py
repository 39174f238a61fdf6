"""``python -m pinmem.train --plan``: what a step would hold, against what it holds."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pinmem import plan, process_memory
from pinmem.backends import as_on_gpu, get_backend, select
from pinmem.config import TrainConfig
from pinmem.planner import Peak, Planner, largest, network_of, splits
from pinmem.storages import ACTIVATIONS, BACKWARD, BATCH, GRADIENTS, OPTIMISER, WEIGHTS

CPU = torch.device("cpu")
MODES = ("joint", "mldg", "memory-joint", "memory-mldg")


def small(**options: Any) -> TrainConfig:
    """A configuration whose data do not exist."""
    return TrainConfig(
        **{
            "sources": ["gtav=absent", "synthia=absent"],
            "model": "deeplabv3plus_r18",
            "num_classes": 19,
            "batch_size": 2,
            "crop_size": 64,
        }
        | options
    )


def command(*options: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pinmem.train", *options], cwd=folder, capture_output=True, text=True
    )


OPTIONS = [("cpu", {"mode": mode}) for mode in MODES] + [
    ("cpu", {"meta_order": 2}),
    ("cpu", {"meta_order": 2, "lean_second_order": True, "amp": "bfloat16"}),
    ("cuda", {"amp": "bfloat16"}),
]


@pytest.mark.parametrize(("device", "options"), OPTIONS, ids=str)
def test_a_step_leaves_nothing_and_counts_what_is_known(
    device: str, options: dict[str, Any]
) -> None:
    config = small(**options)
    before = torch.get_rng_state()
    planner = Planner(config, torch.device(device))
    standing = planner.storages.total
    peak = planner.peak()
    assert torch.equal(torch.get_rng_state(), before)
    assert planner.storages.total == standing
    assert planner.peak() == peak

    network = network_of(config)
    state = sum(t.nbytes for t in (*network.parameters(), *network.buffers()))
    momenta = sum(p.nbytes for p in network.parameters())
    assert peak.total == sum(peak.kinds.values()) > standing
    rounded = 512 * 500 if device == "cuda" else 0  # a block for each of the small tensors
    assert 0 <= peak.kinds[OPTIMISER] - momenta <= rounded
    assert peak.kinds[WEIGHTS] >= state
    # Images as they are and gathered by domain, labels likewise; on a CPU the loader's batch too.
    images = 4 * 3 * 64 * 64
    assert peak.kinds[BATCH] == 4 * images + images // 3 + (images if device == "cpu" else 0)


def test_the_inner_step_copies_the_weights() -> None:
    parameters = sum(p.nbytes for p in network_of(small()).parameters())
    joint, meta = (Planner(small(mode=mode), CPU).peak() for mode in ("joint", "mldg"))
    assert meta.kinds[WEIGHTS] - joint.kinds[WEIGHTS] > 0.9 * parameters
    assert meta.kinds[GRADIENTS] > 0.9 * parameters


def test_activations_follow_size_and_type() -> None:
    config = small(crop_size=256, mode="joint")
    planner = Planner(config, CPU)
    once = planner.peak()
    twice = planner.peak(replace(config, batch_size=4))
    assert 1.9 < twice.kinds[ACTIVATIONS] / once.kinds[ACTIVATIONS] < 2.1
    half = Planner(small(crop_size=256, mode="joint", amp="bfloat16"), CPU).peak()
    assert half.kinds[ACTIVATIONS] < 0.8 * once.kinds[ACTIVATIONS]


@pytest.mark.parametrize("mode", ["memory-mldg", "memory-joint"])
def test_every_way_to_take_the_step(mode: str) -> None:
    """What looks at values or draws numbers in a step does not when there are none."""
    config = small(mode=mode, crop_size=128, batch_size=4)
    plain = Planner(config, CPU).peak()
    for options in ({"accumulate": 2}, {"checkpoint_activations": True}):
        peak = Planner(replace(config, **options), CPU).peak()
        assert images_of(peak) < 0.8 * images_of(plain), options
    bfloat16, float16 = (
        Planner(replace(config, amp=amp), CPU).peak() for amp in ("bfloat16", "float16")
    )
    # The losses' scale takes copies of gradients and statistics.
    assert float16.total > bfloat16.total


def test_a_checkpointed_step_takes_six_tenths() -> None:
    config = small(model="deeplabv3plus_r50", crop_size=512)
    plain = Planner(config, CPU).peak()
    checkpointed = Planner(replace(config, checkpoint_activations=True), CPU).peak()
    assert checkpointed.total < 0.6 * plain.total


def images_of(peak: Peak) -> int:
    """Bytes that grow with the images."""
    return peak.kinds[ACTIVATIONS] + peak.kinds[BACKWARD]


def test_apex_is_planned_where_it_is_not() -> None:
    plain, apex = (Planner(small(optimizer=name), CPU).peak() for name in ("sgd", "apex_sgd"))
    assert apex == plain


def test_lean_second_order_is_leaner() -> None:
    whole = Planner(small(crop_size=128, meta_order=2), CPU).peak()
    lean = Planner(small(crop_size=128, meta_order=2, lean_second_order=True), CPU).peak()
    assert lean.kinds[ACTIVATIONS] < 0.7 * whole.kinds[ACTIVATIONS]


@pytest.mark.parametrize(
    "model", ["deeplabv3plus_mobilenetv2", "deeplabv3plus_r50_isw", "deeplabv2_r101"]
)
def test_other_networks(model: str) -> None:
    assert Planner(small(model=model), CPU).peak().kinds[ACTIVATIONS] > 0


def test_a_frozen_backbone_keeps_less() -> None:
    whole = Planner(small(mode="joint"), CPU).peak()
    frozen = Planner(small(mode="joint", freeze="backbone", weights="imagenet"), CPU).peak()
    assert frozen.kinds[OPTIMISER] < whole.kinds[OPTIMISER]
    assert frozen.kinds[ACTIVATIONS] < whole.kinds[ACTIVATIONS]


def test_the_worst_split_of_the_domains() -> None:
    three = small(sources=[f"{name}=absent" for name in ("gtav", "synthia", "bdd100k")])
    assert splits(three) == [1, 2]
    assert splits(small()) == [1]
    assert splits(replace(three, mode="joint")) == [3]
    assert Planner(replace(three, meta_order=2), CPU).peak().learn_from == 2


@pytest.mark.parametrize("room", [0, 3, 30, 31, 999, 10_000])
@pytest.mark.parametrize("guess", [0, 1, 5, 14, 500])
@pytest.mark.parametrize("least", [1, 2])
def test_bisection(room: int, guess: int, least: int) -> None:
    tried = []

    def peak_of(number: int) -> int:
        assert number >= least
        tried.append(number)
        return number * number

    expected = max((n for n in range(least, 200) if n * n <= room), default=0)
    assert largest(peak_of, room, least, guess) == expected
    assert len(set(tried)) == len(tried) < 25


def test_the_largest_crop_and_batch_fit_and_the_next_do_not() -> None:
    config = small(crop_size=(64, 128), mode="joint")
    planner = Planner(config, CPU)
    peak, room = planner.peak(), 400 * 10**6
    crop, batch = planner.largest_crop(room, peak), planner.largest_batch(room, peak)
    assert crop is not None and crop[1] == 2 * crop[0] and crop[0] % 32 == 0
    larger = (crop[0] + 32, crop[1] + 64)
    for fits, too_large in (
        ({"crop_size": crop}, {"crop_size": larger}),
        ({"batch_size": batch}, {"batch_size": batch + 1}),
    ):
        assert planner.peak(replace(config, **fits)).total <= room  # type: ignore[arg-type]
        assert planner.peak(replace(config, **too_large)).total > room  # type: ignore[arg-type]
    assert planner.largest_batch(10**6, peak) == 0
    assert planner.largest_crop(10**6, peak) is None
    assert peak.growth(peak.total) == 1


def test_a_gpu_is_planned_with_its_own_ops() -> None:
    features = torch.zeros(1)
    with as_on_gpu():
        assert select("memory_read_project", features, 19) == "triton"
        assert select("class_sums", features, 19) == "cuda"
        assert select("class_sums", features, 300) == "reference"
    assert get_backend() == "auto"
    peak = Planner(small(mode="memory-joint"), torch.device("cuda")).peak()
    assert all(size % 512 == 0 for size in peak.kinds.values())


def test_the_command_against_a_real_step(tmp_path: Path) -> None:
    """The whole program, without data: within 15% of the peak that it measures itself."""
    if not process_memory.supported():
        pytest.skip("no high-water mark to reset here")
    options = (
        "--plan", "--measure", "--sources", "[gtav=absent,synthia=absent]",
        "--model", "deeplabv3plus_r18", "--batch_size", "2", "--crop_size", "192",
        "--device", "cpu", "--threads", "1", "--out", str(tmp_path / "run"),
    )  # fmt: skip
    done = command(*options, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    real, predicted = (float(last.split(word)[1].split()[0]) for word in ("peak", "predicted"))
    assert real > 0.3 and abs(predicted / real - 1) < 0.15, last
    assert "19 classes" in done.stdout
    assert not list(tmp_path.iterdir())


def test_what_fits_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    room = ("--plan_gb", "0.3", "--mode", "joint", "--model", "deeplabv3plus_r18")
    size = ("--batch_size", "2", "--crop_size", "64", "--device", "cuda:1")
    plan.main(["--sources", "[gtav=absent,synthia=absent]", *room, *size])
    *_, time, fits = capsys.readouterr().out.splitlines()
    assert time == "time: not known"
    found = re.fullmatch(
        r"In 0.3 GB, largest crop at batch_size 2: (\d+)x\1; largest batch_size at 64x64: (\d+)",
        fits,
    )
    assert found and int(found[1]) >= 96 and int(found[2]) > 2


def test_bad_options(capsys: pytest.CaptureFixture[str]) -> None:
    here = ["--plan", "--sources", "[gtav=absent,synthia=absent]"]
    for options, message in (
        (["--plan_gb", "-1"], "plan_gb: got -1.0, expected a number above 0"),
        (["--plan_gb", "much"], "plan_gb"),
        (["--device", "cuda:x"], "device: got 'cuda:x'"),
        (["--meta_order", "3"], "meta_order: got 3, expected 1 or 2"),
    ):
        with pytest.raises(ValueError, match=message):
            plan.main([*here, *options])
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no CUDA device is available"):
            plan.main([*here, "--measure", "--device", "cuda"])
    with pytest.raises(SystemExit):
        plan.main([*here, "--mesure"])
    assert "no such option" in capsys.readouterr().err


def test_a_step_that_cannot_be_measured_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    if not process_memory.supported():
        pytest.skip("no high-water mark to reset here")
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(ValueError, match="measure: the step ended with status 1"):
        plan.measured(small(), CPU, 1)


def test_time_is_that_of_a_benchmark_of_this_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(crop_size=(64, 128))
    environment = {"device": "cpu", "device_name": plan.device_name("cpu")}
    row = {
        "op": "training_step", "variant": config.model, "size": "2 domains of 2x64x128",
        "dtype": "float32", "results": {"auto": {"median": 1.5}, "second order": {"failed": "no"}},
    }  # fmt: skip
    results = {"environment": environment | {"threads": torch.get_num_threads()}, "rows": [row]}
    (tmp_path / "this.json").write_text(json.dumps(results))
    monkeypatch.setattr(plan, "RESULTS", tmp_path)
    assert plan.seconds(config, CPU) == (1.5, "this.json")
    for other in (
        {"crop_size": 64}, {"batch_size": 4}, {"amp": "bfloat16"}, {"mode": "mldg"},
        {"meta_order": 2}, {"model": "deeplabv3plus_r50"},
    ):  # fmt: skip
        assert plan.seconds(replace(config, **other), CPU) is None, other  # type: ignore[arg-type]
    results["environment"]["device_name"] = "another"
    (tmp_path / "this.json").write_text(json.dumps(results))
    assert plan.seconds(config, CPU) is None
