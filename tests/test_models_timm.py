"""timm's backbones: names, weights, strides, sizes, and how images are normalised for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from pinmem.models import build_model
from pinmem.models.timm_backbone import TimmBackbone
from pinmem.recompute import recomputing


@pytest.mark.parametrize(
    ("name", "channels", "stride", "sizes"),
    [
        # Low-level map, stage 3 and 4 of an image of 64x96: as timm has them.
        ("test_convnext", (24, 48, 64), 32, [(16, 24), (4, 6), (2, 3)]),
        ("test_efficientnet", (24, 48, 64), 32, [(16, 24), (4, 6), (2, 3)]),
        # A plain transformer: patches of 16, and a neck to a quarter.
        ("test_vit", (16, 64, 64), 16, [(16, 24), (4, 6), (4, 6)]),
    ],
)
def test_maps_have_the_channels_and_sizes_that_are_announced(name, channels, stride, sizes) -> None:
    backbone = TimmBackbone(name).eval()
    maps = backbone(torch.randn(1, 3, 64, 96))[:3]
    assert (backbone.channels, backbone.output_stride) == (channels, stride)
    assert [tuple(m.shape) for m in maps] == [
        (1, c, *size) for c, size in zip(channels, sizes, strict=True)
    ]


def test_a_transformer_takes_any_size_and_its_maps_are_normalised() -> None:
    backbone = TimmBackbone("test_vit").eval()
    for height, width in ((64, 96), (65, 97), (160, 160), (31, 200)):
        maps = backbone(torch.randn(2, 3, height, width))
        assert maps.stage4.shape[-2:] == (-(-height // 16), -(-width // 16))
        # The last layer normalisation, which starts with scale 1 and offset 0.
        assert maps.stage4.mean(1).abs().max() < 1e-5


def test_position_embeddings_are_resized_to_the_crop() -> None:
    backbone = TimmBackbone("test_vit").eval()
    image = torch.zeros(1, 3, 64, 96)
    with torch.no_grad():
        backbone.net.net.pos_embed.zero_()
        flat = backbone(image).stage4
        # Without positions all of an even image looks alike.
        torch.testing.assert_close(flat, flat[..., :1, :1].expand_as(flat))
        rows = torch.linspace(-1, 1, 10).repeat_interleave(10)[:, None]
        backbone.net.net.pos_embed[0, -100:] = rows * torch.randn(64)
        varied = backbone(image).stage4
    assert (varied[..., 0, :] - varied[..., 1, :]).abs().max() > 1e-3


def test_the_stride_may_be_asked_for_where_timm_can() -> None:
    assert build_model("timm:test_resnet", 5, output_stride=16).output_stride == 16
    assert build_model("timm:test_vit", 5, output_stride=16).output_stride == 16
    for name, stride in (("test_vit", 8), ("test_resnet", 5)):
        with pytest.raises(ValueError, match=f"^output_stride: got {stride}, which timm does not"):
            build_model(f"timm:{name}", 5, output_stride=stride)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("convnext_tinyy", "which timm does not have, did you mean 'timm:convnext_tiny'"),
        ("test_vit.imagenet", "which timm does not have, did you mean 'timm:test_vit"),
        ("hiera_tiny_224", "which takes images of one size only"),
    ],
)
def test_a_name_that_is_of_no_use_is_explained(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^name: got 'timm:{name}', {message}"):
        build_model(f"timm:{name}", 5)


def test_weights_come_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = timm.create_model("test_vit")
    path = tmp_path / "vit.pth"
    torch.save(source.state_dict(), path)
    torch.manual_seed(1)
    net = TimmBackbone("test_vit", weights=str(path)).net.net
    for key, value in net.state_dict().items():
        assert torch.equal(value, source.state_dict()[key]), key
    with pytest.raises(ValueError, match=r"^weights: got 'absent\.pth', expected None, 'imagenet'"):
        TimmBackbone("test_vit", weights="absent.pth")
    with pytest.raises(ValueError, match=r"^weights: timm could not load .*vit\.pth for test_conv"):
        TimmBackbone("test_convnext", weights=str(path))


def test_images_are_normalised_as_the_model_was_trained() -> None:
    mean, std = (
        torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    pixels = torch.rand(1, 3, 32, 32)
    backbone = TimmBackbone("vit_tiny_patch16_224").eval()  # trained with 0.5, 0.5
    given = []
    backbone.net.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    backbone((pixels - mean) / std)
    torch.testing.assert_close(given[0], (pixels - 0.5) / 0.5, atol=1e-5, rtol=1e-5)
    assert TimmBackbone("convnext_atto").renormalize is None


def test_stages_are_what_takes_one_tensor() -> None:
    """HRNet's own Sequentials hand on lists: they, and what lies in them, are no stages."""
    backbone = TimmBackbone("hrnet_w18_small").eval()
    images = torch.randn(1, 3, 64, 64)
    with recomputing(backbone.stages()):
        again = backbone(images)
    plain = backbone(images)
    assert len(backbone.stages()) > 3
    for one, other in zip(again[:3], plain[:3], strict=True):
        assert torch.equal(one, other)
