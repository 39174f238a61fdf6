"""The networks: shapes, output strides, memory, gradients, initial weights."""

from __future__ import annotations

import math
from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import Tensor, nn

from pinmem.models import MODEL_NAMES, Segmenter, build_model
from pinmem.models.backbones import ResNetBackbone


def build_r18(memory: bool = True, seed: int = 0, **options) -> Segmenter:
    torch.manual_seed(seed)
    return build_model("deeplabv3plus_r18", memory=memory, **options)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 97, 129, generator=torch.Generator().manual_seed(1))


# Shapes


@pytest.mark.parametrize(
    ("name", "output_stride", "query_stride", "stage3_stride", "logits_stride"),
    [
        ("deeplabv3plus_r18", None, 32, 16, 4),
        ("deeplabv3plus_r18", 16, 16, 16, 4),
        ("deeplabv3plus_r18", 8, 8, 8, 4),
        ("deeplabv3plus_r50", None, 16, 16, 4),
        ("deeplabv3plus_r50", 8, 8, 8, 4),
        ("deeplabv3plus_r50", 32, 32, 16, 4),
        ("deeplabv3plus_r101", None, 16, 16, 4),
        ("deeplabv2_r101", None, 8, 8, 8),
    ],
)
def test_shapes_follow_the_output_stride(
    name, output_stride, query_stride, stage3_stride, logits_stride
):
    with torch.device("meta"):
        model = build_model(name, 7, memory=False, output_stride=output_stride)
        images = torch.empty(2, 3, 97, 129)
        out, full = model(images), model.predict(images)

    def map_size(stride):
        return (math.ceil(97 / stride), math.ceil(129 / stride))

    assert model.output_stride == query_stride
    assert out.query.shape == (2, 256, *map_size(query_stride))
    assert out.aux_logits.shape == (2, 7, *map_size(stage3_stride))
    assert out.logits.shape == (2, 7, *map_size(logits_stride))
    assert out.scores is None
    assert full.shape == (2, 7, 97, 129)


def test_memory_scores_have_the_resolution_of_the_query(images):
    model = build_model("deeplabv3plus_r18", 5).eval()
    with torch.no_grad():
        out = model(images)
    assert out.scores.shape == (2, 5, *out.query.shape[-2:])
    assert out.scores.abs().max() <= 1 + 1e-5  # cosines


def test_decode_of_encode_is_forward(images):
    model = build_r18().eval()
    with torch.no_grad():
        expected = model(images)
        out = model.decode(model.encode(images))
    assert torch.equal(out.logits, expected.logits)
    assert torch.equal(out.scores, expected.scores)
    assert torch.equal(out.query, expected.query)


def test_encode_needs_no_decoder_and_no_auxiliary_head(images):
    model = build_r18()
    called = []
    for name in ("decoder", "classifier", "aux_head", "low_level", "memory"):
        getattr(model, name).register_forward_hook(lambda *_, name=name: called.append(name))
    model.encode(images)
    assert called == []


def test_auxiliary_logits_in_training_only(images):
    model = build_r18()
    assert model.train()(images).aux_logits.shape == (2, 19, 7, 9)
    assert model.eval()(images).aux_logits is None


def test_predict_upsamples_with_corners_aligned(images):
    model = build_r18().eval()
    with torch.no_grad():
        logits, full = model(images).logits, model.predict(images)
    assert full.shape == (2, 19, 97, 129)
    # 97 = 4*24 + 1 and 129 = 4*32 + 1: every fourth pixel is a pixel of the logits.
    torch.testing.assert_close(full[..., ::4, ::4], logits)


def test_channels_last_gives_the_same_result(images):
    model = build_r18().double().eval()
    pyramids = []
    model.aspp.register_forward_hook(lambda _, args, output: pyramids.append(output))
    with torch.no_grad():
        expected = model(images.double())
        model = model.to(memory_format=torch.channels_last)
        out = model(images.double().contiguous(memory_format=torch.channels_last))
    assert pyramids[0].is_contiguous()
    assert pyramids[1].is_contiguous(memory_format=torch.channels_last)
    assert out.query.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out.logits, expected.logits)
    torch.testing.assert_close(out.scores, expected.scores)


@pytest.mark.parametrize(
    "images", [torch.zeros(3, 8, 8), torch.zeros(1, 4, 8, 8), torch.zeros(1, 3, 8, 8).byte()]
)
def test_encode_names_wrong_images(images):
    with pytest.raises(ValueError, match=r"^images: got torch\.\w+ \[.*expected floating point"):
        build_r18()(images)


# Dilation


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize(("output_stride", "stage3", "stage4"), [(16, 1, 2), (8, 2, 4)])
def test_a_dilated_stage_dilates_its_first_block_too(name, output_stride, stage3, stage4):
    with torch.device("meta"):
        backbone = ResNetBackbone(name, output_stride)
    for stage, dilation in ((backbone.layer3, stage3), (backbone.layer4, stage4)):
        convs = [m for m in stage.modules() if isinstance(m, nn.Conv2d)]
        wide = [m for m in convs if m.kernel_size == (3, 3)]
        assert len(wide) >= 3
        assert all(m.dilation == m.padding == (dilation, dilation) for m in wide)
        assert dilation == 1 or all(m.stride == (1, 1) for m in convs)


def test_undilated_backbone_is_torchvisions(images):
    reference = torchvision.models.resnet18()
    backbone = ResNetBackbone("resnet18", 32)
    backbone.load_state_dict(reference.state_dict(), strict=False)
    expected = images
    for module in list(reference.children())[:-2]:
        expected = module(expected)
    assert torch.equal(backbone(images).stage4, expected)


