"""One run of the study and what is measured at its end, as JSON."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

import pinmem
from examples.study.cells import CELLS
from pinmem import ops
from pinmem.config import TrainConfig
from pinmem.evaluate import confusion_of, score
from pinmem.memory import ClassMemory
from pinmem.meta import gather_domains
from pinmem.passes import Passes, evaluating
from pinmem.recompute import frozen_statistics, parameters_as
from pinmem.step import loss_weights_of
from pinmem.train import Trainer

aten = torch.ops.aten
CONFIG = Path("configs/default.yaml")
_STATISTICS_BATCH = 4  # images of one domain, as in a pass of the default run
_GRADIENT_BATCHES = 8


def device_name(device: torch.device) -> str:
    """Of a result: ``cpu``, or the GPU's."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def file_name(cell: str, seed: int) -> str:
    """Of the folder and the result of a run."""
    return "-".join(re.findall(r"[\w.]+", f"{cell} {seed}"))


def run(cell: str, seed: int, out: Path, results: Path, device: str = "cpu") -> None:
    """Train in a folder under ``out``, or go on there; measure, and write the result."""
    folder = out / file_name(cell, seed)
    config = config_of(cell, seed, folder, device)
    began, cpu = time.perf_counter(), time.process_time()
    trainer = Trainer(config)
    if trainer.model.memory is not None and CELLS[cell].attention != 1:
        sharpen(trainer.model.memory, CELLS[cell].attention)
    resumed = trainer.iteration
    slow = config.amp == "float16" and device == "cpu"
    with WideConvolutions() if slow else nullcontext():
        scores = trainer.fit()
    result: dict[str, Any] = {
        "cell": cell,
        "seed": seed,
        "changes": CELLS[cell].changes,
        "attention": CELLS[cell].attention,
        "miou": scores,
        "start": trainer.start_scores,
        "curves": list(_curves(folder)),
        # Of the whole run, validation included; none where it was taken up again.
        "seconds": None if resumed else time.perf_counter() - began,
        "cpu_seconds": None if resumed else time.process_time() - cpu,
        "memory": _memory(trainer, CELLS[cell].attention),
        "gradients": _gradients(trainer) if config.meta else {},
        "miou with own statistics": own_statistics(trainer),
        "versions": {"pinmem": pinmem.__version__, "torch": torch.__version__},
        "device": device_name(trainer.device),
    }
    results.mkdir(parents=True, exist_ok=True)
    beside = results / f".{file_name(cell, seed)}.part"
    beside.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(beside, results / f"{file_name(cell, seed)}.json")


def config_of(cell: str, seed: int, folder: Path, device: str) -> TrainConfig:
    """The default run with what the cell changes; a bare name is a domain of the default's."""
    on_a_gpu = device != "cpu"
    options = yaml.safe_load(CONFIG.read_text())
    domains = {text.partition("=")[0]: text for text in options["sources"] + options["unseen"]}
    options |= CELLS[cell].changes
    options["sources"] = [domains.get(text, text) for text in options["sources"]]
    options["unseen"] = [t for t in domains.values() if t not in options["sources"]]
    return TrainConfig(
        **options | {
            "out": str(folder), "seed": seed, "resume": True, "page_images": 0,
            "validate_every": options["iterations"] // 3, "threads": 1, "workers": int(on_a_gpu),
            "device": device, "deterministic": on_a_gpu,
            "cuda_graph": on_a_gpu and options.get("amp") != "float16",
        }
    )  # fmt: skip


