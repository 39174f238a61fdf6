"""Damaged files, headers and trees give the right array, or an error that names the file.

Seeded and short; ``PINMEM_FUZZ=5000 python -m pytest tests/test_data_fuzz.py`` goes on for longer,
with other numbers every time.
"""

from __future__ import annotations

import functools
import os
import random
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pinmem.data import DataError, build_dataset, parse
from pinmem.data.check import main as check
from pinmem.data.decode import Polygons, image_size, read_image, read_label
from pinmem.data.files import find_files
from pinmem.data.parse import known_datasets
from tests.data_fuzz import DAMAGES, bases, damaged, reference_samples, with_header
from tests.data_trees import VARIANTS, make

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow's, of damaged TIFFs

COUNT = int(os.environ.get("PINMEM_FUZZ", "0"))
OUTCOMES: Counter[str] = Counter()

STEPS = st.lists(
    st.tuples(
        st.sampled_from(DAMAGES), st.floats(0, 1), st.integers(0, 255), st.integers(1, 60)
    ),
    min_size=1,
    max_size=4,
)  # fmt: skip


def fuzz(short: int):
    """Settings: the same ``short`` inputs every time, or ``PINMEM_FUZZ`` of others."""
    return settings(
        max_examples=COUNT or short,
        derandomize=not COUNT,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@functools.cache
def folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="pinmem-fuzz-"))


@functools.cache
def files() -> dict[str, bytes]:
    return bases(folder())


@functools.cache
def whole(name: str, kind: str) -> object:
    """What an undamaged file gives."""
    path = folder() / f"whole-{name}"
    path.write_bytes(files()[name])
    return outcome(path, kind)


def outcome(path: Path, kind: str):
    """The array or polygons in a file, or the error; anything else raises."""
    began = time.process_time()
    try:
        if kind == "size":
            return np.array(image_size(path))
        if kind == "image":
            return read_image(path).permute(1, 2, 0).numpy()
        raw = read_label(path)
        return raw if isinstance(raw, Polygons) else raw.samples
    except DataError as error:
        text = str(error)
        assert text.startswith(f"{path}: ") and "\n" not in text, text
        return error
    finally:
        assert time.process_time() - began < 10


def same(a: object, b: object) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.shape == b.shape and np.array_equal(a, b)
    return not isinstance(a, np.ndarray) and not isinstance(b, np.ndarray) and a == b


@fuzz(400)
@given(st.data())
def test_damaged_files(data):
    """Any damage to a PNG is an error or changes nothing; other formats have no checksums."""
    name = data.draw(st.sampled_from(sorted(files())))
    kind = data.draw(st.sampled_from(["image", "label", "size"]))
    content = damaged(files()[name], data.draw(STEPS))
    path = folder() / name
    path.write_bytes(content)
    result = outcome(path, kind)
    OUTCOMES["error" if isinstance(result, DataError) else "array"] += 1
    if name.endswith(".png") and kind != "size" and not isinstance(result, DataError):
        assert same(result, whole(name, kind))
    if content == files()[name]:
        assert same(result, whole(name, kind)) or isinstance(result, DataError)


@fuzz(200)
@given(st.data())
def test_other_headers(data):
    """A PNG whose header says something else, rightly summed: as the specification reads it."""
    name = data.draw(st.sampled_from([n for n in sorted(files()) if n.endswith(".png")]))
    field = data.draw(st.sampled_from([0, 1, 2, 3, 6]))
    value = data.draw(
        st.sampled_from((1, 2, 3, 4, 5, 6, 8, 16)) if field > 1 else st.integers(0, 300)
    )
    content = with_header(files()[name], field, value)
    path = folder() / name
    path.write_bytes(content)
    result = outcome(path, "label")
    OUTCOMES["error" if isinstance(result, DataError) else "array"] += 1
    if isinstance(result, DataError):
        return
    expected = reference_samples(content)
    if expected is not None:
        assert np.array_equal(result.reshape(expected.shape), expected)


