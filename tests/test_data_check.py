"""``python -m pinmem.data.check`` says what is there and what is wrong."""

from __future__ import annotations

import subprocess
import sys
import zlib

import numpy as np
from PIL import Image

from pinmem.data import CLASS_NAMES, PALETTE
from pinmem.data.check import main
from tests.data_files import gtav_tree, label_ids, picture, target, write, write_palette
from tests.data_trees import VARIANTS, make


def run(root, *options: str) -> int:
    return main(["--dataset", "gtav", "--root", str(root), *options])


def test_all_well(tmp_path, capsys):
    gtav_tree(gtav_tree(tmp_path), 2, "valid")
    assert run(tmp_path, "--decode") == 0
    out = capsys.readouterr().out
    assert f"train: 3 pairs in {tmp_path / 'images/train/**/*.{png,jpg,jpeg}'} (3 of 10x6)" in out
    assert "val: 2 pairs" in out
    assert out.count("all well") == 2


def test_a_split_that_is_not_there(tmp_path, capsys):
    gtav_tree(tmp_path)
    assert run(tmp_path) == 1
    assert "no image found: looked for images/valid/**/*.{png,jpg,jpeg}" in capsys.readouterr().out
    assert run(tmp_path, "--split", "train") == 0
    assert main(["--dataset", f"gtav={tmp_path}", "--split", "train"]) == 0


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


def test_values_are_checked(tmp_path, capsys):
    path = gtav_tree(tmp_path) / "labels/train/a/00002.png"
    ids = label_ids(target())
    ids[1, 1] = 200
    write_palette(path, ids)
    assert run(tmp_path, "--split", "train") == 1
    out = capsys.readouterr().out
    assert f"{path}: label has values outside the encoding: 200" in out
    assert "-> these labels were made for other classes" in out


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
    assert main(["--dataset", "kitti", "--root", "."]) == 1
    assert "--dataset: dataset: got 'kitti', expected acdc, " in capsys.readouterr().out


def test_classes_and_their_share(tmp_path, capsys):
    gtav_tree(tmp_path, 1)
    assert run(tmp_path, "--split", "train") == 0
    out = capsys.readouterr().out
    assert "published: 12388 or 12403, here 1" in out
    for number, name in enumerate(CLASS_NAMES):
        share = 100 * (target(0) == number).mean()
        assert f"{name} {share:.2f}" in out or (share == 0 and f"{name} none" in out)
    assert f"ignored {100 * (target(0) == 255).mean():.2f}" in out


def test_labels_that_are_dummies(tmp_path, capsys):
    for path in (gtav_tree(tmp_path) / "labels/train/a").iterdir():
        write_palette(path, np.zeros((6, 10), np.uint8))
    assert run(tmp_path, "--split", "train") == 1
    assert "no labelled pixel in 3 labels" in capsys.readouterr().out


def test_what_is_skipped_is_counted_with_the_reason(tmp_path, capsys):
    gtav_tree(tmp_path)
    (tmp_path / "images/train/a/._00001.png").write_bytes(b"x")
    write(tmp_path / "images/train/a/00007.bmp", picture())
    (tmp_path / "labels/train/a/readme.txt").write_text("hello")
    assert run(tmp_path, "--split", "train") == 0
    out = capsys.readouterr().out
    assert f"skipped, hidden: 1, such as {tmp_path / 'images/train/a/._00001.png'}" in out
    assert "skipped, image folder: not images/train/**/*.{png,jpg,jpeg}: 1, such as" in out
    assert "skipped, label folder: not labels/train/**/*.png: 1, such as" in out


def test_the_report_survives_every_file(tmp_path, capsys):
    gtav_tree(tmp_path, 8)
    labels = sorted((tmp_path / "labels/train/a").iterdir())
    labels[0].write_bytes(b"")
    labels[1].write_bytes(labels[2].read_bytes()[:60])
    data = bytearray(labels[3].read_bytes())  # a label of 20992x10496
    data[16:24] = (20992).to_bytes(4, "big") + (10496).to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    labels[3].write_bytes(data)
    (tmp_path / "images/train/a/00005.png").write_text("no picture")
    assert run(tmp_path, "--split", "train") == 1
    out = capsys.readouterr().out
    assert "train: 8 pairs" in out and "4 wrong" in out
    for name in (labels[0], labels[1], labels[3], tmp_path / "images/train/a/00005.png"):
        assert f"\n  {name}: " in out


def test_decoding_damage_is_said(tmp_path, capsys):
    """Zeroed bytes in a JPEG, which Pillow decodes to something else without an error."""
    smooth = np.add.outer(np.arange(64), np.arange(96))[:, :, None].repeat(3, 2).astype(np.uint8)
    path = write(tmp_path / "images/10k/val/a.jpg", smooth, quality=95)
    write(tmp_path / "labels/sem_seg/masks/val/a.png", target(0, (64, 96)))
    command = ["--dataset", "bdd100k", "--root", str(tmp_path), "--split", "val", "--decode"]
    assert main(command) == 0
    data = bytearray(path.read_bytes())
    data[-120:-90] = bytes(30)
    path.write_bytes(data)
    capsys.readouterr()
    assert main(command) == 1
    assert f"{path}: Corrupt JPEG data" in capsys.readouterr().out


def test_two_images_of_one_label(tmp_path, capsys):
    gtav_tree(tmp_path)
    write(tmp_path / "images/train/a/00001.jpg", picture())
    assert run(tmp_path, "--split", "train") == 1
    assert "00001.png: label of 2 images" in capsys.readouterr().out


def test_a_sheet_shows_pictures_and_classes(tmp_path):
    make(tmp_path, VARIANTS["gtav folders"])
    assert run(tmp_path, "--split", "train", "--sheet", str(tmp_path / "s.png")) == 0
    sheet = np.asarray(Image.open(tmp_path / "s.png"))
    colors = {tuple(color) for color in sheet[::3, ::3].reshape(-1, 3).tolist()}
    assert {tuple(PALETTE[0].tolist()), tuple(PALETTE[13].tolist())} <= colors  # road, car


def test_pairs_in_another_arrangement_are_said(tmp_path, capsys):
    gtav_tree(gtav_tree(tmp_path, 2, "valid"), 1, "val")
    assert run(tmp_path, "--split", "val") == 0
    out = capsys.readouterr().out
    assert "val: 2 pairs" in out
    assert "skipped, another arrangement, images/val/**/*.{png,jpg,jpeg}: 1, such as" in out
