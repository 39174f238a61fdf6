"""Published checkpoints: every name and shape, loading, and what a mismatch says."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from pinmem.models import Segmenter, build_model, load_official
from pinmem.models.official import official_name

OFFICIAL = json.loads(
    (Path(__file__).parent / "golden" / "official_state_dict_keys.json").read_text()
)
# Published architecture -> our name and output stride (None: the default).
PUBLISHED = {
    "deepv3plus.DeepR18V3PlusD": ("deeplabv3plus_r18", None),
    "deepv3plus.DeepR50V3PlusD": ("deeplabv3plus_r50", None),
    "deepv3plus.DeepR50V3PlusD_OS8": ("deeplabv3plus_r50", 8),
    "deepv3plus.DeepR101V3PlusD": ("deeplabv3plus_r101", None),
    "deepv2.DeepR101V2D": ("deeplabv2_r101", None),
}


def build_r18(memory: bool = True, seed: int = 0, **options) -> Segmenter:
    torch.manual_seed(seed)
    return build_model("deeplabv3plus_r18", memory=memory, **options)


def official_checkpoint(model: Segmenter, prefix: str = "module.") -> dict:
    state = {official_name(key): value.clone() for key, value in model.state_dict().items()}
    memory = state.pop("memory", None)
    checkpoint = {
        "state_dict": {prefix + key: value for key, value in state.items()},
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.01}]},
        "scheduler": {"last_epoch": 7},
        "epoch": 12,
        "mean_iu": np.float64(0.41),
    }
    return checkpoint if memory is None else {**checkpoint, "memory": memory}


def assert_same_state(ours: Segmenter, theirs: Segmenter) -> None:
    expected = theirs.state_dict()
    for key, value in ours.state_dict().items():
        assert torch.equal(value, expected[key]), key


@pytest.mark.parametrize("architecture", PUBLISHED)
@pytest.mark.parametrize("memory", [True, False])
def test_every_official_name_and_shape_has_its_counterpart(architecture, memory):
    name, output_stride = PUBLISHED[architecture]
    with torch.device("meta"):
        model = build_model(name, memory=memory, output_stride=output_stride)
    ours = {official_name(key): list(value.shape) for key, value in model.state_dict().items()}
    assert len(ours) == len(model.state_dict())
    expected = OFFICIAL[architecture]
    if memory:
        assert ours.pop("memory") == [19, 256]
    else:
        expected = {key: s for key, s in expected.items() if not key.startswith("memory.")}
    assert ours == expected


def test_official_name_refuses_other_names():
    with pytest.raises(ValueError, match=r"name: got 'head\.weight'"):
        official_name("head.weight")


@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("prefix", ["module.", ""])
def test_load_official_restores_everything(memory, prefix):
    source, model = build_r18(memory), build_r18(memory, seed=1)
    source(torch.randn(2, 3, 65, 65))
    info = load_official(official_checkpoint(source, prefix), model)
    assert_same_state(model, source)
    assert (info.epoch, info.mean_iu) == (12, 0.41)


@pytest.mark.parametrize("numpy_module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_load_official_reads_files_of_either_numpy(tmp_path, numpy_module):
    source, model = build_r18(), build_r18(seed=1)
    torch.save(official_checkpoint(source), tmp_path / "new.pth")
    path = tmp_path / "official.pth"
    with zipfile.ZipFile(tmp_path / "new.pth") as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename.endswith("data.pkl"):
                content = content.replace(b"numpy.core.", b"numpy._core.")
                assert content.count(b"numpy._core.multiarray\n") == 1
                content = content.replace(b"numpy._core.multiarray", numpy_module)
            new.writestr(entry, content)
    assert load_official(path, model).mean_iu == 0.41
    assert load_official(str(path), model).epoch == 12
    assert_same_state(model, source)


def test_load_official_takes_a_bare_state_dict_and_leaves_the_memory():
    source, model = build_r18(), build_r18(seed=1)
    stored = model.memory.memory.clone()
    assert not torch.equal(stored, source.memory.memory)
    info = load_official(official_checkpoint(source)["state_dict"], model)
    assert torch.equal(model.memory.memory, stored)
    model.memory.memory.copy_(source.memory.memory)
    assert_same_state(model, source)
    assert (info.epoch, info.mean_iu) == (None, None)


def test_load_official_names_every_kind_of_mismatch_and_copies_nothing():
    model, untouched = build_r18(seed=1), build_r18(seed=1)
    checkpoint = official_checkpoint(build_r18())
    state = checkpoint["state_dict"]
    del state["module.layer3.0.conv1.weight"]
    state["module.layer9.weight"] = torch.zeros(3)
    state["module.final2.0.weight"] = torch.zeros(7, 256, 1, 1)
    state["module.final2.0.bias"] = None
    with pytest.raises(ValueError) as error:
        load_official(checkpoint, model)
    message = str(error.value)
    assert message.startswith("checkpoint: does not fit the model: ")
    assert "1 missing: layer3.0.conv1.weight;" in message
    assert "1 unexpected: layer9.weight;" in message
    assert "2 of another shape: " in message
    assert "final2.0.weight ([7, 256, 1, 1], expected [19, 256, 1, 1])" in message
    assert "final2.0.bias (NoneType, expected [19])" in message
    assert_same_state(model, untouched)


def test_load_official_names_the_first_of_many():
    with torch.device("meta"):
        model = build_model("deeplabv3plus_r50")
    with pytest.raises(ValueError, match=r"\d{3} missing: layer1\.0\.conv3\.weight, .*, \.\.\.;"):
        load_official(official_checkpoint(build_r18()), model)


def test_load_official_tells_whether_a_memory_is_wanted():
    with_memory, without = build_r18(), build_r18(memory=False)
    with pytest.raises(ValueError, match=r"unexpected: memory\..*needs .*memory=True"):
        load_official(official_checkpoint(with_memory), without)
    with pytest.raises(ValueError, match=r"missing: memory.*needs .*memory=False"):
        load_official(official_checkpoint(without), with_memory)


def test_load_official_needs_the_memory_of_a_whole_checkpoint():
    checkpoint = official_checkpoint(build_r18())
    del checkpoint["memory"]
    with pytest.raises(ValueError, match=r"1 missing: memory$"):
        load_official(checkpoint, build_r18())


def test_load_official_names_an_unreadable_file(tmp_path):
    model = build_r18(memory=False)
    with pytest.raises(FileNotFoundError, match=r"absent\.pth: no such file"):
        load_official(tmp_path / "absent.pth", model)
    (tmp_path / "text.pth").write_text("not a checkpoint")
    with pytest.raises(ValueError, match=r"text\.pth: not readable safely"):
        load_official(tmp_path / "text.pth", model)
    torch.save(Path("x"), tmp_path / "object.pth")
    with pytest.raises(ValueError, match=r"object\.pth: not readable safely"):
        load_official(tmp_path / "object.pth", model)
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"list\.pth: holds a list, expected a dict"):
        load_official(tmp_path / "list.pth", model)
    with pytest.raises(ValueError, match="checkpoint: state_dict is a list, expected a dict"):
        load_official({"state_dict": []}, model)
