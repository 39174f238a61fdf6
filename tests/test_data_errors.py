"""Whatever is wrong with a file is one line that names it; decoding gives the raw values."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from examples.streets.png16 import encode_png16
from pinmem.data import DataError, build_dataset, colorize, known_datasets
from pinmem.data.cityscapes_classes import CLASS_NAMES, PALETTE
from pinmem.data.decode import image_size, read_image, read_label
from pinmem.program import run
from tests.data_files import (
    grey_png,
    gtav_tree,
    label_ids,
    picture,
    target,
    write,
    write_palette,
    write_synthia,
)
from tests.data_trees import VARIANTS, make, palette_anew


def encoding(name: str, layout: int = 0):
    return known_datasets()[name].layouts[layout].encoding


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
    with pytest.raises(ValueError, match=r"dataset: got 'cityscape', .*did you mean 'cityscapes'"):
        build_dataset("cityscape", ".", "train")


def test_empty_split_names_root_split_and_patterns(tmp_path):
    gtav_tree(tmp_path)
    with pytest.raises(ValueError, match="no image of gtav, split 'val'") as caught:
        build_dataset("gtav", tmp_path, "val")
    assert str(tmp_path) in str(caught.value)
    for pattern in ("images/valid/**/*.{png", "images/val/**/*.{png", "images/*.{png"):
        assert pattern in str(caught.value)


def test_missing_labels_are_listed_when_the_dataset_is_opened(tmp_path):
    gtav_tree(tmp_path, 9)
    gone = sorted((tmp_path / "labels/train/a").iterdir())[:5]
    for path in gone:
        path.unlink()
    with pytest.raises(DataError) as caught:
        build_dataset("gtav", tmp_path, "train")
    shown = ", ".join(map(str, gone[:3]))
    assert str(caught.value) == f"gtav/train: 5 of 9 pairs lack a file: {shown} and 2 more"


def test_missing_labels_of_idd_name_the_conversion(tmp_path):
    write(tmp_path / "leftImg8bit/val/1/a_leftImg8bit.png", picture())
    with pytest.raises(DataError, match=r"createLabels\.py --id-type csTrainId"):
        build_dataset("idd", tmp_path, "val")


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="nowhere: no such folder"):
        build_dataset("gtav", tmp_path / "nowhere", "train")


def test_vanished_label(tmp_path):
    dataset = build_dataset("gtav", gtav_tree(tmp_path), "train")
    (tmp_path / LABEL).unlink()
    with pytest.raises(DataError) as caught:
        dataset[1]
    path = tmp_path / LABEL
    assert str(caught.value) == f"{path}: label file cannot be read: No such file or directory"


@pytest.mark.parametrize("workers", [0, 2])
def test_one_line_out_of_a_worker_process(tmp_path, workers):
    dataset = build_dataset("gtav", gtav_tree(tmp_path), "train")
    (tmp_path / LABEL).write_bytes(b"")
    loader = torch.utils.data.DataLoader(dataset, batch_size=3, num_workers=workers)
    with pytest.raises(DataError) as caught:
        list(loader)
    assert str(caught.value) == f"{tmp_path / LABEL}: label file is empty"


def test_vanished_image(tmp_path):
    dataset = build_dataset("gtav", gtav_tree(tmp_path), "train")
    (tmp_path / IMAGE).unlink()
    with pytest.raises(DataError, match=r"00002\.png: image file cannot be read"):
        dataset[1]


@pytest.mark.parametrize("name", [IMAGE, LABEL])
@pytest.mark.parametrize("keep", [0, 5, 20, 60, -8])
def test_truncated_file(tmp_path, name, keep):
    path = gtav_tree(tmp_path) / name
    path.write_bytes(path.read_bytes()[:keep])
    text = message_of(tmp_path)
    assert text.startswith(f"{path}: ")
    assert any(word in text for word in ("truncated", "empty", "cannot be decoded"))


@pytest.mark.parametrize("name", [IMAGE, LABEL])
def test_any_damaged_byte_is_noticed(tmp_path, name):
    """A flipped byte of pixel data decodes to other pixels, or to none, unless somebody looks."""
    path = gtav_tree(tmp_path) / name
    whole = path.read_bytes()
    # Nothing is lost with the last chunk, IEND, which is empty.
    for position in range(0, len(whole) - 12, 7):
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
        f"{tmp_path / LABEL}: label has values outside the encoding: 77, 99, "
        "by index or by the colours of its palette"
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
            encoding("synthia")(read_label(path))


def test_a_class_the_caller_has_no_name_for(tmp_path):
    """An encoding of one's own may give anything: the first labels of a process are looked at."""
    from pinmem.data import SegmentationDataset

    pair = (write(tmp_path / "a.png", picture()), write(tmp_path / "b.png", target() // 255 + 20))
    dataset = SegmentationDataset("own", [pair], lambda raw: raw.samples)
    with pytest.raises(DataError, match=r"b\.png: label has class 20, expected 0\.\.18 or 255"):
        dataset[0]


@pytest.mark.parametrize("mode", [np.uint16, np.int32, np.float32])
def test_images_of_more_than_8_bits_are_refused(tmp_path, mode):
    grey = picture()[:, :, 0].astype(mode)
    with pytest.raises(DataError, match=r"a\.tif: image has (16|32) bits a sample, expected 8"):
        read_image(write(tmp_path / "a.tif", grey))


def test_a_label_of_several_pages(tmp_path):
    pages = [Image.fromarray(target(n)) for n in range(2)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(DataError, match=r"a\.tif: label cannot be decoded: it has 2 pages"):
        read_label(tmp_path / "a.tif")


def test_any_error_out_of_a_worker_process_ends_a_program_with_one_line(capsys):
    class Failing(torch.utils.data.Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            raise OSError(28, "No space left on device", "some file")

    with pytest.raises(SystemExit):
        run(lambda: list(torch.utils.data.DataLoader(Failing(), num_workers=1)))
    line = "error: [Errno 28] No space left on device: 'some file'\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("kind", ["JPEG", "BMP", "WEBP"])
def test_labels_in_a_format_that_changes_values(tmp_path, kind):
    Image.fromarray(target()).save(tmp_path / "a.png", format=kind)
    with pytest.raises(DataError, match=f"label is a {kind} file, expected PNG or TIFF"):
        read_label(tmp_path / "a.png")


def test_where_neither_index_nor_colour_fits_the_file_is_named(tmp_path):
    path = gtav_tree(tmp_path) / LABEL
    palette_anew(path, target(1))
    image = Image.open(path)
    colors = image.getpalette()
    colors[0] ^= 1  # one colour is a shade off
    image.putpalette(colors)
    image.save(path)
    assert message_of(tmp_path).startswith(f"{path}: label has values outside the encoding: ")


def test_a_label_larger_than_any_picture(tmp_path):
    path = gtav_tree(tmp_path) / LABEL
    path.write_bytes(grey_png(np.zeros((1, 1), np.uint8), 4))
    data = bytearray(path.read_bytes())
    data[16:24] = (20992).to_bytes(4, "big") + (10496).to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    path.write_bytes(data)
    assert message_of(tmp_path).startswith(f"{path}: label cannot be decoded: Image size")
    with pytest.raises(DataError, match=r"00002\.png: header cannot be read: Image size"):
        image_size(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("road", "rode"),
        lambda text: text.replace('"imgHeight": 48', '"imgHeight": 48000000'),
        lambda text: text.replace('"polygon": [[0, 0]', '"polygon": [[1e300, 0]'),
        lambda text: text.replace("imgWidth", "width"),
        lambda text: text[:-9],
        lambda text: "[]",
    ],
)
def test_polygons_that_are_none(tmp_path, change):
    path = make(tmp_path, VARIANTS["idd polygons"])[0][1]
    dataset = build_dataset("idd", tmp_path, "train")
    text = change(path.read_text())
    assert text != path.read_text()
    path.write_text(text)
    with pytest.raises(DataError, match=f"^{path}: "):
        dataset[0]


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
