"""Pictures of the method and the page that holds them."""

from __future__ import annotations

import base64
import io
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pinmem import reference, visualize
from pinmem.checkpoint import load_trained
from pinmem.data import CITYSCAPES
from pinmem.evaluation import confusion_of, open_dataset, score
from pinmem.models import build_model
from pinmem.program import run
from pinmem.train import TrainConfig, Trainer
from pinmem.visualization.figures import (
    confusion_figure,
    reliability_figure,
    similarity_figure,
    tsne_figure,
)
from pinmem.visualization.statistics import BINS, gather
from tests.scenes import streets, tiny_run
from tests.test_evaluate_program import save_network


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_network(tmp_path_factory.mktemp("network") / "net.pt")


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run the program with arguments; its exit status."""
    monkeypatch.setattr("sys.argv", ["visualize", *map(str, arguments), "--device", "cpu"])
    try:
        run(visualize.main)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


class Page(HTMLParser):
    """What a page is made of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[str] = []
        self.headings: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes) -> None:
        if tag == "img":
            self.images.append(dict(attributes)["src"])
        elif tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def test_the_page_holds_everything(network: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    texts = [f"{name}={streets() / name}" for name in ("gtav", "cityscapes")]
    options = ("--checkpoint", network, "--dataset", texts[0], "--dataset", texts[1])
    out = tmp_path / "page"
    assert call(monkeypatch, *options, "--out", out) == 0
    text = (out / "report.html").read_text()
    page = Page(text)
    assert not page.open
    assert not re.search(r"(src|href)=\"(?!data:)", text) and "url(" not in text
    names = [
        f"{kind}-{name}" for kind in ("example", "activation") for name in ("cityscapes", "gtav")
    ]
    names += ["tsne", "similarity", "confusion", "reliability"]
    assert sorted(path.stem for path in out.glob("*.png")) == sorted(names)
    files = {path.read_bytes() for path in out.glob("*.png")}
    inside = [base64.b64decode(src.removeprefix("data:image/png;base64,")) for src in page.images]
    assert set(inside) == files and len(inside) == len(files)
    for content in inside:  # none is blank
        assert np.asarray(Image.open(io.BytesIO(content)).convert("L")).std() > 5
    assert len(page.headings) == len(inside) + 2
    model = load_trained(network)
    for name in texts:
        result = score(confusion_of(model, open_dataset("d", name, "val")))
        assert f'<td class="number">{100 * result.miou:.2f}</td>' in text
    assert all(name in text for name in CITYSCAPES.names)
    assert "memory_momentum" in text and "deeplabv3plus_r18" in text and ">nan" not in text
    assert call(monkeypatch, *options, "--out", out) == 2
    assert "report.html exists" in capsys.readouterr().err


def test_a_network_without_a_memory_goes_without_its_pictures(tmp_path: Path, monkeypatch) -> None:
    bare = save_network(tmp_path / "bare.pt", memory=False)
    options = ("--checkpoint", bare, "--dataset", f"gtav={streets() / 'gtav'}", "--images", 1)
    assert call(monkeypatch, *options, "--out", tmp_path / "page") == 0
    names = {path.stem for path in (tmp_path / "page").glob("*.png")}
    assert {"confusion", "reliability", "example-gtav"} <= names
    assert not names & {"similarity", "activation-gtav"}
    assert "no memory" in (tmp_path / "page/report.html").read_text()


@pytest.mark.parametrize("package", ["matplotlib", "sklearn"])
def test_what_is_missing_names_the_extra(network, package, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    options = ("--checkpoint", network, "--dataset", f"gtav={streets() / 'gtav'}")
    assert call(monkeypatch, *options, "--out", tmp_path / "page") == 2
    assert "pip install 'pinmem[visualize]'" in capsys.readouterr().err
    assert not (tmp_path / "page").exists()


def test_statistics_are_what_they_say() -> None:
    model = build_model("deeplabv3plus_r18", 4).eval()
    image, labels = torch.randn(3, 96, 64), torch.randint(0, 3, (96, 64), dtype=torch.uint8)
    labels[:40] = 255
    found = gather(model, [(image, labels)] * 3, images=2)
    assert found.images == 2 and len(found.examples) == 1
    assert torch.equal(found.confusion, 2 * confusion_of(model, [(image, labels)]))
    with torch.no_grad():
        output = model(image[None])
    assert found.feature_classes[0].tolist() == [0, 1, 2]
    sums, _ = reference.class_sums(output.query, labels[None], 4)
    means = torch.nn.functional.normalize(sums[:3], dim=1)
    torch.testing.assert_close(found.features[0], means)
    pixels, confidence, right = found.reliability / 2
    # By hand: the coarse logits against the labels at their middles.
    probability, guess = output.logits[0].softmax(dim=0).max(dim=0)
    truth = labels[2::4, 2::4]
    kept = truth != 255
    for k in range(4):
        own = kept & (guess == k)
        assert pixels[k].sum() == own.sum()
        assert right[k].sum() == (own & (truth == k)).sum()
        torch.testing.assert_close(confidence[k].sum(), probability[own].double().sum())
    mean = confidence[pixels > 0] / pixels[pixels > 0]
    which = (pixels > 0).nonzero()[:, 1]
    assert ((mean * BINS).long().clamp_max(BINS - 1) == which).all()
    weighted = (pixels * (confidence / pixels - right / pixels).abs().nan_to_num()).sum(1)
    torch.testing.assert_close(
        found.calibration_error(), weighted / pixels.sum(1), equal_nan=True
    )  # fmt: skip


def test_figures_show_their_numbers() -> None:
    confusion = torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    classes = CITYSCAPES.numbered(3)
    panel = confusion_figure({"a": confusion}, classes).axes[0]
    assert [text.get_text() for text in panel.texts] == ["75", "25", "100"]
    slots = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, -1.0]])
    panel = similarity_figure(slots, classes).axes[0]
    shown = [text.get_text().removeprefix("-") for text in panel.texts]
    assert shown == ["1.0", "1.0", "0.0", "1.0", "1.0", "0.0", "0.0", "0.0", "1.0"]


def test_too_few_points_have_no_map() -> None:
    model = build_model("deeplabv3plus_r18", 3, memory=False).eval()
    image, labels = torch.randn(3, 64, 64), torch.zeros(64, 64, dtype=torch.uint8)
    found = {"a": gather(model, [(image, labels)])}
    classes = CITYSCAPES.numbered(3)
    assert tsne_figure(found, None, classes) is None
    assert len(reliability_figure(found, classes).axes) == 5


def test_a_run_ends_with_its_page(tmp_path: Path, monkeypatch, capsys) -> None:
    options = tiny_run(tmp_path / "run", iterations=1, page_images=1)
    trainer = Trainer(TrainConfig(**options))
    scores = trainer.fit()
    text = (tmp_path / "run/page/report.html").read_text()
    assert "of the last validation" in text and "hard_augmentation" in text
    assert sorted(scores) == ["seen/gtav", "seen/synthia", "unseen/cityscapes"]
    assert all(f'<td class="number">{100 * value:.2f}</td>' in text for value in scores.values())
    assert (tmp_path / "run/page/activation-unseen-cityscapes.png").exists()
    monkeypatch.setitem(sys.modules, "sklearn", None)
    trainer.out = trainer.report.out = tmp_path / "other"
    trainer.report.page(trainer.model, trainer.validation)
    assert not (tmp_path / "other").exists()
    assert (
        "no page of pictures: the page needs sklearn: pip install"
        in (tmp_path / "run/log.txt").read_text()
    )