@fuzz(150)
@given(st.data())
def test_damaged_descriptions(data):
    """A description is read, or an error names the file."""
    known = Path(parse.__file__).with_name("datasets")
    source = data.draw(st.sampled_from(sorted(known.glob("*.yaml"))))
    path = folder() / source.name
    path.write_bytes(damaged(source.read_bytes(), data.draw(STEPS)))
    try:
        assert parse.parse_description(path).layouts is not None
        OUTCOMES["array"] += 1
    except DataError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
        OUTCOMES["error"] += 1


CHANGES = (
    "remove", "empty", "hide", "upper case", "folder instead", "link to nothing", "link to itself",
    "other suffix", "swap", "garbage", "no reading",
)  # fmt: skip


@fuzz(60)
@given(st.data())
def test_changed_trees(data):
    """Every file is used, missing its partner, or skipped with a reason; the check survives."""
    name = data.draw(st.sampled_from(sorted(VARIANTS)))
    variant = VARIANTS[name]
    root = Path(tempfile.mkdtemp(dir=folder()))
    make(root, variant)
    for change in data.draw(st.lists(st.sampled_from(CHANGES), min_size=1, max_size=3)):
        paths = sorted(path for path in root.rglob("*") if path.is_file())
        if paths:
            disturb(data.draw(st.sampled_from(paths)), change, paths)
    dataset, _, subset = variant.dataset.partition(":")
    description = known_datasets()[dataset]
    try:
        found = find_files(
            description, root, variant.split, [subset] if subset else description.subsets
        )
    except DataError as error:  # a list that is a picture now
        assert str(root) in str(error)
        found = None
    present = {path for path in root.rglob("*") if path.is_file() or path.is_symlink()}
    if found is not None:
        told = {path for pair in found.pairs for path in pair}
        told |= {image for image, _ in found.without_label} | set(found.without_image)
        told |= {path for paths in found.skipped.values() for path in paths}
        lists = {(root / file).parent for file, _ in variant.more}
        assert {path for path in present if path.parent not in lists} <= told
        assert {image for image, _ in found.pairs} <= present
    arguments = ["--dataset", variant.dataset, "--root", str(root), "--split", variant.split]
    assert check([*arguments, "--decode"]) in (0, 1)
    try:
        opened = build_dataset(variant.dataset, root, variant.split)
        for index in range(len(opened)):
            opened[index]
        OUTCOMES["array"] += 1
    except DataError as error:
        assert str(root) in str(error) and "\n" not in str(error)
        OUTCOMES["error"] += 1
    shutil.rmtree(root)


def disturb(path: Path, change: str, paths: list[Path]) -> None:
    if change == "remove":
        path.unlink()
    elif change == "empty":
        path.write_bytes(b"")
    elif change == "hide":
        path.rename(path.with_name(f"._{path.name}"))
    elif change == "upper case":
        path.rename(path.with_name(path.stem + path.suffix.upper()))
    elif change == "other suffix":
        path.rename(path.with_suffix(".bmp"))
    elif change == "swap":
        other = paths[(paths.index(path) + 1) % len(paths)]
        first, second = path.read_bytes(), other.read_bytes()
        path.write_bytes(second)
        other.write_bytes(first)
    elif change == "garbage":
        path.write_bytes(np.random.default_rng(0).integers(0, 256, 999, np.uint8).tobytes())
    elif change == "no reading":
        path.chmod(0)
    else:
        path.unlink()
        if change == "folder instead":
            path.mkdir()
        else:
            path.symlink_to(path if change == "link to itself" else path.with_name("nothing"))


def test_both_outcomes_occur():
    """Damage that always, or never, gives an error would test nothing."""
    draw, failed = random.Random(0), 0
    for _ in range(100):
        name = draw.choice(sorted(files()))
        step = (draw.choice(DAMAGES), draw.random(), draw.randrange(256), draw.randrange(1, 60))
        path = folder() / name
        path.write_bytes(damaged(files()[name], [step]))
        failed += isinstance(
            outcome(path, "label" if name.startswith("grey") else "image"), DataError
        )
    assert 20 < failed < 80
    if COUNT:
        print(dict(OUTCOMES))
