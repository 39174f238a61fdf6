"""Every value read from a file is what its author stored, in every format a label comes in."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from examples.streets.png16 import encode_png16
from pinmem.data import DataError, build_dataset, colorize, known_datasets
from pinmem.data.cityscapes_classes import LABELS, PALETTE
from pinmem.data.decode import Polygons, Raw, image_size, read_image, read_label
from tests.data_files import (
    filtered_png16,
    grey_png,
    gtav_tree,
    interlaced_png,
    label_ids,
    picture,
    target,
    write,
    write_palette,
)
from tests.data_trees import palette_anew


def encoding(name: str, layout: int = 0):
    return known_datasets()[name].layouts[layout].encoding


IMAGE, LABEL = "images/train/a/00002.png", "labels/train/a/00002.png"


def test_gtav_labels_in_colour(tmp_path):
    write(gtav_tree(tmp_path) / LABEL, colorize(target(1)))
    _, labels = build_dataset("gtav", tmp_path, "train")[1]
    assert labels.dtype == torch.uint8
    assert np.array_equal(labels.numpy(), target(1))


def test_gtav_colours_of_every_label():
    """Untrained labels are ignored, but for those that share a colour with a trained one."""
    colors = np.array([[row.color for row in LABELS]], dtype=np.uint8)
    expected = [5 if row.name == "polegroup" else row.train_id for row in LABELS]
    gtav = encoding("gtav")
    assert gtav(Raw(colors))[0].tolist() == expected
    alpha = np.concatenate([colors, np.full_like(colors[:, :, :1], 255)], axis=2)
    assert gtav(Raw(alpha))[0].tolist() == expected


@pytest.mark.parametrize("options", [{}, {"bits": 8}, {"transparency": 0}, {"optimize": True}])
def test_palette_indices_are_raw(tmp_path, options):
    """Fewer bits an index, or a transparent colour: the index is what counts."""
    path = write_palette(tmp_path / "a.png", label_ids(target()), **options)
    assert np.array_equal(read_label(path).samples, label_ids(target()))


def test_palette_of_four_bits(tmp_path):
    indices = np.arange(60, dtype=np.uint8).reshape(6, 10) % 13
    path = write_palette(tmp_path / "a.png", indices, bits=4)
    assert path.read_bytes()[24] == 4
    assert np.array_equal(read_label(path).samples, indices)


def test_all_filters_of_16_bit_colour(tmp_path):
    samples = np.random.default_rng(0).integers(0, 65536, (11, 7, 3)).astype(np.uint16)
    path = tmp_path / "a.png"
    for data in (filtered_png16(samples), encode_png16(samples), interlaced_png(samples)):
        path.write_bytes(data)
        raw = read_label(path).samples
        assert raw.dtype == np.uint16
        assert np.array_equal(raw, samples)


def test_16_bit_grey(tmp_path):
    codes = np.arange(60, dtype=np.uint16).reshape(6, 10) % 23
    for name in ("a.png", "a.tif"):
        raw = read_label(write(tmp_path / name, codes))
        assert np.array_equal(raw.samples, codes)
        assert encoding("synthia")(raw).dtype == np.uint8


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_grey_of_fewer_bits_is_not_stretched(tmp_path, depth):
    values = (np.arange(90, dtype=np.uint8) % (1 << depth)).reshape(6, 15)
    path = tmp_path / "a.png"
    path.write_bytes(grey_png(values, depth))
    samples = read_label(path).samples
    assert samples.dtype == np.uint8
    assert np.array_equal(samples, values)


def test_a_palette_is_read_by_colour_where_the_index_disagrees(tmp_path):
    """Another program saves a label again, and orders the palette anew."""
    path = gtav_tree(tmp_path) / LABEL
    palette_anew(path, target(1))
    assert not np.array_equal(read_label(path).samples, label_ids(target(1)))
    _, labels = build_dataset("gtav", tmp_path, "train")[1]
    assert np.array_equal(labels.numpy(), target(1))


def test_every_kind_of_palette_label_ordered_anew(tmp_path):
    """Mapillary's own palette, and trainIds painted in Cityscapes' colours."""
    mapillary = encoding("mapillary")
    colors = {min(of): color for color, of in reversed(mapillary.colors.items())}
    codes = {train_id: raw for raw, train_id in reversed(mapillary.values.items())}
    for name, table, read in (
        ("mapillary", codes, mapillary),
        ("bdd100k", {k: k for k in range(19)} | {255: 255}, encoding("bdd100k")),
    ):
        palette = np.zeros((256, 3), dtype=np.uint8)
        for train_id, raw in table.items():
            palette[raw] = (
                colors[train_id]
                if name == "mapillary"
                else (*PALETTE, (0, 0, 0))[min(train_id, 19)]
            )
        lookup = np.zeros(256, dtype=np.uint8)
        lookup[list(table)] = list(table.values())
        image = Image.fromarray(lookup[target(3)])
        indexed = Image.frombytes("P", image.size, image.tobytes())
        indexed.putpalette(palette.ravel().tolist())
        again = indexed.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE)
        for picture_of in (indexed, again):
            picture_of.save(tmp_path / f"{name}.png")
            assert np.array_equal(read(read_label(tmp_path / f"{name}.png")), target(3))


@pytest.mark.parametrize("colors", ["grey", "black", "foreign"])
def test_a_palette_without_the_datasets_colours_says_nothing(tmp_path, colors):
    palette = {
        "grey": np.repeat(np.arange(256), 3),
        "black": np.zeros(768, int),
        "foreign": np.arange(768) * 7 % 251,
    }[colors]
    indexed = Image.frombytes("P", (10, 6), target().tobytes())
    indexed.putpalette(palette.tolist())
    indexed.save(tmp_path / "a.png")
    read = encoding("cityscapes", 4)  # trainIds
    if colors == "black":  # all pixels in the colour of what is ignored: no label looks like that
        with pytest.raises(ValueError, match="by index or by the colours of its palette"):
            read(read_label(tmp_path / "a.png"))
    else:
        assert np.array_equal(read(read_label(tmp_path / "a.png")), target())


def test_grey_image_is_read_as_rgb(tmp_path):
    grey = picture()[:, :, 0]
    image = read_image(write(tmp_path / "a.png", grey))
    assert image.shape == (3, 6, 10)
    assert np.array_equal(image[1].numpy(), grey)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, suffix, orientation):
    """What a viewer shows: size and orientation, by decoding and from the header alone."""
    upright = np.zeros((24, 40, 3), np.uint8)
    upright[:8, :16] = 255  # a corner
    turned = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = write(tmp_path / f"a.{suffix}", np.ascontiguousarray(turned), exif=exif)
    image = read_image(path)
    assert image.shape == (3, 24, 40)
    assert image_size(path) == (24, 40)
    assert image[0, 2, 2] > 200 and image[0, -2:, :].max() < 60 and image[0, :, -2:].max() < 60


_XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-'
    'syntax-ns#"><rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" '
    'tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.png", "late.png"])
def test_orientation_in_xmp_or_behind_the_pixels(tmp_path, name):
    """The header alone gives the size that decoding gives, wherever the orientation stands."""
    path, picture_of = tmp_path / name, Image.fromarray(picture(0, (24, 40)))
    if name == "late.png":
        exif = Image.Exif()
        exif[0x0112] = 6
        picture_of.save(path, exif=exif)
        data = path.read_bytes()
        start, end = data.index(b"eXIf") - 4, data.index(b"IEND") - 4
        stop = start + 12 + int.from_bytes(data[start : start + 4], "big")
        path.write_bytes(data[:start] + data[stop:end] + data[start:stop] + data[end:])
    elif name == "a.png":
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", _XMP)
        picture_of.save(path, pnginfo=info)
    else:
        picture_of.save(path, xmp=_XMP.encode())
    assert read_image(path).shape == (3, 40, 24)
    assert image_size(path) == (40, 24)


@pytest.mark.parametrize("orientation", [3, 5, 6, 7, 8])
def test_a_turned_pair_is_trained_on_as_it_is_shown(tmp_path, orientation):
    """Image and label come upright, each by its own EXIF."""
    back = {3: 3, 5: 5, 6: 8, 7: 7, 8: 6}[orientation]
    turn = {
        3: Image.Transpose.ROTATE_180,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }[back]
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = picture(0, (24, 40))
    for name, array in (("images", upright), ("labels", label_ids(target(0, (24, 40))))):
        path = tmp_path / name / "train/a.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(array).transpose(turn).save(path, exif=exif)
    image, labels = build_dataset("gtav", tmp_path, "train")[0]
    assert np.array_equal(image.permute(1, 2, 0).numpy(), upright)
    assert np.array_equal(labels.numpy(), target(0, (24, 40)))


def test_a_tiff_packed_with_loss_is_no_label(tmp_path):
    path = write(tmp_path / "a.tif", target(), compression="jpeg")
    with pytest.raises(DataError, match=r"a\.tif: .*a TIFF compressed as jpeg, which changes"):
        read_label(path)
    assert read_image(path).shape == (3, 6, 10)


@pytest.mark.parametrize("name", ["cmyk.jpg", "mpo.jpg", "palette.png", "alpha.webp", "a.bmp"])
def test_pictures_of_other_kinds(tmp_path, name):
    """The colours a viewer shows, within what JPEG and a palette lose."""
    smooth = np.add.outer(np.arange(24), np.arange(40))[:, :, None] * np.array([1, 2, 3])
    shown = Image.fromarray(smooth.astype(np.uint8))
    path = tmp_path / name
    if name == "cmyk.jpg":
        shown.convert("CMYK").save(path, quality=98)
    elif name == "mpo.jpg":
        shown.save(path, format="MPO", save_all=True, append_images=[shown.rotate(180)], quality=98)
    elif name == "palette.png":
        shown.quantize(200).save(path, transparency=0)
    elif name == "alpha.webp":
        shown.convert("RGBA").save(path, lossless=True)
    else:
        shown.save(path)
    difference = read_image(path).permute(1, 2, 0).numpy().astype(int) - np.asarray(shown)
    assert np.abs(difference).mean() < 4


def test_deleted_and_flat_polygons_are_not_drawn(tmp_path):
    square = [[0, 0], [3, 0], [3, 3]]
    objects = [
        {"label": "road", "polygon": square},
        {"label": "sky", "polygon": square, "deleted": 1},
        {"label": "car", "polygon": square[:2]},
    ]
    path = tmp_path / "polygons.json"
    path.write_text(json.dumps({"imgHeight": 4, "imgWidth": 5, "objects": objects}))
    points = [(float(x), float(y)) for x, y in square]
    assert read_label(path) == Polygons(4, 5, [("road", points)])
