"""Steps of a tiny network as one process takes them, and as several ranks do: for the tests."""

from __future__ import annotations

import contextlib
import copy
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pinmem.distributed import Ranks
from pinmem.loss_scale import LossScale
from pinmem.losses import Losses
from pinmem.memory import ClassMemory
from pinmem.meta import gather_domains, joint_step, mldg_step
from pinmem.models import Segmenter
from pinmem.models.backbones import Backbone, BackboneFeatures
from pinmem.models.heads import ASPP, conv_norm_relu
from pinmem.recompute import Stage
from pinmem.whole_batch import WholeBatch

ITERATIONS = 3
CLASSES = 7
DTYPES = (torch.float64, torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Case:
    mode: str
    how: dict[str, Any] = field(default_factory=dict)
    frozen: bool = False

    @property
    def images(self) -> int:
        """Of a domain: two and three ranks have the same number each, in micro-batches too."""
        return 6 * self.how.get("accumulate", 1)

    def __str__(self) -> str:
        options = [f"{name}={value}" for name, value in self.how.items()]
        return ", ".join([self.mode, *options, *["frozen"] * self.frozen])


CASES = [
    Case("joint"),
    Case("memory-joint"),
    Case("mldg"),
    Case("memory-mldg"),
    Case("mldg", {"order": 2}),
    Case("memory-mldg", {"order": 2}),
    Case("memory-mldg", {"order": 2, "lean": True}),
    Case("memory-mldg", {"order": 2, "checkpoint": True}),
    Case("memory-mldg", {"checkpoint": True}, frozen=True),
    Case("memory-joint", {"accumulate": 2}),
    Case("memory-mldg", {"accumulate": 2, "checkpoint": True}),
    Case("memory-mldg", {"order": 2}, frozen=True),
]


class Tiny(Backbone):
    """Three stages at 1/4, 1/8 and 1/8, with dropout in the last."""

    channels = (8, 12, 16)
    output_stride = 8

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(
            nn.Sequential(conv_norm_relu(before, after, 3), nn.AvgPool2d(pool))
            for before, after, pool in ((3, 8, 4), (8, 12, 2), (12, 16, 1))
        )
        self.parts[2].append(nn.Dropout(0.1))

    def stages(self) -> list[Stage]:
        return [Stage(part) for part in self.parts]

    def forward(self, images: Tensor) -> BackboneFeatures:
        low = self.parts[0](images)
        third = self.parts[1](low)
        return BackboneFeatures(low, third, self.parts[2](third))


def network(case: Case) -> Segmenter:
    torch.manual_seed(0)
    memory = ClassMemory(CLASSES, 256, gumbel="training") if "memory" in case.mode else None
    backbone = Tiny()
    model = Segmenter(backbone, ASPP(16, 16), CLASSES, decoder_convs=1, memory=memory)
    if case.frozen:
        model.freeze_backbone()
    return model.double().train()


def data(iteration: int, count: int) -> tuple[Tensor, Tensor]:
    """Images [B,3,3,16,24] of three domains and labels; classes and counts differ by image."""
    draw = torch.Generator().manual_seed(100 + iteration)
    images = torch.randn(count, 3, 3, 16, 24, generator=draw, dtype=torch.float64)
    labels = torch.randint(CLASSES - 1, (count, 3, 16, 24), generator=draw, dtype=torch.uint8)
    for image in range(count):  # from many labelled pixels to few
        labels[image, :, 4 + 10 * image // count :] = 255
    labels[2, :, :4] = CLASSES - 1  # only one rank sees it
    if iteration == 1:  # the first rank has no label
        labels[: count // 2] = 255
    return images, labels


def run(case: Case, ranks: Ranks | None, device: str = "cpu") -> dict[str, Tensor]:
    """Three iterations; everything that they leave behind."""
    model = network(case).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    torch.manual_seed(3)
    found: list[Losses] = []
    mine: Any = slice(None)
    if ranks is not None:
        mine = list(ranks.share(case.images))
        ranks.images = len(mine)
    for iteration in range(ITERATIONS):
        images, labels = (each[mine].to(device) for each in data(iteration, case.images))
        if case.mode.endswith("joint"):
            batch = gather_domains(images, labels, [0, 1, 2])
            found.append(joint_step(model, optimizer, batch, **case.how, ranks=ranks))
        else:
            split = gather_domains(images, labels, [0, 2]), gather_domains(images, labels, [1])
            found += mldg_step(model, optimizer, *split, 0.1, **case.how, ranks=ranks)
    momenta = [state["momentum_buffer"] for state in optimizer.state.values()]
    ends = {
        **model.state_dict(),
        **{f"momentum/{index}": momentum for index, momentum in enumerate(momenta)},
        "losses": torch.stack([torch.stack(losses) for losses in found]),
        "random": torch.get_rng_state(),
    }
    return {name: value.cpu() for name, value in ends.items()}


def overflow(ranks: Ranks) -> dict[str, Tensor]:
    """A step where the last rank has an image that is not finite, with a scale and without."""
    case = Case("memory-mldg")
    images, labels = (each[list(ranks.share(6))] for each in data(0, 6))
    ranks.images = len(images)
    if ranks.rank == ranks.size - 1:
        images[0] = torch.inf
    split = gather_domains(images, labels, [0, 2]), gather_domains(images, labels, [1])
    found = {}
    for scale in (LossScale(), None):
        model = network(case)
        before = copy.deepcopy(model.state_dict())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        losses = mldg_step(model, optimizer, *split, 0.1, scale=scale, ranks=ranks)[0]
        name = "plain" if scale is None else "scaled"
        found[f"{name} total"] = losses.total
        same = [torch.equal(before[k], v) for k, v in model.state_dict().items()]
        found[f"{name} kept"] = torch.tensor(all(same))
    return found


def join(rank: int, size: int, folder: Path, backend: str = "gloo") -> Ranks:
    """A group that meets in a file of the folder."""
    os.environ.update({"GLOO_SOCKET_IFNAME": "lo"})
    dist.init_process_group(backend, f"file://{folder}/meet{size}", rank=rank, world_size=size)
    return Ranks(rank, size)


def worker(rank: int, size: int, folder: str) -> None:
    """What a rank found in every case, in a file."""
    torch.set_num_threads(1)
    ranks = join(rank, size, Path(folder))
    found: dict[str, dict[str, Tensor]] = {str(case): run(case, ranks) for case in CASES}
    found |= {str(dtype): normalised(dtype, ranks) for dtype in DTYPES}
    found["overflow"] = overflow(ranks)
    torch.save(found, Path(folder) / f"{size}-{rank}.pt")
    dist.destroy_process_group()


def gpu_worker(rank: int, size: int, folder: str) -> None:
    """The same cases on a GPU for each rank, through NCCL."""
    torch.cuda.set_device(rank)
    ranks = join(rank, size, Path(folder), "cpu:gloo,cuda:nccl")
    found = {str(case): run(case, ranks, f"cuda:{rank}") for case in CASES}
    torch.save(found, Path(folder) / f"{size}-{rank}.pt")
    dist.destroy_process_group()


def normalised(dtype: torch.dtype, ranks: Ranks | None) -> dict[str, Tensor]:
    """Batch normalisation of [6,4,3,5] under a mean of 50 deviations, in both orders."""
    draw = torch.Generator().manual_seed(5)
    wide = torch.promote_types(dtype, torch.float32)
    maps, cotangent, tangent = torch.randn(3, 6, 4, 3, 5, generator=draw, dtype=torch.float64)
    # What 16 bits hold is what is normalised, in every type.
    maps = (maps + 50).bfloat16()
    mine: Any = slice(None) if ranks is None else list(ranks.share(6))
    maps, cotangent, tangent = (each[mine].to(dtype) for each in (maps, cotangent, tangent))
    norm = nn.BatchNorm2d(4).to(wide)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(4, generator=draw) + 0.5)
    leaves = maps.requires_grad_(), norm.weight, norm.bias
    whole = contextlib.nullcontext() if ranks is None else WholeBatch(ranks)
    with whole:
        output = norm(maps)
    cotangent.requires_grad_()
    first = torch.autograd.grad(output, leaves, cotangent, create_graph=True)
    along = (first[0] * tangent).sum() + first[1].sum() * 0.3 + first[2].sum() * 0.2
    second = torch.autograd.grad(along, [maps, norm.weight, cotangent])
    by_rank = {"output": output, "first": first[0], "second": second[0], "along": second[2]}
    whole_batch = {"first weight": first[1], "first bias": first[2], "second weight": second[1]}
    if ranks is not None:
        whole_batch = {name: ranks.total(value) for name, value in whole_batch.items()}
    return {k: v.detach() for k, v in (by_rank | whole_batch | norm.state_dict()).items()}
