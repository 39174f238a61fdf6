"""Trees of files in every layout and encoding that people have, from drawn street scenes.

``python -m tests.data_trees --root DIR`` writes them all, to be looked at or tried on a program.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from examples.streets import render_street
from examples.streets.png16 import encode_png16
from pinmem.data import IGNORE_INDEX, colorize, known_datasets
from tests.data_files import interlaced_png, label_ids, put, write, write_palette, write_synthia

SIZE = (96, 48)  # width and height
Write = Callable[[Path, np.ndarray], Path]


@functools.cache
def scene(number: int, size: tuple[int, int] = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Picture uint8 [H, W, 3] and trainIds uint8 [H, W] of a drawn street."""
    domain = ("gtav", "synthia", "cityscapes")[number % 3]
    return render_street(domain, [7, number], *size)


def codes(dataset: str, layout: int = 0) -> np.ndarray:
    """uint8 [256]: trainId -> the lowest raw value that means it in a known dataset."""
    values = known_datasets()[dataset].layouts[layout].encoding.values
    table = np.zeros(256, dtype=np.uint8)
    for raw, train_id in sorted(values.items(), reverse=True):
        table[train_id] = min(raw, 255)
    return table


def palette(path: Path, target: np.ndarray) -> Path:
    return write_palette(path, label_ids(target))


def palette_anew(path: Path, target: np.ndarray) -> Path:
    """As another program saves a palette label again: its own order of the colours."""
    image = Image.open(palette(path, target)).convert("RGB")
    image.convert("P", palette=Image.Palette.ADAPTIVE).save(path)
    return path


def rgb(path: Path, target: np.ndarray) -> Path:
    return write(path, colorize(target))


def rgba(path: Path, target: np.ndarray) -> Path:
    return write(path, np.dstack([colorize(target), np.full_like(target, 255)]))


def ids(path: Path, target: np.ndarray) -> Path:
    return write(path, label_ids(target))


def interlaced_ids(path: Path, target: np.ndarray) -> Path:
    return put(path, interlaced_png(label_ids(target)))


def synthia(path: Path, target: np.ndarray) -> Path:
    return write_synthia(path, codes("synthia")[target])


def synthia_interlaced(path: Path, target: np.ndarray) -> Path:
    samples = np.zeros((*target.shape, 3), dtype=np.uint16)
    samples[:, :, 0] = codes("synthia")[target]
    samples[:, :, 1] = 300
    return put(path, interlaced_png(samples))


def mapillary(path: Path, target: np.ndarray) -> Path:
    return write(path, codes("mapillary", 0)[target])


def mapillary_2(path: Path, target: np.ndarray) -> Path:
    return write(path, codes("mapillary", 2)[target])


def urbansyn(path: Path, target: np.ndarray) -> Path:
    return write(path, np.where(target == IGNORE_INDEX, 19, target).astype(np.uint8))


def polygons(path: Path, target: np.ndarray) -> Path:
    """Every run of equal pixels in a row as a polygon of IDD's names."""
    names = {number: name for name, number in idd_names().items() if number != IGNORE_INDEX}
    objects = [{"label": "out of roi", "polygon": [[0, 0], [5, 0], [5, 5]]}]
    for y, row in enumerate(target):
        edges = [0, *(np.flatnonzero(np.diff(row)) + 1), len(row)]
        for start, stop in itertools.pairwise(edges):
            run = [[int(start), y], [int(stop) - 1, y], [int(stop) - 1, y]]
            objects.append({"label": names.get(int(row[start]), "bridge"), "polygon": run})
    content = {"imgHeight": len(target), "imgWidth": target.shape[1], "objects": objects}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def idd_names() -> dict[str, int]:
    return known_datasets()["idd"].layouts[-1].encoding.names


def picture(path: Path, array: np.ndarray) -> Path:
    return write(path, array)


def picture_16(path: Path, array: np.ndarray) -> Path:
    return put(path, encode_png16(array.astype(np.uint16) * 257))


def picture_interlaced(path: Path, array: np.ndarray) -> Path:
    return put(path, interlaced_png(array))