class WideConvolutions(TorchDispatchMode):
    """Convolutions of float16 in float32, their results rounded, as a GPU computes them.

    PyTorch's own on a CPU take up to 150 times as long as float32's.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """The op, in float32 where it is a convolution or its gradient."""
        convolutions = (aten.convolution.default, aten.convolution_backward.default)
        if func not in convolutions or args[0].dtype != torch.float16:
            return func(*args, **kwargs or {})
        wide = tree_map_only(Tensor, Tensor.float, args)
        return tree_map_only(Tensor, Tensor.half, func(*wide, **kwargs or {}))


def sharpen(memory: ClassMemory, temperature: float) -> None:
    """Divide the scores by a temperature before the softmax, in plain PyTorch."""

    def read(query: Tensor, slots: Tensor | None = None) -> tuple[Tensor, Tensor]:
        slots = memory.memory if slots is None else slots
        unit = F.normalize(query, dim=1)
        scores = torch.einsum("bchw,kc->bkhw", unit, slots.to(unit.dtype))
        attention = (scores / temperature).softmax(dim=1)
        readout = torch.einsum("bkhw,kc->bchw", attention, slots.to(unit.dtype))
        projected = memory.project(torch.cat([unit, readout], dim=1))
        return F.relu(memory.project_norm(projected)), scores

    memory.read = read  # type: ignore[method-assign,assignment]


def _curves(folder: Path) -> Iterator[dict[str, Any]]:
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        scores = {k.removeprefix("miou/"): v for k, v in row.items() if k.startswith("miou/")}
        if scores:
            iou = {k.removeprefix("iou/"): v for k, v in row.items() if k.startswith("iou/")}
            yield {"iteration": row["iteration"], "miou": scores, "iou": iou}


@torch.no_grad()
def _memory(trainer: Trainer, temperature: float) -> dict[str, Any]:
    """Whether the memory carries anything, and how it is read; nothing without one."""
    model, slots = trainer.model, trainer.model.memory
    if slots is None:
        return {}
    full = slots.memory.clone()
    unit = F.normalize(full, dim=1)
    found: dict[str, Any] = {"similarity": _off_diagonal(unit @ unit.T)}
    slots.store(full.mean(0, keepdim=True).expand_as(full))
    found["miou with the slots' mean"] = {
        name: score(confusion_of(model, dataset, workers=0)).miou
        for name, dataset in trainer.validation.items()
    }
    slots.store(full)
    means: dict[str, tuple[Tensor, Tensor]] = {}
    with evaluating(model):
        for name, dataset in trainer.validation.items():
            total: dict[str, float] = {}
            sums = [torch.zeros_like(full), torch.zeros_like(full[:, 0])]
            for index in range(len(dataset)):  # type: ignore[arg-type]
                image, labels = (each.to(trainer.device) for each in dataset[index])
                output = model(image[None])
                assert output.scores is not None
                more = ops.class_sums(output.query, labels[None], len(full))
                sums = [a + b for a, b in zip(sums, more, strict=True)]
                scores = output.scores / temperature
                for key, value in _reading(scores, output.logits, labels).items():
                    total[key] = total.get(key, 0) + value
            found[name] = {
                "own slot is the nearest": total["nearest"] / total["pixels"],
                "attention on the own slot": total["attention"] / total["pixels"],
                "own slot is the nearest, at mistakes": total["saved"] / total["mistakes"],
            }
            means[name] = F.normalize(sums[0], dim=1), sums[1] > 0
    found["class means and slots"] = {
        name: float((mean * unit).sum(1)[seen].mean()) for name, (mean, seen) in means.items()
    }
    names = list(means)
    found["class means of two domains"] = {
        f"{a}, {b}": float((means[a][0] * means[b][0]).sum(1)[means[a][1] & means[b][1]].mean())
        for i, a in enumerate(names)
        for b in names[:i]
    }
    return found


@torch.no_grad()
def own_statistics(trainer: Trainer) -> dict[str, float]:
    """The scores where each domain's images are normalised with BatchNorm statistics of their own.

    As every pass of meta-learning normalises them, which sees one domain at a time.
    """
    model = trainer.model
    full = {name: value.clone() for name, value in model.state_dict().items()}
    layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    found = {}
    for name, dataset in trainer.validation.items():
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # the mean of all batches
            layer.train()
        count = len(dataset)  # type: ignore[arg-type]
        for index in range(0, count, _STATISTICS_BATCH):
            # The last image fills its batch up: a head that pools needs more than one.
            places = range(index, index + _STATISTICS_BATCH)
            images = [dataset[min(place, count - 1)][0] for place in places]
            model(torch.stack(images).to(trainer.device))
        found[name] = score(confusion_of(model, dataset, workers=0)).miou
        model.load_state_dict(full)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    return found


def _reading(scores: Tensor, logits: Tensor, labels: Tensor) -> dict[str, float]:
    """At the labelled pixels of an image: where attention goes, where the network is wrong."""
    size = scores.shape[2:]
    small = F.interpolate(labels[None, None].double(), size=size, mode="nearest").long().flatten()
    counted = small != 255
    truth = small[counted]
    flat = scores.flatten(2)[0].T[counted]
    decided = F.interpolate(logits, size=size, mode="bilinear", align_corners=True)
    wrong = decided.flatten(2)[0].T[counted].argmax(1) != truth
    nearest = flat.argmax(1) == truth
    return {
        "pixels": len(truth),
        "nearest": int(nearest.sum()),
        "attention": float(flat.softmax(1).gather(1, truth[:, None]).sum()),
        "mistakes": int(wrong.sum()),
        "saved": int((nearest & wrong).sum()),
    }


def _gradients(trainer: Trainer) -> dict[str, float]:
    """What the inner step moves and how inner and outer gradients lie, over some batches."""
    model, config = trainer.model, trainer.config
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    parameters = list(named.values())
    passes = Passes(model, loss_weights_of(config))
    rate = config.lr / 4
    rows = []
    draws = iter(trainer.batches.for_memory())
    for index, (images, labels) in zip(range(_GRADIENT_BATCHES), draws, strict=False):
        images = trainer.batches.augment_for_memory(images, index)
        labels = labels.to(trainer.device)
        train = gather_domains(images, labels, [index % 2])
        test = gather_domains(images, labels, [1 - index % 2])
        with frozen_statistics(model):
            _, inner = passes.gradients(train, parameters)
            before, outer = passes.gradients(test, parameters, write=False)
            moved = [p.detach() - rate * g for p, g in zip(parameters, inner, strict=True)]
            with parameters_as(model, dict(zip(named, moved, strict=True))), torch.no_grad():
                after = passes.losses(test, write=False)
        flat = [torch.cat([g.flatten() for g in grads]) for grads in (inner, outer)]
        rows.append(
            {
                "cosine of inner and outer": float(F.cosine_similarity(flat[0], flat[1], dim=0)),
                "norm, inner": float(flat[0].norm()),
                "norm, outer": float(flat[1].norm()),
                "outer loss": float(before.total),
                "outer loss after an inner step at a quarter of the rate": float(after.total),
            }
        )
    return {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}


def _off_diagonal(matrix: Tensor) -> float:
    return float((matrix.sum() - matrix.trace()) / (matrix.numel() - len(matrix)))
