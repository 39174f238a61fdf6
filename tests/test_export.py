"""Exported networks agree with eager at every size, and have plain operators alone."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pinmem import export
from pinmem.export import differences, onnx_bytes, onnx_runner, torch_program
from pinmem.models import Segmenter, build_model

from .test_checkpoint import published, trained
from .test_golden import HERE, build, close

onnx = pytest.importorskip("onnx")


@pytest.fixture(autouse=True)
def _float32_products() -> None:
    """In place of conftest's: torch.export cannot read the setting of convolutions alone."""


def network(name: str) -> Segmenter:
    torch.manual_seed(0)
    model = build_model(name, 5).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.8, 1.2)
    return model


# A ResNet, MobileNet's blocks and a network like DINOv2, whose patches do not divide the sizes.
@pytest.mark.parametrize("name", ["deeplabv3plus_r18", "timm:test_efficientnet", "timm:test_vit"])
def test_both_formats_agree_with_eager_at_two_sizes(name: str) -> None:
    # As a loaded network is.
    model = network(name).to(memory_format=torch.channels_last)
    program = torch_program(model)
    operators = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [operator for operator in operators if "pinmem" in operator]
    found = differences(model, program.module())
    content = onnx_bytes(program)
    domains = {node.domain for node in onnx.load_from_string(content).graph.node}
    assert domains == {""}
    assert len(found) == 2
    for results in (found, differences(model, onnx_runner(content))):
        assert max(results.values()) < 1e-5, results


def test_the_memory_is_exported() -> None:
    model = network("deeplabv3plus_r18")
    program = torch_program(model)
    with torch.no_grad():
        model.memory.memory.copy_(model.memory.memory.flip(0))
        model.memory.memory.mul_(-1)
    images = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        other = network("deeplabv3plus_r18").predict(images)
        torch.testing.assert_close(program.module()(images), model.predict(images))
        assert not torch.allclose(other, model.predict(images))


def run(monkeypatch: pytest.MonkeyPatch, source: Path, out: Path, *more: str) -> None:
    options = ["--checkpoint", str(source), "--out", str(out), *more]
    monkeypatch.setattr(sys, "argv", ["export", *options])
    export.main()


@pytest.mark.parametrize("form", ["torch_export", "onnx"])
def test_a_published_checkpoint_is_exported_with_the_golden_logits(
    form: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    golden = np.load(HERE / "eval_memory_r50.npz")
    source = published(tmp_path / "a.pth", build(golden, torch.float32)[0])
    out = tmp_path / ("a.onnx" if form == "onnx" else "a.pt2")
    run(monkeypatch, source, out, "--format", form, "--model", "deeplabv3plus_r50")
    assert capsys.readouterr().out.count("largest difference") == 2
    images = torch.from_numpy(golden["images"])
    if form == "onnx":
        logits = onnx_runner(out.read_bytes())(images)
    else:
        logits = torch.export.load(out).module()(images)
    close("logits", logits[:, :, ::3, ::3], golden["logits"], 1e-4)


def test_a_fixed_size_and_a_file_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = trained(tmp_path / "a.pt", network("deeplabv3plus_mobilenetv2"))
    out = tmp_path / "a.onnx"
    run(monkeypatch, source, out, "--format", "onnx", "--size", "[64, 96]")
    shape = onnx.load(out).graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_value for d in shape[1:]] == [3, 64, 96] and shape[0].dim_param
    with pytest.raises(ValueError, match=r"out: .*a\.onnx exists; --overwrite true"):
        run(monkeypatch, source, out, "--format", "onnx")


def test_what_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = trained(tmp_path / "a.pt", network("deeplabv3plus_mobilenetv2"))
    monkeypatch.setattr(export, "differences", lambda *_: {"a": 1e-6, "b": float("nan")})
    with pytest.raises(ValueError, match=r"out: not written: it differs by more than 0\.0001"):
        run(monkeypatch, source, tmp_path / "a.pt2", "--format", "torch_export")
    assert not (tmp_path / "a.pt2").exists()


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "timm"])
def test_an_absent_package_is_one_line_with_its_extra(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = trained(tmp_path / "a.pt", network("deeplabv3plus_mobilenetv2"))
    monkeypatch.setitem(sys.modules, package, None)
    extra = "timm" if package == "timm" else "export"
    with pytest.raises(ValueError, match=rf"needs {package}: pip install 'pinmem\[{extra}\]'"):
        if package == "timm":
            build_model("timm:test_vit")
        run(monkeypatch, source, tmp_path / "a.onnx", "--format", "onnx")
