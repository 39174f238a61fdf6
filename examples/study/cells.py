"""The runs of the study: what each changes in ``configs/default.yaml``, and its seeds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Cell:
    """Some runs that differ in their seed.

    Args:
        changes: options of the default run that differ.
        seeds: 0, 1, ...
        attention: what the attention's scores are divided by; published: 1, and nothing else is an
            option of pinmem (plain PyTorch in `examples.study.run`).
    """

    changes: dict[str, Any] = field(default_factory=dict)
    seeds: int = 3
    attention: float = 1.0


# Of the same four modes over three times as many iterations.
LONG = ", 360 iterations"
# A meta-iteration steps along the sum of two gradients, each a mean over half as many images: joint
# training takes twice the rate. Of 0.01, 0.02 and 0.05 the seen domains prefer 0.05 in joint
# training and 0.02 in memory-mldg (seed 0).
JOINT_LR = 0.05

MODE_CELLS = {
    "joint": Cell({"mode": "joint", "lr": JOINT_LR}, seeds=5),
    "mldg": Cell({"mode": "mldg"}, seeds=5),
    "memory-joint": Cell({"mode": "memory-joint", "lr": JOINT_LR}, seeds=5),
    "memory-mldg": Cell(seeds=5),
}

MODES = tuple(MODE_CELLS)

CELLS: dict[str, Cell] = {
    **MODE_CELLS,
    **{mode + LONG: Cell(cell.changes | {"iterations": 360}) for mode, cell in MODE_CELLS.items()},
    # How far apart the domains are: the unseen ones learnt from.
    **{
        f"joint on {domain}": Cell(
            {"mode": "joint", "lr": JOINT_LR, "sources": [domain], "batch_size": 8}
        )
        for domain in ("cityscapes", "acdc")
    },
    # What each part gives.
    "second order": Cell({"meta_order": 2}),
    "Gumbel noise": Cell({"gumbel": True}),
    "no reading loss": Cell({"reading_weight": 0.0}),
    "no writing losses": Cell({"divergence_weight": 0.0, "classification_weight": 0.0}),
    "memory momentum 0": Cell({"memory_momentum": 0.0}),
    "inner rate 0": Cell({"inner_lr": 0.0, "inner_lr_anneal": False}),
    # Jitter: joint's images all jittered hard, where meta-learning's half are; or none of them.
    "joint, hard jitter": Cell({"mode": "joint", "lr": JOINT_LR, "hard_augmentation": "all"}),
    "no hard jitter": Cell({"hard_augmentation": "none"}),
    # Joint's step, but for the statistics of one domain's images at a time.
    "mldg as joint": Cell(
        {
            "mode": "mldg", "hard_augmentation": "none", "inner_lr": 0.0, "inner_lr_anneal": False,
            "weight_decay": 1e-3,
        }
    ),
    # What could make the memory be read.
    "attention / 0.1": Cell(attention=0.1),
    "attention / 0.02": Cell(attention=0.02),
    "reading loss x 20": Cell({"reading_weight": 0.4}),
    "stride 16": Cell({"output_stride": 16}),
    # Mixed precision.
    "bfloat16": Cell({"amp": "bfloat16"}),
    "float16": Cell({"amp": "float16"}),
}  # fmt: skip
