"""Street scenes: exact labels through the real encodings, repeatable, and like streets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples.streets import STYLES, render_street
from examples.streets.__main__ import main
from examples.streets.generate import generate, scene_seed
from pinmem.data import CLASS_NAMES, IGNORE_INDEX, build_dataset

SIZE = (256, 128)


@pytest.fixture(scope="module")
def scenes() -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    return {
        domain: [render_street(domain, [seed], *SIZE) for seed in range(20)] for domain in STYLES
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("streets")
    assert generate(root, list(STYLES), {"train": 2, "val": 1}, SIZE, 7, 1) == (12, 0)
    return root


def frequencies(scenes: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    counts = sum(np.bincount(target.ravel(), minlength=256) for _, target in scenes)
    return counts / counts.sum()


@pytest.mark.parametrize("domain", STYLES)
def test_every_class_appears(scenes, domain):
    seen = frequencies(scenes[domain])
    missing = [name for name, share in zip(CLASS_NAMES, seen, strict=False) if share == 0]
    assert not missing
    assert seen[: len(CLASS_NAMES)].sum() + seen[IGNORE_INDEX] == pytest.approx(1.0)


@pytest.mark.parametrize("domain", STYLES)
def test_classes_are_as_frequent_as_in_streets(scenes, domain):
    seen = dict(zip(CLASS_NAMES, frequencies(scenes[domain]), strict=False))
    assert 0.22 < seen["road"] < 0.5
    assert 0.1 < seen["building"] < 0.4
    assert 0.03 < seen["vegetation"] < 0.3
    assert 0.02 < seen["sky"] < 0.2
    assert seen["car"] > seen["truck"]
    for small in ("traffic light", "traffic sign", "rider", "motorcycle", "bicycle"):
        assert seen[small] < 0.02


def test_streets_are_the_right_way_up(scenes):
    for pairs in scenes.values():
        for _, target in pairs:
            rows = {
                name: np.nonzero(target == CLASS_NAMES.index(name))[0] for name in ("road", "sky")
            }
            assert rows["road"].mean() > 0.6 * SIZE[1]
            assert rows["sky"].size == 0 or rows["sky"].mean() < 0.4 * SIZE[1]


def test_domains_differ_in_appearance(scenes):
    def saturation(picture: np.ndarray) -> float:
        return float((picture.max(2).astype(int) - picture.min(2)).mean())

    looks = {d: np.mean([saturation(p) for p, _ in pairs]) for d, pairs in scenes.items()}
    assert looks["gtav"] > looks["synthia"] > 1.3 * looks["cityscapes"]


def test_picture_follows_the_labels(scenes):
    """Colours change across a label's border far more than inside a region."""
    for domain, pairs in scenes.items():
        inside, across = [], []
        for picture, target in pairs[:8]:
            step = np.abs(np.diff(picture.astype(int), axis=1)).sum(2)
            border = target[:, 1:] != target[:, :-1]
            inside.append(step[~border].mean())
            across.append(step[border].mean())
        # At night a region is full of the sensor's noise.
        factor = 1.8 if STYLES[domain].headlights else 3
        assert np.mean(across) > factor * np.mean(inside), domain


def test_the_bonnet_is_ignored_and_only_in_cityscapes(scenes):
    bottom = {d: np.mean([t[-1] == IGNORE_INDEX for _, t in pairs]) for d, pairs in scenes.items()}
    assert bottom["cityscapes"] > 0.5
    assert bottom["gtav"] < 0.05
    assert bottom["synthia"] < 0.05


def test_seed_decides_everything():
    first, again = (render_street("gtav", [3, 1], *SIZE) for _ in range(2))
    other = render_street("gtav", [3, 2], *SIZE)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[1], other[1])


def test_no_two_scenes_share_a_seed():
    names = [(d, split, i) for d in STYLES for split in ("train", "val") for i in range(3)]
    seeds = {tuple(scene_seed(seed, *name)) for name in names for seed in (0, 1)}
    assert len(seeds) == 2 * len(names)


