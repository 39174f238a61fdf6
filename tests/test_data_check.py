"""``python -m pinmem.data.check`` says what is there and what is wrong."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pinmem.data.check import main
from tests.data_files import gtav_tree, label_ids, target, write_palette


def run(root, *options: str) -> int:
    return main(["--dataset", "gtav", "--root", str(root), *options])


def test_all_well(tmp_path, capsys):
    gtav_tree(gtav_tree(tmp_path), 2, "valid")
    assert run(tmp_path, "--decode") == 0
    out = capsys.readouterr().out
    assert f"train: 3 pairs in {tmp_path / 'images/train'} (3 of 10x6)" in out
    assert "val: 2 pairs" in out
    assert out.count("all well") == 2


def test_a_split_that_is_not_there(tmp_path, capsys):
    gtav_tree(tmp_path)
    assert run(tmp_path) == 1
    assert "no image found: looked for images/valid/**/*.png" in capsys.readouterr().out
    assert run(tmp_path, "--split", "train") == 0


def test_what_is_missing(tmp_path, capsys):
    gtav_tree(tmp_path)
    (tmp_path / "labels/train/a/00001.png").unlink()
    (tmp_path / "images/train/a/00003.png").unlink()
    assert run(tmp_path, "--split", "train") == 1
    out = capsys.readouterr().out
    assert f"its label {tmp_path / 'labels/train/a/00001.png'} is missing" in out
    assert f"{tmp_path / 'labels/train/a/00003.png'}: its image is missing" in out
    assert "train: 1 pairs" in out
    assert "2 wrong" in out


def test_sizes_that_differ(tmp_path, capsys):
    path = gtav_tree(tmp_path) / "labels/train/a/00002.png"
    write_palette(path, label_ids(target(0, (5, 10))))
    assert run(tmp_path, "--split", "train") == 1
    out = capsys.readouterr().out
    assert f"{tmp_path / 'images/train/a/00002.png'} is 10x6, its label {path} is 10x5" in out
    assert "1 wrong" in out


def test_values_are_checked_on_demand(tmp_path, capsys):
    path = gtav_tree(tmp_path) / "labels/train/a/00002.png"
    ids = label_ids(target())
    ids[1, 1] = 200
    write_palette(path, ids)
    assert run(tmp_path, "--split", "train") == 0
    assert run(tmp_path, "--split", "train", "--decode") == 1
    assert f"{path}: label has values outside the encoding: 200" in capsys.readouterr().out


def test_a_long_list_is_cut(tmp_path, capsys):
    for path in (gtav_tree(tmp_path, 6) / "labels/train/a").iterdir():
        path.unlink()
    assert run(tmp_path, "--split", "train", "--limit", "2") == 1
    out = capsys.readouterr().out
    assert "... and 4 more" in out
    assert "6 wrong" in out


def test_no_such_folder(tmp_path, capsys):
    assert run(tmp_path / "nowhere") == 1
    assert "--root: no such folder" in capsys.readouterr().out


def test_runs_as_a_module(tmp_path):
    gtav_tree(tmp_path)
    command = [sys.executable, "-m", "pinmem.data.check", "--dataset", "gtav"]
    done = subprocess.run([*command, "--root", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout.startswith("train: 3 pairs")


def test_unknown_dataset(capsys):
    with pytest.raises(SystemExit):
        main(["--dataset", "kitti", "--root", "."])
    assert "invalid choice: 'kitti'" in capsys.readouterr().err
