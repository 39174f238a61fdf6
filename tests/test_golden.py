"""The published implementation's numbers, file by file, in float64 and once more in float32.

Reads every file of ``tests/golden`` and of the folder that ``PINMEM_GOLDEN`` names. All settings
come from the file itself.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import pinmem
from pinmem.losses import Losses, LossWeights
from pinmem.meta import gather_domains, joint_step, mldg_step
from pinmem.models import Segmenter
from pinmem.models.official import official_name

from .golden import recipe

HERE = Path(__file__).parent / "golden"
FOLDERS = [HERE, *(Path(p) for p in [os.environ.get("PINMEM_GOLDEN")] if p)]
ARCHITECTURES = {
    "deepv3plus.DeepR18V3PlusD": ("deeplabv3plus_r18", None),
    "deepv3plus.DeepR50V3PlusD": ("deeplabv3plus_r50", None),
    "deepv3plus.DeepR50V3PlusD_OS8": ("deeplabv3plus_r50", 8),
    "deepv3plus.DeepR101V3PlusD": ("deeplabv3plus_r101", None),
    "deepv3plus.DeepR101V3PlusD_OS8": ("deeplabv3plus_r101", 8),
    "deepv2.DeepR101V2D": ("deeplabv2_r101", None),
}
Golden = Mapping[str, np.ndarray]


def files(pattern: str) -> list[Path]:
    """The golden files of one kind, in every folder."""
    return sorted(path for folder in FOLDERS for path in folder.glob(pattern))


def close(name: str, got: Tensor | np.ndarray | float, expected: np.ndarray, rel: float, zero=0.0):
    """Compare relative to the largest expected value; absolutely where that is zero."""
    got = np.asarray(got.detach() if isinstance(got, Tensor) else got, np.float64)
    assert got.shape == expected.shape, f"{name}: shape {got.shape}, expected {expected.shape}"
    bound = rel * np.abs(expected).max(initial=0.0) or zero
    error = np.abs(got - expected).max(initial=0.0)
    assert error <= bound, f"{name}: off by {error:.3g}, allowed {bound:.3g}"


def load_recipe(module: torch.nn.Module, name_of, dtype: torch.dtype) -> None:
    """Fill a module with the recipe's weights under their official names."""
    for ours, tensor in module.state_dict().items():
        if not ours.endswith("memory.memory") and ours != "memory":
            tensor.copy_(torch.from_numpy(recipe.weight(name_of(ours), tuple(tensor.shape))))
    module.to(dtype)


# --- the memory module alone ------------------------------------------------------------------

MEMORY_NAMES = {
    "project.": "output.0.",
    "project_norm.": "output.1.",
    "write_conv.": "writenet.writefeat.0.",
    "write_norm.": "writenet.writefeat.1.",
    "classifier.": "clsfier.",
}


def memory_name(ours: str) -> str:
    prefix, _, rest = ours.partition(".")
    return MEMORY_NAMES[prefix + "."] + rest