def test_same_street_at_another_size():
    small, large = (render_street("cityscapes", [5], w, w // 2)[1] for w in (256, 512))
    assert (large[::2, ::2] == small).mean() > 0.9


@pytest.mark.parametrize("domain", STYLES)
@pytest.mark.parametrize(("split", "count"), [("train", 2), ("val", 1)])
def test_loader_gives_back_what_was_drawn(written, domain, split, count):
    dataset = build_dataset(domain, written / domain, split)
    assert len(dataset) == count
    for index in range(count):
        picture, target = render_street(domain, scene_seed(7, domain, split, index), *SIZE)
        image, labels = dataset[index]
        assert np.array_equal(image.numpy().transpose(1, 2, 0), picture)
        assert np.array_equal(labels.numpy(), target)
        assert (target != IGNORE_INDEX).mean() > 0.9


def test_files_have_the_real_encodings(written):
    gtav = Image.open(written / "gtav/labels/valid/streets/00001.png")
    assert gtav.mode == "P"
    assert set(np.unique(np.asarray(gtav))) <= {0, *range(7, 34)}
    header = (written / "synthia/GT/LABELS/val/0000000.png").read_bytes()[24:26]
    assert header == bytes((16, 2))  # 16 bits a sample, RGB
    name = "cityscapes/gtFine/val/streets/streets_000000_000000_gtFine_labelIds.png"
    assert Image.open(written / name).mode == "L"


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()
    }


def test_bytes_do_not_depend_on_workers(written, tmp_path):
    generate(tmp_path, list(STYLES), {"train": 2, "val": 1}, SIZE, 7, 2)
    assert contents(tmp_path) == contents(written)


def test_an_interrupted_run_is_completed(written, tmp_path):
    generate(tmp_path, ["synthia"], {"train": 2, "val": 1}, SIZE, 7, 1)
    complete = contents(tmp_path)
    label = next((tmp_path / "synthia/GT").rglob("*.png"))
    label.unlink()
    kept = tmp_path / "synthia/RGB/val/0000000.png"
    before = kept.stat().st_mtime_ns
    seen: list[tuple[int, int]] = []
    result = generate(
        tmp_path, ["synthia"], {"train": 2, "val": 1}, SIZE, 7, 1, lambda *p: seen.append(p)
    )
    assert result == (1, 2)
    assert seen == [(1, 1)]
    assert contents(tmp_path) == complete
    assert label.parent.name == "val" or kept.stat().st_mtime_ns == before


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("examples.streets.writers.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        generate(tmp_path, ["gtav"], {"train": 1, "val": 0}, SIZE, 0, 1)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"domains": ["gta"]},
            "domains: expected some of gtav, synthia, cityscapes, acdc, got 'gta'",
        ),
        ({"counts": {"train": -1, "val": 0}}, "train: expected at least 0, got -1"),
        ({"seed": -1}, "seed: expected at least 0, got -1"),
        ({"workers": 0}, "workers: expected at least 1, got 0"),
    ],
)
def test_generate_names_the_bad_argument(tmp_path, change, message):
    arguments = {
        "root": tmp_path, "domains": ["gtav"], "counts": {"train": 1, "val": 0},
        "size": SIZE, "seed": 0, "workers": 1,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        generate(**(arguments | change))


def test_render_street_names_the_bad_argument():
    with pytest.raises(ValueError, match=r"domain: expected one of .* got 'kitti'"):
        render_street("kitti", 0, *SIZE)
    with pytest.raises(ValueError, match="size: expected at least 32 pixels a side, got 256x8"):
        render_street("gtav", 0, 256, 8)


def test_command_line(tmp_path, capsys):
    arguments = ["--root", str(tmp_path), "--domains", "gtav", "--train", "1", "--val", "1"]
    assert main([*arguments, "--size", "96x64", "--workers", "1"]) == 0
    assert "2 scenes written, 0 already there" in capsys.readouterr().out
    assert build_dataset("gtav", tmp_path / "gtav", "val")[0][1].shape == (64, 96)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (["--size", "512"], "expected WIDTHxHEIGHT, got '512'"),
        (["--size", "8x8"], "expected at least 32 pixels a side"),
        (
            ["--domains", "gtav,moon"],
            "expected some of gtav,synthia,cityscapes,acdc, got 'gtav,moon'",
        ),
        (["--workers", "0"], "--workers: expected at least 1, got 0"),
    ],
)
def test_command_line_errors(tmp_path, capsys, bad, message):
    with pytest.raises(SystemExit) as stop:
        main(["--root", str(tmp_path), *bad])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_contact_sheet(tmp_path):
    path = tmp_path / "images" / "sheet.png"
    assert main(["--sheet", str(path), "--size", "64x32"]) == 0
    with Image.open(path) as sheet:
        assert sheet.size == (4 * 64 + 3 * 4, 4 * 64 + 3 * 4)


def test_runs_as_a_module():
    command = [sys.executable, "-m", "examples.streets", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--domains" in done.stdout
    assert "GTAV, SYNTHIA, Cityscapes and ACDC" in " ".join(done.stdout.split())
