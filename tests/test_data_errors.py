"""Whatever is wrong with a file is one line that names it; decoding gives the raw values."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pinmem.data import DataError, build_dataset
from pinmem.data.cityscapes_classes import CLASS_NAMES, LABELS, PALETTE, colorize
from pinmem.data.decode import image_size, read_image, read_label
from pinmem.data.encodings import gtav, mapillary, synthia, train_ids
from pinmem.data.png import check_png, encode_png16
from tests.data_files import (
    filtered_png16,
    gtav_tree,
    label_ids,
    picture,
    target,
    write,
    write_palette,
    write_synthia,
)

IMAGE, LABEL = "images/train/a/00002.png", "labels/train/a/00002.png"


def message_of(root) -> str:
    dataset = build_dataset("gtav", root, "train")
    dataset[0]  # the others are as good as before
    with pytest.raises(DataError) as caught:
        dataset[1]
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_unknown_dataset():
    with pytest.raises(
        ValueError, match=r"name: expected one of gtav, .*did you mean 'cityscapes'"
    ):
        build_dataset("cityscape", ".", "train")


def test_empty_split_names_root_split_and_patterns(tmp_path):
    gtav_tree(tmp_path)
    with pytest.raises(ValueError, match="no image of gtav, split 'val'") as caught:
        build_dataset("gtav", tmp_path, "val")
    assert str(tmp_path) in str(caught.value)
    for pattern in ("images/valid/**/*.png", "images/val/**/*.png", "images/*.png"):
        assert pattern in str(caught.value)


def test_missing_label(tmp_path):
    (gtav_tree(tmp_path) / LABEL).unlink()
    assert message_of(tmp_path) == (
        f"{tmp_path / LABEL}: label file cannot be read: No such file or directory"
    )


def test_vanished_image(tmp_path):
    dataset = build_dataset("gtav", gtav_tree(tmp_path), "train")
    (tmp_path / IMAGE).unlink()
    with pytest.raises(DataError, match=r"00002\.png: image file cannot be read"):
        dataset[1]


@pytest.mark.parametrize("name", [IMAGE, LABEL])
@pytest.mark.parametrize("keep", [0, 5, 20, 60, -4])
def test_truncated_file(tmp_path, name, keep):
    path = gtav_tree(tmp_path) / name
    path.write_bytes(path.read_bytes()[:keep])
    text = message_of(tmp_path)
    assert text.startswith(f"{path}: ")
    assert any(word in text for word in ("truncated", "empty", "not a PNG", "decoded"))


@pytest.mark.parametrize("name", [IMAGE, LABEL])
def test_any_damaged_byte_is_noticed(tmp_path, name):
    """A flipped byte of pixel data decodes to other pixels, or to none, unless somebody looks."""
    path = gtav_tree(tmp_path) / name
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[position] ^= 0x55
        path.write_bytes(damaged)
        assert str(path) in message_of(tmp_path)


def test_text_instead_of_an_image(tmp_path):
    (gtav_tree(tmp_path) / IMAGE).write_text("version https://git-lfs.github.com/spec/v1")
    assert message_of(tmp_path).startswith(f"{tmp_path / IMAGE}: image cannot be decoded: ")


def test_truncated_jpeg(tmp_path):
    path = write(tmp_path / "images/val/a.jpg", picture(0, (64, 64)))
    write(tmp_path / "labels/val/a_train_id.png", target(0, (64, 64)))
    path.write_bytes(path.read_bytes()[:800])
    with pytest.raises(DataError, match=r"a\.jpg: image cannot be decoded: .*truncated"):
        build_dataset("bdd100k", tmp_path, "val")[0]


def test_image_of_16_bits(tmp_path):
    path = gtav_tree(tmp_path) / IMAGE
    path.write_bytes(encode_png16(np.zeros((6, 10, 3), np.uint16)))
    assert message_of(tmp_path) == f"{path}: image has 16 bits a sample, expected 8"


def test_sizes_that_differ_name_both_files(tmp_path):
    write_palette(gtav_tree(tmp_path) / LABEL, label_ids(target(0, (6, 9))))
    assert message_of(tmp_path) == (
        f"image and label differ in size: {tmp_path / IMAGE} is 10x6, "
        f"{tmp_path / LABEL} is 9x6 (width x height)"
    )


def test_value_outside_the_encoding(tmp_path):
    ids = label_ids(target(1))
    ids[2, 3], ids[0, 0] = 77, 99
    write_palette(gtav_tree(tmp_path) / LABEL, ids)
    assert message_of(tmp_path) == (
        f"{tmp_path / LABEL}: label has values outside the encoding: 77, 99"
    )


def test_colour_outside_the_encoding(tmp_path):
    colors = colorize(target(1))
    colors[0, 0] = (1, 2, 3)
    write(gtav_tree(tmp_path) / LABEL, colors)
    assert message_of(tmp_path).endswith("label has colours outside the encoding: [1, 2, 3]")


def test_synthia_code_outside_the_encoding(tmp_path):
    for code, shown in ((23, "23"), (300, "300")):
        path = write_synthia(tmp_path / "a.png", np.full((2, 2), code))
        with pytest.raises(ValueError, match=f"values outside the encoding: {shown}"):
            synthia(read_label(path))


@pytest.mark.parametrize("encoding", [mapillary, train_ids])
def test_colour_where_an_index_belongs(encoding):
    with pytest.raises(ValueError, match=r"expected one channel, got shape \[6, 10, 3\]"):
        encoding(picture())


def test_gtav_labels_in_colour(tmp_path):
    write(gtav_tree(tmp_path) / LABEL, colorize(target(1)))
    _, labels = build_dataset("gtav", tmp_path, "train")[1]
    assert labels.dtype == torch.uint8
    assert np.array_equal(labels.numpy(), target(1))


def test_gtav_colours_of_every_label():
    """Untrained labels are ignored, but for those that share a colour with a trained one."""
    colors = np.array([[row.color for row in LABELS]], dtype=np.uint8)
    expected = [5 if row.name == "polegroup" else row.train_id for row in LABELS]
    assert gtav(colors)[0].tolist() == expected
    alpha = np.concatenate([colors, np.full_like(colors[:, :, :1], 255)], axis=2)
    assert gtav(alpha)[0].tolist() == expected


@pytest.mark.parametrize("options", [{}, {"bits": 8}, {"transparency": 0}, {"optimize": True}])
def test_palette_indices_are_raw(tmp_path, options):
    """Fewer bits an index, or a transparent colour: the index is what counts."""
    path = write_palette(tmp_path / "a.png", label_ids(target()), **options)
    assert np.array_equal(read_label(path), label_ids(target()))


def test_palette_of_four_bits(tmp_path):
    indices = np.arange(60, dtype=np.uint8).reshape(6, 10) % 13
    path = write_palette(tmp_path / "a.png", indices, bits=4)
    assert path.read_bytes()[24] == 4
    assert np.array_equal(read_label(path), indices)


def test_all_filters_of_16_bit_colour(tmp_path):
    samples = np.random.default_rng(0).integers(0, 65536, (11, 7, 3)).astype(np.uint16)
    path = tmp_path / "a.png"
    for data in (filtered_png16(samples), encode_png16(samples)):
        path.write_bytes(data)
        check_png(data)
        raw = read_label(path)
        assert raw.dtype == np.uint16
        assert np.array_equal(raw, samples)


def test_16_bit_grey(tmp_path):
    codes = np.arange(60, dtype=np.uint16).reshape(6, 10) % 23
    assert np.array_equal(read_label(write(tmp_path / "a.png", codes)), codes)
    assert synthia(read_label(tmp_path / "a.png")).dtype == np.uint8


def test_grey_image_is_read_as_rgb(tmp_path):
    grey = picture()[:, :, 0]
    image = read_image(write(tmp_path / "a.png", grey))
    assert image.shape == (3, 6, 10)
    assert np.array_equal(image[1].numpy(), grey)


def test_image_size_reads_the_header_alone(tmp_path):
    path = write(tmp_path / "a.png", picture())
    path.write_bytes(path.read_bytes()[:60])
    assert image_size(path) == (6, 10)
    path.write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"a\.png: header cannot be read"):
        image_size(path)


@pytest.mark.parametrize("bad", [np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.uint16)])
def test_encode_png16_wants_16_bit_colour(bad):
    with pytest.raises(ValueError, match="samples: expected uint16"):
        encode_png16(bad)


def test_class_table_is_cityscapes():
    assert CLASS_NAMES[:3] == ("road", "sidewalk", "building")
    assert CLASS_NAMES[-3:] == ("train", "motorcycle", "bicycle")
    assert PALETTE.shape == (19, 3)
    assert PALETTE.dtype == np.uint8
    assert colorize(np.array([[0, 255]], np.uint8)).tolist() == [[[128, 64, 128], [0, 0, 0]]]