@pytest.mark.parametrize("dtype, rel", [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("path", files("memory_*.npz"), ids=lambda p: p.stem)
def test_memory(path: Path, dtype: torch.dtype, rel: float) -> None:
    golden = np.load(path)
    old = torch.from_numpy(golden["memory"]).to(dtype)
    num_classes, dim = old.shape
    module = pinmem.ClassMemory(
        num_classes, dim, float(golden["momentum"]), float(golden["temperature"])
    )
    load_recipe(module, memory_name, dtype)
    module.store(old)
    labels = torch.from_numpy(golden["mask"])
    w_query = torch.from_numpy(golden["w_query"]).to(dtype)
    w_memory = torch.from_numpy(golden["w_memory"]).to(dtype)

    # The pass that writes.
    query = torch.from_numpy(golden["query"]).to(dtype).requires_grad_()
    features, scores = module.read(query)
    reading = module.reading_loss(scores, labels)
    written = module.write(query, labels)
    loss = (
        (features * w_query).mean()
        + 0.3 * reading
        + 0.4 * written.divergence
        + 0.2 * written.classification
        + (written.memory * w_memory).sum()
    )
    loss.backward()
    slots_last = scores.permute(0, 2, 3, 1)
    over_pixels = slots_last.reshape(-1, num_classes).softmax(0).view(slots_last.shape)
    results: dict[str, Tensor | None] = {
        "read_out": features,
        "score_query": over_pixels,
        "score_memory": slots_last.softmax(-1),
        "read_loss": reading,
        "div_loss": written.divergence,
        "cls_loss": written.classification,
        "new_memory": written.memory,
        "loss": loss,
        "grad_query": query.grad,
    }
    results |= {
        f"grad/{memory_name(name)}": p.grad.clone() for name, p in module.named_parameters()
    }

    # The pass that only reads, with a gradient for the memory.
    query = torch.from_numpy(golden["query"]).to(dtype).requires_grad_()
    slots = old.clone().requires_grad_()
    features, scores = module.read(query, slots)
    reading = module.reading_loss(scores, labels)
    ((features * w_query).mean() + 0.3 * reading).backward()
    results |= {
        "test_read_out": features,
        "test_read_loss": reading,
        "test_grad_query": query.grad,
        "test_grad_memory": slots.grad,
    }
    inputs = {"query", "mask", "memory", "w_query", "w_memory", "temperature", "momentum"}
    assert set(golden.files) == inputs | set(results)
    for name, value in results.items():
        assert value is not None, name
        close(name, value, golden[name], rel)


# --- whole networks ---------------------------------------------------------------------------


def build(golden: Golden, dtype: torch.dtype) -> tuple[Segmenter, dict]:
    """The network of a golden file with the recipe's weights, and the file's settings."""
    config = json.loads(str(golden["config"]))
    name, output_stride = ARCHITECTURES[config["arch"].removeprefix("network.")]
    assert not any(config["wt_layer"]) and config["gumbel_off"], "not among our networks"
    model = pinmem.build_model(
        name,
        num_classes=config["mem_slot"],
        memory=config["memory"],
        output_stride=output_stride,
        momentum=config["mem_momentum"],
        temperature=config["mem_temp"],
    )
    load_recipe(model, official_name, dtype)
    if model.memory is not None:
        model.memory.store(torch.from_numpy(recipe.memory(config["mem_slot"], config["mem_dim"])))
    for module in model.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0
    return model, config


@pytest.mark.parametrize("dtype, rel", [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("path", files("eval_*.npz"), ids=lambda p: p.stem)
def test_eval(path: Path, dtype: torch.dtype, rel: float) -> None:
    golden = np.load(path)
    model, _ = build(golden, dtype)
    model.eval()
    images = torch.from_numpy(golden["images"]).to(dtype)
    with torch.no_grad():
        logits = model.predict(images)
        scores = model(images).scores
    close("logits", logits[:, :, ::3, ::3], golden["logits"], rel)
    if golden["read_scores"].size > 1:
        close("read_scores", scores.softmax(1).permute(0, 2, 3, 1), golden["read_scores"], rel)
    argmax = logits.argmax(1).numpy()
    if dtype == torch.float64:
        assert np.array_equal(argmax, golden["argmax"])
        counted = pinmem.ops.upsampled_confusion(
            model(images).logits.detach(), torch.from_numpy(golden["argmax"])
        )
        assert counted.trace() == counted.sum() == argmax.size


def log_of(losses: Losses) -> dict[str, float]:
    names = ("total", "seg", "aux", "read", "div", "cls")
    return {name: float(loss) for name, loss in zip(names, losses, strict=True)}


def summary(tensor: Tensor) -> np.ndarray:
    """A state row: mean, population deviation, up to 16 entries."""
    flat = tensor.double().flatten().numpy()
    places = np.linspace(0, flat.size - 1, 16).astype(int) if flat.size > 16 else slice(None)
    return np.concatenate([[flat.mean(), flat.std()], flat[places]])


def train(golden: Golden, dtype: torch.dtype, iterations: int):
    """Run the procedure of a ``meta_*`` file; yields its losses after each iteration."""
    model, config = build(golden, dtype)
    model.train()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=config["lr"], momentum=config["momentum"], weight_decay=5e-4
    )
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: math.exp(-config["poly_exp"] * i / 120000)
    )
    weights = LossWeights(
        aux=0.0 if config["no_aux_loss"] else 0.4,
        reading=config["mem_readloss"],
        divergence=config["mem_divloss"],
        classification=config["mem_clsloss"],
    )
    inner_lr = config["inner_lr"]
    for i in range(iterations):
        images = torch.from_numpy(golden["images"][i]).to(dtype)
        labels = torch.from_numpy(golden["labels"][i])
        if config["mldg"]:
            sides = [json.loads(str(golden[f"splits_{side}"][i])) for side in ("train", "test")]
            batches = [gather_domains(images, labels, side) for side in sides]
            logs = mldg_step(model, optimizer, *batches, inner_lr, weights)
        else:
            everything = gather_domains(images, labels, range(images.shape[1]))
            logs = (joint_step(model, optimizer, everything, weights),)
        rate.step()
        if config["mldg"] and config["inner_lr_anneal"]:
            inner_lr = optimizer.param_groups[0]["lr"] / 4
        yield model, [log_of(log) for log in logs], optimizer.param_groups[0]["lr"], inner_lr


@pytest.mark.parametrize("path", files("meta_*.npz"), ids=lambda p: p.stem)
def test_meta(path: Path) -> None:
    golden = np.load(path)
    rel, zero = 1e-7, 1e-9
    logs: list[dict[str, float]] = []
    for i, step in enumerate(train(golden, torch.float64, len(golden["images"]))):
        model, log, lr, inner_lr = step
        logs += log
        if model.memory is not None:
            close(f"memory[{i}]", model.memory.memory, golden["memory"][i], rel)
    for name in logs[0]:
        # Each loss against its own size: none hides behind a larger one.
        for j, expected in enumerate(golden[f"log/{name}"]):
            close(f"log/{name}[{j}]", logs[j][name], expected, rel, zero)
        assert len(logs) == len(golden[f"log/{name}"])
    rows = {
        f"state/{official_name(n)}": t
        for n, t in model.state_dict().items()
        if n != "memory.memory"
    }
    assert set(rows) == {name for name in golden.files if name.startswith("state/")}
    for name, tensor in rows.items():
        close(name, summary(tensor), golden[name], rel, zero)
    close("final_lr", lr, golden["final_lr"], rel)
    close("final_inner_lr", inner_lr, golden["final_inner_lr"], rel)


@pytest.mark.parametrize("path", files("meta_*.npz"), ids=lambda p: p.stem)
def test_meta_float32(path: Path) -> None:
    golden = np.load(path)
    _, logs, _, _ = next(train(golden, torch.float32, 1))
    for j, log in enumerate(logs):
        for name, value in log.items():
            close(f"log/{name}[{j}]", value, golden[f"log/{name}"][j], 1e-4, 1e-9)


# --- the comparison itself --------------------------------------------------------------------


@pytest.mark.parametrize(
    "pattern, key, test",
    [
        ("memory_*.npz", "test_grad_memory", lambda path: test_memory(path, torch.float64, 1e-9)),
        ("eval_baseline*.npz", "logits", lambda path: test_eval(path, torch.float64, 1e-9)),
        ("meta_agg*.npz", "state/final2.0.bias", lambda path: test_meta(path)),
    ],
)
def test_one_changed_number_fails(pattern: str, key: str, test, tmp_path: Path) -> None:
    source = sorted(HERE.glob(pattern))[0]
    arrays = dict(np.load(source))
    changed = arrays[key].copy()
    changed.flat[changed.size // 2] += 1e-5 * np.abs(changed).max()
    np.savez(tmp_path / source.name, **(arrays | {key: changed}))
    with pytest.raises(AssertionError, match="off by"):
        test(tmp_path / source.name)


def test_golden_files_are_there() -> None:
    assert len(list(HERE.glob("*.npz"))) == 9
