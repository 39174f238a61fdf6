"""Batch normalisation in the convolutions before it, while a network is measured."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pinmem.backends import backend
from pinmem.evaluation import folded, folding
from pinmem.models import Segmenter, build_model


def trained_like(name: str, memory: bool = True) -> Segmenter:
    """A network whose normalisation does something."""
    model = build_model(name, 5, memory).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return model


@pytest.mark.parametrize(
    "name",
    ["deeplabv3plus_r18", "deeplabv3plus_mobilenetv2", "deeplabv3plus_shufflenetv2",
     "deeplabv3plus_r50_ibn", "timm:resnet10t"],
)  # fmt: skip
@torch.no_grad()
def test_the_logits_are_the_same_and_so_is_the_network_after(name: str) -> None:
    model, images = trained_like(name), torch.randn(2, 3, 64, 96, dtype=torch.float64)
    before = {key: (value, value.clone()) for key, value in model.state_dict().items()}
    modules, expected = list(model.modules()), model(images).logits
    with folded(model):
        left = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
        total = sum(isinstance(module, nn.BatchNorm2d) for module in modules)
        got = model(images).logits
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    # Left are the memory's two and the auxiliary head's, which do not run or follow no convolution.
    assert left <= 4 < total or name == "timm:resnet10t"
    assert list(map(id, model.modules())) == list(map(id, modules))
    after = model.state_dict()
    assert list(after) == list(before)
    for key, (value, content) in before.items():
        assert after[key].data_ptr() == value.data_ptr() and torch.equal(after[key], content)


class Shared(nn.Module):
    """A convolution whose result is used beside its normalisation."""

    def __init__(self, model: Segmenter) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1).double(), nn.BatchNorm2d(3).double()
        self.norm.running_var.fill_(9.0)
        self.backbone = model.backbone
        self.channels, self.output_stride = model.backbone.channels, model.backbone.output_stride

    def forward(self, images: torch.Tensor):
        maps = self.conv(images)
        return self.backbone(self.norm(maps) + maps)


@torch.no_grad()
def test_a_result_that_others_read_is_not_folded() -> None:
    model, images = trained_like("deeplabv3plus_r18"), torch.randn(1, 3, 64, 96).double()
    model.backbone = Shared(model).eval()
    expected = model(images).logits
    with folded(model):
        assert torch.equal(model(images).logits, expected)


@torch.no_grad()
def test_after_an_error_the_network_is_as_it_was() -> None:
    model, images = trained_like("deeplabv3plus_r18"), torch.randn(1, 3, 64, 96).double()
    expected = model(images).logits
    with pytest.raises(RuntimeError, match="by hand"), folded(model):
        raise RuntimeError("by hand")
    assert torch.equal(model(images).logits, expected)
    assert model.memory is not None
    model.memory.gumbel = "always"
    with folded(model):
        assert any(isinstance(module, nn.BatchNorm2d) for module in model.backbone.modules())


class Passes(TorchDispatchMode):
    """How often maps are rectified or added on their own."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        self.count += name.startswith(("aten.relu", "aten.clamp", "aten.hardtanh", "aten.add"))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("name", "before", "left"),
    [
        ("deeplabv3plus_r18", 36, 2),  # the memory's own
        ("deeplabv3plus_r50", 76, 2),
        ("deeplabv3plus_mobilenetv2", 56, 12),  # sums without a ReLU
        ("deeplabv3plus_shufflenetv2", 48, 2),
        ("deeplabv3plus_r50_ibn", 76, 11),
        ("deeplabv2_r101", 143, 5),
    ],
)
@torch.no_grad()
def test_convolutions_add_and_rectify_as_they_write(name: str, before: int, left: int) -> None:
    model = trained_like(name).float().to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 64, 96)

    def passes() -> int:
        with Passes() as counted, backend("reference"):
            model(images)
        return counted.count

    expected = model(images).logits
    largest = float(expected.abs().max())
    forwards = [module.forward for module in model.modules()]
    assert passes() == before
    with folded(model):
        assert passes() == left
        got = model(images).logits
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(images).logits.float()
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * largest)
    assert (rough - expected).abs().max() < 0.1 * largest
    assert [module.forward for module in model.modules()] == forwards
    assert passes() == before


@torch.no_grad()
def test_an_operator_that_gives_something_else_is_not_used(monkeypatch) -> None:
    model = trained_like("deeplabv3plus_r18").float()
    images = torch.randn(1, 3, 64, 96)
    expected = model(images).logits
    monkeypatch.setattr(folding, "fused", lambda _: [(model.classifier, lambda maps: maps[:, :5])])
    with folded(model):
        assert "forward" not in vars(model.classifier)
        torch.testing.assert_close(model(images).logits, expected, rtol=1e-3, atol=1e-3)
