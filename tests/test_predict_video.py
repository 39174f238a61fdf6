"""Videos, through PyAV."""

from __future__ import annotations

import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from pinmem.checkpoint import load_trained
from pinmem.data import CITYSCAPES, eval_transform
from pinmem.predict import predict
from pinmem.prediction.video import frames, properties
from tests.test_evaluate_program import save_network
from tests.test_predict import call, picture

FRAMES = 5


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_network(tmp_path_factory.mktemp("network") / "net.pt")


def video(path: Path, count: int = FRAMES, size: tuple[int, int] = (64, 48)) -> Path:
    """A video of coarse pictures, 12 a second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=12)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        for number in range(count):
            shot = Image.open(picture(path.with_name("frame.png"), size, seed=number))
            file.mux(stream.encode(av.VideoFrame.from_image(shot)))
        file.mux(stream.encode())
    path.with_name("frame.png").unlink()
    return path


def test_videos_become_videos_and_folders(network: Path, tmp_path: Path, monkeypatch) -> None:
    source = video(tmp_path / "in/drive.mp4")
    options = ("--checkpoint", network, "--images", tmp_path / "in", "--out", tmp_path / "out")
    kinds = ("--save", "labels,color,side_by_side", "--batch_size", "2")
    assert call(monkeypatch, *options, *kinds) == 0
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "drive_color.mp4", "drive_labels", "drive_side_by_side.mp4",
    ]  # fmt: skip
    assert [p.name for p in sorted((out / "drive_labels").iterdir())] == [
        f"{number:06d}.png" for number in range(FRAMES)
    ]
    model = load_trained(network)
    colours = list(frames(out / "drive_color.mp4"))
    assert properties(out / "drive_color.mp4")[1] == 12 and len(colours) == FRAMES
    for number, pixels in enumerate(frames(source)):
        image, _ = eval_transform()(pixels, torch.zeros(48, 64, dtype=torch.uint8))
        labels = np.asarray(Image.open(out / f"drive_labels/{number:06d}.png"))
        assert (labels != predict(model, image).numpy()).mean() < 1e-3
        shown = colours[number].permute(1, 2, 0).numpy().astype(int)
        assert np.abs(shown - np.array(CITYSCAPES.colors)[labels]).mean() < 20
    assert next(frames(out / "drive_side_by_side.mp4")).shape == (3, 48, 3 * 64)
    before = (out / "drive_color.mp4").stat().st_mtime_ns
    assert call(monkeypatch, *options, *kinds) == 0
    assert (out / "drive_color.mp4").stat().st_mtime_ns == before


def test_a_broken_video_leaves_nothing(network: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    good, bad = video(tmp_path / "in/a.mp4", 2), tmp_path / "in/b.avi"
    bad.write_bytes(b"RIFF" + bytes(200))
    picture(tmp_path / "in/c.png")
    options = ("--checkpoint", network, "--images", tmp_path / "in", "--out", tmp_path / "out")
    assert call(monkeypatch, *options) == 1
    captured = capsys.readouterr()
    assert f"{bad}: video cannot be opened" in captured.err and str(good) not in captured.err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "a_labels", "a_overlay.mp4", "c_labels.png", "c_overlay.png",
    ]  # fmt: skip


def test_without_pyav_a_video_names_the_extra(network: Path, tmp_path, monkeypatch, capsys) -> None:
    source = video(tmp_path / "a.mp4", 1)
    monkeypatch.setitem(sys.modules, "av", None)
    options = ("--checkpoint", network, "--images", source, "--out", tmp_path / "out")
    assert call(monkeypatch, *options) == 2
    assert "pip install 'pinmem[video]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_phones_video_is_turned(tmp_path: Path) -> None:
    """The track's matrix says a quarter turn clockwise."""
    path = video(tmp_path / "a.mp4", 1)
    upright = next(frames(path))
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 40
    turned = (0, 0x10000, 0, 0x100000000 - 0x10000, 0, 0, 0, 0, 0x40000000)
    content[at : at + 36] = b"".join(number.to_bytes(4, "big") for number in turned)
    path.write_bytes(content)
    got = next(frames(path))
    assert torch.equal(got, upright.rot90(-1, dims=(1, 2)))
