"""Conversions keep the bits, refuse what they cannot write, and replace nothing unasked."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from pinmem import checkpoint, convert
from pinmem.checkpoint import open_trained, read_weights
from pinmem.data import Classes
from pinmem.models import build_model

from .test_checkpoint import CONFIG, NAME, assert_same, published, small, trained


def run(monkeypatch: pytest.MonkeyPatch, source: Path, out: Path, form: str, *more: str) -> None:
    options = ["--checkpoint", str(source), "--out", str(out), "--format", form, *more]
    monkeypatch.setattr(sys, "argv", ["convert", *options])
    convert.main()


@pytest.mark.parametrize("memory", [True, False])
def test_a_round_trip_through_every_format_keeps_the_bits(
    memory: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small(memory)
    model(torch.randn(2, 3, 65, 65))  # moves the running statistics
    model = model.to(memory_format=torch.channels_last)
    first = published(tmp_path / "a.pth", model)
    steps = [("b.pt", "pinmem"), ("c.safetensors", "safetensors"), ("d.pt", "pinmem")]
    source = first
    for name, form in [*steps, ("e.pth", "published")]:
        more = ("--model", NAME) if source is first else ()
        run(monkeypatch, source, tmp_path / name, form, *more)
        source = tmp_path / name
        if form != "published":
            assert_same(open_trained(source)[0], model)
    before, after = (
        torch.load(p, weights_only=False) for p in (tmp_path / "a.pth", tmp_path / "e.pth")
    )
    assert set(before["state_dict"]) == set(after["state_dict"])
    for name, tensor in before["state_dict"].items():
        assert tensor.dtype == after["state_dict"][name].dtype
        assert torch.equal(tensor, after["state_dict"][name]), name
    assert ("memory" in after) == memory
    assert not memory or torch.equal(before["memory"], after["memory"])
    assert (after["epoch"], after["mean_iu"]) == (12, 0.41)


def test_safetensors_hold_configuration_and_classes_in_their_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes = Classes(tuple("abcde"), tuple((i, 2 * i, 3 * i) for i in range(5)))
    content = {"model": small().state_dict(), "config": CONFIG, "classes": classes.state()}
    checkpoint.save(tmp_path / "a.pt", content)
    run(monkeypatch, tmp_path / "a.pt", tmp_path / "a.safetensors", "safetensors")
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert set(file.keys()) == set(content["model"])
        assert json.loads(file.metadata()["pinmem"])["config"] == CONFIG
    assert open_trained(tmp_path / "a.safetensors")[1] == classes


def test_networks_that_were_never_published_have_no_published_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "timm:test_vit"
    source = trained(tmp_path / "a.pt", build_model(name, 5), model=name)
    with pytest.raises(ValueError, match=r"name: got 'backbone\..*no counterpart"):
        run(monkeypatch, source, tmp_path / "b.pth", "published")
    assert not (tmp_path / "b.pth").exists()
    run(monkeypatch, source, tmp_path / "b.safetensors", "safetensors")
    assert read_weights(tmp_path / "b.safetensors").config["model"] == name


def test_nothing_is_replaced_unasked_nor_named_wrongly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = trained(tmp_path / "a.pt", small())
    out = tmp_path / "b.pt"
    out.write_text("mine")
    with pytest.raises(ValueError, match=r"out: .*b\.pt exists; --overwrite true"):
        run(monkeypatch, source, out, "pinmem")
    assert out.read_text() == "mine"
    run(monkeypatch, source, out, "pinmem", "--overwrite", "true")
    assert_same(open_trained(out)[0], small())
    for name, form in (("c.safetensors", "pinmem"), ("c.pt", "safetensors")):
        with pytest.raises(ValueError, match=r"out: got .*c\..*\.safetensors for that format"):
            run(monkeypatch, source, tmp_path / name, form)


def test_weights_that_are_not_finite_are_not_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small()
    with torch.no_grad():
        model.classifier.bias[0] = float("nan")
    source = trained(tmp_path / "a.pt", model)
    with pytest.raises(ValueError, match=r"a\.pt: .*1 not finite: classifier\.bias"):
        run(monkeypatch, source, tmp_path / "b.pt", "pinmem")
    assert not (tmp_path / "b.pt").exists()
