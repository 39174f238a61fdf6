"""Every named network: a step in every mode, evaluation, prediction, freezing, second order."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torchvision
from torch import Tensor, nn

from pinmem.losses import LossWeights
from pinmem.meta import joint_step, mldg_step
from pinmem.models import MODEL_NAMES, build_model
from pinmem.models.backbones import MobileNetV2Backbone, ShuffleNetV2Backbone
from pinmem.models.whitening import InstanceNormResNet, covariances, sensitive_covariances
from pinmem.passes import Batch, evaluating
from pinmem.predict import predict
from pinmem.recompute import frozen_statistics, recomputing

# Small models of timm's own tests: a pyramid, one with BatchNorm, and two plain transformers.
TIMM = ("timm:test_convnext", "timm:test_efficientnet", "timm:test_vit", "timm:test_vit2")
NETWORKS = (*MODEL_NAMES, *TIMM)
CLASSES = 5
SIZE = (33, 49)


def batch(seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(2, 3, *SIZE, generator=generator)
    labels = torch.randint(0, CLASSES, (2, *SIZE), generator=generator, dtype=torch.uint8)
    return Batch(images, labels)


def build(name: str, memory: bool = True, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return build_model(name, CLASSES, memory, **options)


@pytest.mark.parametrize(
    ("name", "memory"),
    [(n, m) for n in NETWORKS for m in (True, False) if m or not n.endswith("r101")],
)
def test_every_network_trains_evaluates_and_predicts(name: str, memory: bool) -> None:
    model = build(name, memory).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    slots = model.memory.memory.clone() if memory else None
    without: set[str] = set()

    def look(*_: object) -> None:
        without.update(key for key, p in model.named_parameters() if not p.grad.any())

    hook = optimizer.register_step_pre_hook(look)
    losses = [joint_step(model, optimizer, batch())]
    hook.remove()
    # What attention and batch normalisation take out again.
    assert all(key.endswith(("bias", "cls_token")) for key in without), without
    losses += mldg_step(model, optimizer, batch(1), batch(2), 1e-3)
    assert all(math.isfinite(loss.total) for loss in losses)
    assert slots is None or not torch.equal(slots, model.memory.memory)
    labels = predict(model, batch(3).images[0])
    assert labels.shape == SIZE and labels.max() < CLASSES
    with torch.no_grad(), evaluating(model):
        output = model(batch(3).images)
    assert output.aux_logits is None and (output.scores is not None) == memory
    assert output.logits.isfinite().all()


@pytest.mark.parametrize(
    ("name", "frozen"),
    [
        ("deeplabv3plus_shufflenetv2", False),
        ("timm:test_vit", False),
        ("timm:test_vit", True),
    ],
)
def test_lean_second_order_has_the_gradient_of_the_kept_graph(name: str, frozen: bool) -> None:
    steps = []
    for order, lean in ((1, False), (2, False), (2, True)):
        model = build(name).double().train()
        model.memory.memory.copy_(nn.functional.normalize(model.memory.memory, dim=1))
        for module in model.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.p = 0.0
        if frozen:
            model.freeze_backbone()
        before = [p.detach().clone() for p in model.parameters()]
        sides = [Batch(b.images.double(), b.labels) for b in (batch(1), batch(2))]
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        mldg_step(model, optimizer, *sides, 0.1, order=order, lean=lean)
        steps.append([b - p.detach() for b, p in zip(before, model.parameters(), strict=True)])
    first, kept, lean_kept = (torch.cat([s.flatten() for s in step]) for step in steps)
    # Two images, normalised over two pooled values, amplify rounding.
    assert (kept - lean_kept).abs().max() <= 1e-10 * kept.abs().max()
    assert (kept - first).abs().max() > 1e-3 * kept.abs().max()


def test_hard_sigmoids_of_timm_differentiate_twice() -> None:
    net = build("timm:mobilenetv3_small_050").backbone.net
    assert not any(isinstance(m, nn.Hardsigmoid) for m in net.modules())
    (gate,) = {type(m) for m in net.modules() if type(m).__name__ == "_HardSigmoid"}
    x = torch.linspace(-5, 5, 50, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(gate()(x), nn.functional.hardsigmoid(x))
    assert torch.autograd.gradgradcheck(lambda x: gate()(x) * x, x)


@pytest.mark.parametrize("name", ["deeplabv3plus_mobilenetv2", "timm:test_vit"])
def test_a_frozen_backbone_keeps_its_weights_and_statistics(name: str) -> None:
    model = build(name).train()
    model.freeze_backbone()
    frozen = model.backbone.pretrained()
    assert set(model.state_dict()) == set(build(name).state_dict())
    assert not any(p.requires_grad for p in frozen.parameters())
    before = copy.deepcopy(frozen.state_dict())
    heads = [model.aspp, model.decoder, model.classifier, model.memory]
    heads += [model.backbone.neck] if name.startswith("timm") else []
    starts = [next(head.parameters()).detach().clone() for head in heads]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, weight_decay=0.1)
    joint_step(model, optimizer, batch())
    mldg_step(model, optimizer, batch(1), batch(2), 1e-3)
    assert all(torch.equal(value, before[key]) for key, value in frozen.state_dict().items())
    for head, start in zip(heads, starts, strict=True):
        assert not torch.equal(next(head.parameters()), start)
    assert not any(module.training for module in frozen.modules())
    assert model.aspp.training and model.training
    model.eval().train()
    assert not frozen.training


# The mobile networks


@pytest.mark.parametrize(
    ("backbone", "channels"),
    [(MobileNetV2Backbone, (32, 320, 1280)), (ShuffleNetV2Backbone, (116, 464, 1024))],
)
@pytest.mark.parametrize(("stride", "sizes"), [(8, (8, 8)), (16, (4, 4)), (32, (2, 2))])
def test_mobile_networks_have_the_published_widths_and_strides(
    backbone, channels, stride: int, sizes: tuple[int, int]
) -> None:
    net = backbone(stride).eval()
    maps = net(torch.randn(1, 3, 64, 64))
    shapes = [tuple(m.shape) for m in (maps.low_level, maps.stage3, maps.stage4)]
    assert net.channels == channels
    assert shapes == [
        (1, channels[0], 8, 8), (1, channels[1], *sizes), (1, channels[2], *sizes),
    ]  # fmt: skip
    # Only what strode is dilated.
    dilated = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.dilation != (1, 1)]
    per_stage = 1 if backbone is MobileNetV2Backbone else 2
    assert len(dilated) == {8: 2, 16: 1, 32: 0}[stride] * per_stage


@pytest.mark.parametrize(
    ("backbone", "name"),
    [(MobileNetV2Backbone, "mobilenet_v2"), (ShuffleNetV2Backbone, "shufflenet_v2_x1_0")],
)
def test_undilated_mobile_networks_are_torchvisions_and_load_its_files(
    backbone, name: str, tmp_path
) -> None:
    reference = torchvision.models.get_model(name).eval()
    torch.save(reference.state_dict(), tmp_path / "weights.pth")
    net = backbone(32, str(tmp_path / "weights.pth")).eval()
    images = torch.randn(1, 3, 64, 64)
    if name == "mobilenet_v2":
        expected = reference.features(images)
    else:
        expected = reference.maxpool(reference.conv1(images))
        expected = reference.stage4(reference.stage3(reference.stage2(expected)))
        expected = reference.conv5(expected)
    assert torch.equal(net(images).stage4, expected)


def test_a_file_of_other_weights_is_named(tmp_path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(torchvision.models.resnet18().state_dict(), path)
    with pytest.raises(ValueError, match=rf"^weights {path}: do not fit mobilenet_v2: \d+ missing"):
        build_model("deeplabv3plus_mobilenetv2", weights=str(path))
    with pytest.raises(ValueError, match=r"^weights: got 'absent\.pth', expected None .*or a file"):
        build_model("deeplabv3plus_mobilenetv2", weights="absent.pth")


# Instance normalisation and whitening


def test_instance_normalisation_is_where_robustnet_has_it() -> None:
    images = torch.randn(2, 3, 64, 64)
    for whitening in (False, True):
        net = InstanceNormResNet(16, whitening=whitening).eval()
        norms = [n for n, m in net.named_modules() if isinstance(m, nn.InstanceNorm2d)]
        layers = ["layer1.2.instance_norm_layer", "layer2.3.instance_norm_layer"]
        assert norms == ["bn1", *layers]
        assert [net.get_submodule(n).affine for n in norms] == [not whitening] * 3
        maps = net(images)
        assert len(maps.whitened) == (3 if whitening else 0)
        for standard in maps.whitened:
            torch.testing.assert_close(standard.mean((2, 3)), torch.zeros(standard.shape[:2]))
            deviation = standard.var((2, 3), correction=0)
            assert ((deviation - 1).abs() < 1e-2).all()
        assert maps.low_level.min() >= 0 and maps.low_level.shape == (2, 256, 16, 16)


def test_whitened_maps_have_their_gradient_when_stages_are_run_again() -> None:
    torch.manual_seed(0)
    net = InstanceNormResNet(16, whitening=True).double()
    for mask in net.masks:
        mask.fill_(True).triu_(1)
    images = torch.randn(2, 3, 33, 33, dtype=torch.float64)
    found = []
    for again in (False, True):
        with frozen_statistics(net), recomputing(net.stages() if again else []):
            maps = net(images)
            loss = net.whitening_loss(maps.whitened) + maps.stage4.square().mean()
            found.append(torch.autograd.grad(loss, list(net.parameters())))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    assert found[0][0].any()


def test_ibn_starts_from_the_pretrained_scales() -> None:
    torch.manual_seed(0)
    reference = torchvision.models.resnet50()
    nn.init.uniform_(reference.bn1.weight)
    nn.init.uniform_(reference.bn1.bias)
    import pinmem.models.backbones as backbones

    original = backbones.classifier
    try:
        backbones.classifier = lambda name, weights: reference
        expected = reference.bn1.weight.clone(), reference.bn1.bias.clone()
        net = InstanceNormResNet(16)
    finally:
        backbones.classifier = original
    assert torch.equal(net.bn1.weight, expected[0]) and torch.equal(net.bn1.bias, expected[1])


def test_the_whitening_loss_is_robustnets_formula() -> None:
    net = InstanceNormResNet(16, whitening=True).double()
    whitened = [torch.randn(2, c, 6, 5, dtype=torch.float64) for c in (64, 256, 512)]
    assert net.whitening_loss(whitened) == 0
    expected = 0.0
    for maps, mask in zip(whitened, net.masks, strict=True):
        mask.copy_((torch.rand(mask.shape) < 0.1).triu(1))
        for image in maps:
            flat = image.flatten(1)
            covariance = flat @ flat.T / (flat.shape[1] - 1)
            expected += float((covariance.abs() * mask).sum() / mask.sum()) / 2 / 3
    assert float(net.whitening_loss(whitened)) == pytest.approx(expected, rel=1e-12)


def test_sensitive_covariances_are_those_that_change_with_the_colours() -> None:
    net = InstanceNormResNet(16, whitening=True).double().eval()

    class Views(nn.Module):
        """Three maps, of which the channels 0 and 1 are correlated in one view alone."""

        def forward(self, images: Tensor) -> object:
            maps = torch.randn(2, 8, 40, 40, generator=torch.Generator().manual_seed(1)).double()
            if images.sum() > 0:
                maps[:, 1] = maps[:, 0]
            whitened = nn.functional.instance_norm(maps)
            return type("Maps", (), {"whitened": (whitened, whitened, whitened)})

    images = torch.ones(2, 3, 4, 4)
    masks = sensitive_covariances(Views(), [(images, -images)])
    for mask in masks:
        changed = {(int(i), int(j)) for i, j in mask.nonzero()}
        assert (0, 1) in changed and all(i in (0, 1) or j == 1 for i, j in changed), changed
    real = sensitive_covariances(
        net, [(torch.randn(1, 3, 32, 32).double(), torch.randn(1, 3, 32, 32).double())]
    )
    for mask in real:
        assert mask.any() and not mask.tril().any()
        assert mask.sum() < mask.triu(1).numel() / 2


def test_covariances_are_of_each_image() -> None:
    maps = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    maps = nn.functional.instance_norm(maps)
    expected = torch.stack([image.flatten(1).cov() for image in maps])
    torch.testing.assert_close(covariances(maps), expected + 1e-5 * torch.eye(3).double())


def test_the_whitening_loss_trains_in_every_mode() -> None:
    weights = LossWeights(whitening=1e4)
    for step in ("joint", "mldg"):
        moved = []
        for whitens in (False, True):
            model = build("deeplabv3plus_r50_isw").train()
            for mask in model.backbone.masks if whitens else ():
                mask.fill_(True).triu_(1)
            optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
            start = model.backbone.conv1.weight.detach().clone()
            if step == "joint":
                joint_step(model, optimizer, batch(), weights)
            else:
                mldg_step(model, optimizer, batch(1), batch(2), 1e-3, weights)
            moved.append(model.backbone.conv1.weight.detach() - start)
        assert (moved[1] - moved[0]).abs().max() > 1e-3 * moved[0].abs().max()