@dataclass(frozen=True)
class Variant:
    """A dataset's split in one layout; ``{n}`` in a file's name is the number of the scene."""

    dataset: str
    split: str
    image: str
    label: str
    write_label: Write
    write_image: Write = picture
    numbers: tuple[int, ...] = (1, 2)
    more: tuple[tuple[str, str], ...] = ()  # further files and their text


_CITY = "{p}leftImg8bit/{s}/bonn/bonn_{n:06d}_000019_leftImg8bit"
_FINE = "{p}gtFine/{s}/bonn/bonn_{n:06d}_000019_gtFine_"
_ACDC = "rgb_anon/{c}/{s}/GP010376/GP010376_frame_{n:06d}_rgb_anon.png"
_ACDC_GT = "gt/{c}/{s}/GP010376/GP010376_frame_{n:06d}_gt_labelTrainIds.png"


def _city(text: str, split: str, package: str = "", fine: bool = False) -> str:
    folder = f"{'gtFine' if fine else 'leftImg8bit'}_trainvaltest/" if package else ""
    return text.replace("{p}", folder).replace("{s}", split)


def _acdc(text: str, condition: str, split: str) -> str:
    return text.replace("{c}", condition).replace("{s}", split)


VARIANTS: dict[str, Variant] = {
    "gtav folders": Variant(
        "gtav", "train", "images/train/a/{n:05d}.png", "labels/train/a/{n:05d}.png", palette
    ),
    "gtav valid": Variant(
        "gtav", "val", "images/valid/{n:05d}.png", "labels/valid/{n:05d}.png", palette
    ),
    "gtav val": Variant("gtav", "val", "images/val/{n:05d}.png", "labels/val/{n:05d}.png", palette),
    "gtav test": Variant(
        "gtav", "test", "images/test/{n:05d}.png", "labels/test/{n:05d}.png", palette
    ),
    "gtav one folder": Variant(
        "gtav", "val", "images/{n:05d}.png", "labels/{n:05d}.png", palette, numbers=(22,)
    ),
    "gtav list": Variant(
        "gtav", "val", "images/{n:05d}.png", "labels/{n:05d}.png", palette, numbers=(3, 22),
        more=(("lists/val.txt", "00003.png\n00022\n"),),
    ),
    "gtav palette ordered anew": Variant(
        "gtav", "train", "images/train/{n}.png", "labels/train/{n}.png", palette_anew
    ),
    "gtav rgb": Variant("gtav", "train", "images/train/{n}.png", "labels/train/{n}.png", rgb),
    "gtav rgba": Variant("gtav", "train", "images/train/{n}.png", "labels/train/{n}.png", rgba),
    "gtav interlaced": Variant(
        "gtav", "train", "images/train/{n}.png", "labels/train/{n}.png", interlaced_ids,
        picture_interlaced,
    ),
    "gtav spaces and unicode": Variant(
        "gtav", "train", "images/train/Köln Süd/a b ü {n}.png",
        "labels/train/Köln Süd/a b ü {n}.png", palette,
    ),
    "synthia folders": Variant(
        "synthia", "train", "RGB/train/{n:07d}.png", "GT/LABELS/train/{n:07d}.png", synthia
    ),
    "synthia one folder": Variant(
        "synthia", "val", "RGB/{n:07d}.png", "GT/LABELS/{n:07d}.png", synthia, numbers=(0,)
    ),
    "synthia package": Variant(
        "synthia", "train", "RAND_CITYSCAPES/RGB/{n:07d}.png",
        "RAND_CITYSCAPES/GT/LABELS/{n:07d}.png", synthia, numbers=(1,),
    ),
    "synthia interlaced": Variant(
        "synthia", "val", "RGB/val/{n}.png", "GT/LABELS/val/{n}.png", synthia_interlaced
    ),
    "cityscapes": Variant(
        "cityscapes", "val", _city(_CITY, "val") + ".png",
        _city(_FINE, "val") + "labelIds.png", ids,
    ),
    "cityscapes packages": Variant(
        "cityscapes", "train", _city(_CITY, "train", "x") + ".png",
        _city(_FINE, "train", "x", True) + "labelIds.png", ids,
    ),
    "cityscapes one package": Variant(
        "cityscapes", "train", _city(_CITY, "train", "x") + ".png",
        _city(_FINE, "train") + "labelIds.png", ids,
    ),
    "cityscapes labelTrainIds": Variant(
        "cityscapes", "val", _city(_CITY, "val") + ".png",
        _city(_FINE, "val") + "labelTrainIds.png", write,
    ),
    "idd": Variant(
        "idd", "val", _city(_CITY, "val") + ".png",
        _city(_FINE, "val") + "labelcsTrainIds.png", write,
    ),
    "idd packages, jpeg": Variant(
        "idd", "val", _city(_CITY, "val", "x") + ".jpg",
        _city(_FINE, "val", "x", True) + "labelcsTrainIds.png", write,
    ),
    "idd polygons": Variant(
        "idd", "train", _city(_CITY, "train") + ".jpg",
        _city(_FINE, "train") + "polygons.json", polygons,
    ),
    "bdd100k old": Variant(
        "bdd100k", "val", "images/val/{n}.jpg", "labels/val/{n}_train_id.png", write
    ),
    "bdd100k old package": Variant(
        "bdd100k", "val", "bdd100k/seg/images/val/{n}.jpg",
        "bdd100k/seg/labels/val/{n}_train_id.png", write,
    ),
    "bdd100k new": Variant(
        "bdd100k", "val", "images/10k/val/{n}.jpg", "labels/sem_seg/masks/val/{n}.png", write
    ),
    "bdd100k upper case": Variant(
        "bdd100k", "val", "images/10k/val/{n}.JPG", "labels/sem_seg/masks/val/{n}.PNG", write
    ),
    "mapillary v1.2": Variant(
        "mapillary", "train", "training/images/{n}.jpg", "training/labels/{n}.png", mapillary
    ),
    "mapillary v1.2 of 2.0": Variant(
        "mapillary", "val", "validation/images/{n}.jpg", "validation/v1.2/labels/{n}.png", mapillary
    ),
    "mapillary v2.0": Variant(
        "mapillary", "val", "validation/images/{n}.jpg", "validation/v2.0/labels/{n}.png",
        mapillary_2,
    ),
    "acdc": Variant(
        "acdc", "val", _acdc(_ACDC, "fog", "val"), _acdc(_ACDC_GT, "fog", "val"), write
    ),
    "acdc packages": Variant(
        "acdc", "train", "rgb_anon_trainvaltest/" + _acdc(_ACDC, "rain", "train"),
        "gt_trainval/" + _acdc(_ACDC_GT, "rain", "train"), write,
    ),
    "acdc one condition": Variant(
        "acdc:night", "val", _acdc(_ACDC, "night", "val"), _acdc(_ACDC_GT, "night", "val"), write
    ),
    "urbansyn": Variant(
        "urbansyn", "train", "rgb/rgb_{n:04d}.png", "ss/ss_{n:04d}.png", urbansyn
    ),
    "urbansyn plain names": Variant("urbansyn", "train", "rgb/{n}.png", "ss/{n}.png", urbansyn),
    "urbansyn split": Variant(
        "urbansyn", "val", "rgb/val/rgb_{n:04d}.png", "ss/val/ss_{n:04d}.png", urbansyn
    ),
}  # fmt: skip


def make(root: Path, variant: Variant) -> list[tuple[Path, Path]]:
    """Write a variant's files; their (image, label) paths in order of number."""
    pairs = []
    for number in variant.numbers:
        pixels, target = scene(number)
        pairs.append(
            (
                variant.write_image(root / variant.image.format(n=number), pixels),
                variant.write_label(root / variant.label.format(n=number), target),
            )
        )
    for name, text in variant.more:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return pairs


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True, type=Path)
    root = parser.parse_args().root
    for name, variant in VARIANTS.items():
        folder = root / name.replace(" ", "-").replace(",", "")
        make(folder, variant)
        print(folder)
