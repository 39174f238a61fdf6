"""The options of a training run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import yaml

Mode = Literal["joint", "mldg", "memory-joint", "memory-mldg"]

# A resumed run must have such an option as it was: it is refused by name where it differs. All
# others may change, and are applied from the iteration the run goes on from.
_FIXED = {"fixed": True}


@dataclass
class TrainConfig:
    """Everything a run depends on.

    The defaults are the paper's, but for data and size, and for weights, which are random unless
    given.

    Args:
        sources: training domains, each ``name=folder``, e.g. ``gtav=data/gtav``, or a description
            of your own, ``my.yaml``; two or more to meta-learn. Name one twice to train on two
            views of it.
        unseen: domains that are only validated on, written in the same way; no choice depends on
            them.
        select_on: domains whose validation splits choose ``best.pt``, written in the same way;
            absent: the sources' own.
        out: folder of the run: checkpoints, log, pictures, resolved configuration.
        mode: joint (plain baseline), mldg, memory-joint, or memory-mldg (the paper).
        model: name of the network, one of pinmem.models.MODEL_NAMES, or ``timm:`` and the name of a
            timm model.
        weights: starting weights of the backbone: ``imagenet``, a local file, or none.
        start: checkpoint whose weights the network starts with: of the trainer, of
            ``pinmem.convert``, or a published one. Its memory, if any, is not initialised again.
        freeze: ``backbone``: train neck, heads and memory alone.
        num_classes: number of classes and memory slots; 0: as the sources have.
        output_stride: of the backbone; the network's published one if absent.
        iterations: training steps.
        batch_size: images of every domain in a step, over all ranks.
        crop_size: height and width of a training crop, one number for both.
        scale: bounds of the random scale.
        class_uniform: share of the draws that begin with a class, all equally likely, and crop
            around a place where it is; the published code's value is 0.5, its scripts' 0.
        statistics: folder of the class statistics that class_uniform draws from, made by
            ``python -m pinmem.data.check --statistics`` or at the start of a run.
        cache: folder in which decoded pairs of the sources are kept, 4 bytes per pixel.
        optimizer: ``sgd``: torch's fused one; ``apex_sgd``: that of NVIDIA's apex, on a GPU.
        lr: rate of the optimiser.
        momentum: of the optimiser.
        weight_decay: of the optimiser.
        schedule: ``exp``: lr*exp(-9*it/120000), the published one; ``poly``:
            lr*(1-it/iterations)^0.9; ``constant``.
        inner_lr: rate of the inner step.
        inner_lr_anneal: after every iteration the inner rate is a quarter of the outer one.
        meta_order: 1 as published; 2 differentiates through the inner step too (mldg modes).
        lean_second_order: in second order keep no activations but compute them again: less memory,
            more time, the same gradient.
        aux_weight: weight of the auxiliary head's loss.
        reading_weight: weight of the reading (cohesion) loss.
        divergence_weight: weight of the divergence loss.
        classification_weight: weight of the memory's classification loss.
        whitening_weight: weight of the whitening loss, of networks that have one (ISW).
        whitening_start: iteration from which on that loss is used; before it, the covariances that
            change with the colours of images are looked for. Published: after six epochs of GTAV.
        whitening_draws: draws in each of ten passes that look for them.
        memory_momentum: how much of the old memory a write keeps.
        memory_temperature: of the reading loss.
        gumbel: Gumbel noise on the attention while training.
        memory_init_draws: draws in each of the two passes that initialise the memory.
        hard_augmentation: which domains get the stronger colour jitter.
        compat: reproduce two habits of the published code: noise at evaluation, and the stronger
            jitter always on the first domain.
        amp: autocast to this type; ``float16`` with a scale on the losses.
        accumulate: run every batch in so many micro-batches, with the gradient and the memory of
            the whole batch; batch normalisation sees a micro-batch. Not with meta_order 2.
        checkpoint_activations: keep only the tensors between the network's stages and run these
            again in the backward pass: less memory, more time, the same numbers.
        compile: torch.compile the backbone and the heads; not with meta_order 2 or
            checkpoint_activations.
        cuda_graph: record an iteration on the GPU and replay it: the faster, the smaller the crops.
            Not with float16, accumulate, checkpoint_activations, lean_second_order, apex_sgd or a
            whitening loss.
        deterministic: on a GPU, PyTorch's deterministic algorithms: the same run again is bitwise
            the same, as it always is on a CPU.
        validate_every: iterations between validations; 0: at start and end only.
        validate_images: images of each validation set, evenly spread; 0: all.
        validate_size: height images are validated at; absent: their own.
        page_images: images of each validation set that the page of pictures at the end of the run
            is made from; 0: no page.
        checkpoint_every: iterations between checkpoints.
        log_every: iterations between log lines.
        skip_bad_batches: how often a run that meets a loss, gradient or memory that is not finite
            goes back to its last checkpoint and on without that batch; then it ends.
        logger: ``wandb``: log to Weights & Biases too.
        resume: go on from the last checkpoint in ``out`` if there is one.
        overwrite: start anew where ``out`` holds a run, which is deleted.
        workers: processes that load data.
        threads: CPU threads; 0: as torch has it.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ...
        seed: of everything random.
    """

    sources: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    select_on: list[str] = field(default_factory=list)
    out: str = "runs/default"
    mode: Mode = field(default="memory-mldg", metadata=_FIXED)
    model: str = field(default="deeplabv3plus_r50", metadata=_FIXED)
    weights: str | None = field(default=None, metadata=_FIXED)
    start: str | None = field(default=None, metadata=_FIXED)
    freeze: Literal["backbone"] | None = field(default=None, metadata=_FIXED)
    num_classes: int = field(default=0, metadata=_FIXED)
    output_stride: int | None = field(default=None, metadata=_FIXED)
    iterations: int = 30_463
    batch_size: int = field(default=4, metadata=_FIXED)
    crop_size: int | tuple[int, int] = field(default=768, metadata=_FIXED)
    scale: tuple[float, float] = field(default=(0.5, 2.0), metadata=_FIXED)
    class_uniform: float = field(default=0.0, metadata=_FIXED)
    statistics: str | None = None
    cache: str | None = None
    optimizer: Literal["sgd", "apex_sgd"] = field(default="sgd", metadata=_FIXED)
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["exp", "poly", "constant"] = "exp"
    inner_lr: float = 0.001
    inner_lr_anneal: bool = True
    meta_order: int = field(default=1, metadata=_FIXED)
    lean_second_order: bool = False
    aux_weight: float = 0.4
    reading_weight: float = 0.02
    divergence_weight: float = 0.4
    classification_weight: float = 0.2
    whitening_weight: float = 0.6
    whitening_start: int = field(default=4650, metadata=_FIXED)
    whitening_draws: int = field(default=500, metadata=_FIXED)
    memory_momentum: float = 0.8
    memory_temperature: float = 1.0
    gumbel: bool = field(default=True, metadata=_FIXED)
    memory_init_draws: int = field(default=2975, metadata=_FIXED)
    hard_augmentation: Literal["meta-test", "all", "none"] = field(
        default="meta-test", metadata=_FIXED
    )
    compat: bool = field(default=False, metadata=_FIXED)
    amp: Literal["none", "bfloat16", "float16"] = "none"
    accumulate: int = field(default=1, metadata=_FIXED)
    checkpoint_activations: bool = False
    compile: bool = False
    cuda_graph: bool = False
    deterministic: bool = False
    validate_every: int = 2000
    validate_images: int = 0
    validate_size: int | None = None
    page_images: int = 20
    checkpoint_every: int = 500
    log_every: int = 50
    skip_bad_batches: int = 0
    logger: Literal["wandb"] | None = None
    resume: bool = False
    overwrite: bool = False
    workers: int = 2
    threads: int = 0
    device: str = "auto"
    seed: int = field(default=0, metadata=_FIXED)

    @property
    def has_memory(self) -> bool:
        """Whether the mode uses a class memory."""
        return self.mode.startswith("memory")

    @property
    def meta(self) -> bool:
        """Whether the mode splits the domains into meta-train and meta-test."""
        return self.mode.endswith("mldg")

    def validate(self) -> None:
        """Check what types cannot say.

        Raises:
            ValueError: naming the option, what came and what was expected.
        """
        if not self.sources:
            raise ValueError("sources: got none, expected at least one name=folder or .yaml file")
        for option in ("sources", "unseen", "select_on"):
            for text in getattr(self, option):
                named_folder(option, text)
        if both := set(self.select_on) & set(self.unseen):
            raise ValueError(
                f"select_on: got {min(both)!r}, expected none of unseen: "
                "a network chosen on a domain has seen it"
            )
        if self.resume and self.overwrite:
            raise ValueError("overwrite: got true with resume true, expected one of them")
        if self.meta and len(self.sources) < 2:
            raise ValueError(
                f"sources: got one domain, expected at least two for mode {self.mode} "
                "(name a domain twice to train on two views of it)"
            )
        if self.meta_order not in (1, 2):
            raise ValueError(f"meta_order: got {self.meta_order}, expected 1 or 2")
        if self.meta_order == 2 and not self.meta:
            raise ValueError(
                f"meta_order: got 2, expected 1 for mode {self.mode}, which has no inner step"
            )
        if self.freeze and self.weights is None and self.start is None:
            raise ValueError("freeze: got backbone, expected weights or a start to freeze with it")
        if self.lean_second_order and self.meta_order != 2:
            raise ValueError("lean_second_order: got true, expected false with meta_order 1")
        if self.accumulate < 1 or self.batch_size % self.accumulate:
            raise ValueError(
                f"accumulate: got {self.accumulate}, expected a divisor of batch_size "
                f"({self.batch_size})"
            )
        if self.accumulate > 1 and self.meta_order == 2:
            raise ValueError(
                f"accumulate: got {self.accumulate}, expected 1 with meta_order 2, where "
                "lean_second_order saves memory"
            )
        if self.compile and (self.meta_order == 2 or self.checkpoint_activations):
            raise ValueError(
                "compile: got true, expected false with meta_order 2 or checkpoint_activations"
            )
        if self.cuda_graph and (eager := self._not_recorded()):
            raise ValueError(f"cuda_graph: got true, expected false with {eager}")
        smallest = self.batch_size // self.accumulate * (1 if self.meta else len(self.sources))
        if smallest < 2:
            raise ValueError(
                f"batch_size: got {self.batch_size} in {self.accumulate} micro-batches, expected "
                "at least 2 images in each: batch normalisation needs them"
            )
        if not 0 <= self.class_uniform <= 1:
            raise ValueError(f"class_uniform: got {self.class_uniform}, expected a share of 0..1")
        if self.class_uniform and not self.statistics:
            raise ValueError("statistics: missing, expected a folder for class_uniform to use")
        for option in ("iterations", "batch_size", "checkpoint_every", "log_every"):
            if getattr(self, option) < 1:
                raise ValueError(f"{option}: got {getattr(self, option)}, expected at least 1")
        for option in (
            "num_classes", "validate_every", "validate_images", "page_images", "workers",
            "threads", "seed", "skip_bad_batches",
        ):  # fmt: skip
            if getattr(self, option) < 0:
                raise ValueError(f"{option}: got {getattr(self, option)}, expected 0 or more")
        if self.has_memory and self.memory_init_draws < 1:
            raise ValueError(
                f"memory_init_draws: got {self.memory_init_draws}, expected at least 1"
            )

    def _not_recorded(self) -> str:
        """The first option under which a step reads values on the host, or draws anew."""
        options = {
            "amp float16": self.amp == "float16",
            "optimizer apex_sgd": self.optimizer == "apex_sgd",
            "accumulate": self.accumulate > 1,
            "checkpoint_activations": self.checkpoint_activations,
            "lean_second_order": self.lean_second_order,
        }
        return next((option for option, given in options.items() if given), "")

    def text(self) -> str:
        """The resolved options as YAML that ``--config`` reads back."""
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return yaml.safe_dump(plain, sort_keys=False)

    def save(self, path: Path) -> None:
        """Write the resolved options as YAML."""
        path.write_text(self.text())


def named_folder(option: str, text: str) -> tuple[str, str]:
    """Split ``name=folder``; a description, ``my.yaml``, may go without (the folder is empty).

    Raises:
        ValueError: the text has no such form.
    """
    name, equals, folder = text.partition("=")
    described = name.partition(":")[0].endswith((".yaml", ".yml"))
    if not name or (equals and not folder) or not (equals or described):
        raise ValueError(f"{option}: got {text!r}, expected name=folder or a .yaml file")
    return name, folder