def test_deeplabv2_strides_in_the_first_convolution_of_stage_2():
    with torch.device("meta"):
        block = build_model("deeplabv2_r101").backbone.layer2[0]
    assert (block.conv1.stride, block.conv2.stride) == ((2, 2), (1, 1))
    assert block.downsample[0].stride == (2, 2)


def test_pyramid_rates_scale_with_the_output_stride():
    for output_stride, rates in ((8, [12, 24, 36]), (16, [6, 12, 18]), (32, [3, 6, 9])):
        with torch.device("meta"):
            aspp = build_model("deeplabv3plus_r18", output_stride=output_stride).aspp
        assert [branch[0].dilation[0] for branch in aspp.branches[1:]] == rates


# Gradients and the memory


def test_gradients_reach_every_weight_of_the_forward_pass(images):
    model = build_r18()
    out = model(images)
    (out.logits.square().mean() + out.aux_logits.square().mean() + out.scores.mean()).backward()
    writing = ("memory.write_", "memory.classifier.")
    for name, parameter in model.named_parameters():
        if name.startswith(writing):
            assert parameter.grad is None, name
        else:
            assert parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_a_given_memory_is_read_instead_of_the_stored_one(images):
    model = build_r18().eval()
    stored = model.memory.memory.clone()
    other = nn.functional.normalize(torch.randn(19, 256), dim=1).requires_grad_()
    out = model(images, other)
    assert not torch.equal(out.scores, model(images).scores)
    out.logits.square().mean().backward()
    assert other.grad.any()
    assert torch.equal(model.memory.memory, stored)
    with torch.no_grad():
        model.memory.memory.copy_(other)
    torch.testing.assert_close(model(images).logits, out.logits)


def test_memory_for_a_network_without_one_is_an_error(images):
    with pytest.raises(ValueError, match="memory: got a tensor, expected None"):
        build_r18(memory=False)(images, torch.zeros(19, 256))


def test_encode_differentiates_twice():
    torch.manual_seed(0)
    model = build_r18().double()
    query = model.encode(torch.randn(2, 3, 33, 33, dtype=torch.float64)).query
    weight = model.bottleneck[0].weight
    (grad,) = torch.autograd.grad(query.square().mean(), weight, create_graph=True)
    (second,) = torch.autograd.grad(grad.square().sum(), model.backbone.conv1.weight)
    assert second.isfinite().all() and second.any()


# Building


def test_unknown_model_names_the_nearest():
    with pytest.raises(ValueError) as error:
        build_model("deeplabv3_r50")
    assert "did you mean 'deeplabv3plus_r50'?" in str(error.value)
    assert all(name in str(error.value) for name in MODEL_NAMES)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("deeplabv3plus_r18", {"output_stride": 4}, "output_stride: got 4, expected 8 or 16 or 32"),
        ("deeplabv2_r101", {"output_stride": 16}, "output_stride: got 16, expected 8 for"),
        ("deeplabv3plus_r18", {"weights": "imagnet"}, "weights: got 'imagnet', expected None or"),
        ("deeplabv3plus_r18", {"num_classes": 0}, "num_classes: got 0, expected at least 1"),
    ],
)
def test_wrong_options_are_named(name, options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        build_model(name, **options)


@pytest.mark.parametrize(
    ("weights", "member"),
    [("imagenet", "IMAGENET1K_V1"), ("IMAGENET1K_V1", "IMAGENET1K_V1"), ("DEFAULT", "DEFAULT")],
)
def test_imagenet_weights_fill_the_backbone(monkeypatch, weights, member):
    reference = torchvision.models.resnet18().state_dict()
    asked = []

    def download(self, *args, **kwargs):
        asked.append(self)
        return reference

    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", download)
    state = build_r18(weights=weights).backbone.state_dict()
    assert asked == [torchvision.models.ResNet18_Weights[member]]
    assert set(reference) - set(state) == {"fc.weight", "fc.bias"}
    assert all(torch.equal(value, reference[key]) for key, value in state.items())


def test_no_download_unless_asked(monkeypatch):
    def download(self, *args, **kwargs):
        raise AssertionError("a download")

    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", download)
    build_r18()


def test_heads_start_as_published():
    model = build_r18()
    for head in (model.aspp, model.bottleneck, model.low_level, model.decoder, model.aux_head):
        for module in head.modules():
            if isinstance(module, nn.Conv2d):
                fan_in = module.weight[0].numel()
                assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.05)
                assert module.bias is None or not module.bias.any()
            elif isinstance(module, nn.BatchNorm2d):
                assert (module.weight == 1).all() and not module.bias.any()
    assert not model.classifier.bias.any()


def test_state_dict_round_trip(tmp_path, images):
    model, other = build_r18(), build_r18(seed=1)
    model(images)  # moves the running statistics
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    expected = model.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in other.state_dict().items())
    with torch.no_grad():
        assert torch.equal(other.eval().predict(images), model.eval().predict(images))


def test_weights_that_cannot_be_downloaded_are_one_line(monkeypatch):
    def get_model(name, weights=None):
        raise URLError("no such host")

    monkeypatch.setattr("torchvision.models.get_model", get_model)
    with pytest.raises(ValueError, match=r"^weights: got imagenet, which cannot be .* \(no such"):
        build_model("deeplabv3plus_r18", 5, weights="imagenet")
