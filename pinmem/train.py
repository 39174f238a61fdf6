"""Train a network: ``python -m pinmem.train [--config FILE] [--option value]``.

Every random number is a function of the seed and the iteration, or of a generator whose state is
in the checkpoint: a run that is killed and resumed ends with the bits of one that was not.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pinmem import checkpoint, ops
from pinmem.config import TrainConfig, parse, run
from pinmem.data import DomainDataset, seeded
from pinmem.data.transforms import Photometric
from pinmem.evaluate import Score, confusion_of, pick_device, score
from pinmem.losses import Losses, LossWeights
from pinmem.meta import gather_domains, joint_step, mldg_step, split_domains
from pinmem.passes import autocast, evaluating
from pinmem.prepare import (
    build_network,
    load_draws,
    open_places,
    open_sources,
    open_validation,
    seed_of,
)
from pinmem.report import Report

# What seeds what: kept apart so that no two streams share numbers.
_DRAWS, _PHOTOMETRIC, _SPLIT, _INIT_DRAWS = range(4)
# Options that a resumed run must share with the one it goes on from.
_SAME_RUN = (
    "sources", "mode", "model", "num_classes", "output_stride", "freeze", "batch_size", "crop_size",
    "seed",
)  # fmt: skip


class Trainer:
    """A run: its network, data, optimiser and folder.

    Args:
        config: validated on entry.

    Raises:
        ValueError: an option, a dataset or the checkpoint to resume from does not fit.
    """

    def __init__(self, config: TrainConfig) -> None:
        config.validate()
        self.config = config
        self.device = pick_device(config.device)
        self.amp_dtype = None if config.amp == "none" else torch.bfloat16
        if config.threads:
            torch.set_num_threads(config.threads)
        self.sources = open_sources(config)
        self.classes = self.sources[0].classes
        self.validation = open_validation(config, self.classes)
        torch.manual_seed(config.seed)
        self.model = build_network(config).to(self.device).to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.weights = LossWeights(
            config.aux_weight,
            config.reading_weight,
            config.divergence_weight,
            config.classification_weight,
        )
        self.photometric = {hard: Photometric(hard=hard) for hard in (False, True)}
        self.iteration = 0
        self.inner_lr = config.inner_lr
        self.best = -1.0
        # mIoU of every validation set before the first iteration, and last.
        self.start_scores: dict[str, float] = {}
        self.scores: dict[str, float] = {}
        self.out = Path(config.out)
        resumed = self._resume() if config.resume else False
        # A memory that comes with the weights is not initialised again.
        self.has_memory = False
        if config.start is not None and self.iteration == 0:
            self.has_memory = checkpoint.start_from(config.start, self.model, config.model)
        self.out.mkdir(parents=True, exist_ok=True)
        config.save(self.out / "config.yaml")
        self.report = Report(self.out, config, self.iteration, resumed, self.classes)
        self.places = open_places(
            config, self.sources, lambda what: lambda items: self.report.track(items, what)
        )

    def fit(self) -> dict[str, float]:
        """Train to the last iteration; returns the final mIoU of every validation set."""
        config = self.config
        if self.iteration == 0:
            if self.model.memory is not None and not self.has_memory:
                self.initialise_memory()
            self.start_scores = self.scores = self.validate()
            self.save("last.pt")
        loader = iter(self._loader(self.iteration))
        while self.iteration < config.iterations:
            images, labels = next(loader)
            losses = self.step(images, labels)
            self.iteration += 1
            self._anneal()
            self.report.step(self.iteration, losses, self.optimizer.param_groups[0]["lr"])
            done = self.iteration == config.iterations
            if done or (config.validate_every and self.iteration % config.validate_every == 0):
                self.scores = self.validate()
            if done or self.iteration % config.checkpoint_every == 0:
                self.save("last.pt")
        self.report.page(self.model, self.validation)
        self.report.close(self.start_scores, self.scores)
        return self.scores

    def step(self, images: Tensor, labels: Tensor) -> dict[str, Losses]:
        """One iteration on images uint8 [B,D,3,h,w] and labels uint8 [B,D,h,w]."""
        config, domains = self.config, images.shape[1]
        train, test = list(range(domains)), list[int]()
        if config.meta:
            generator = torch.Generator().manual_seed(seed_of(config.seed, _SPLIT, self.iteration))
            train, test = split_domains(domains, generator)
        hard = {"meta-test": test, "all": [*train, *test], "none": []}[config.hard_augmentation]
        images = self._augment(images, [0] if config.compat and config.meta else hard)
        labels = labels.to(self.device, non_blocking=True)
        rate = _rate(config, self.iteration)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if not config.meta:
            batch = gather_domains(images, labels, train)
            losses = joint_step(
                self.model, self.optimizer, batch, self.weights, amp_dtype=self.amp_dtype
            )
            return {"train": losses}
        inner, outer = mldg_step(
            self.model,
            self.optimizer,
            gather_domains(images, labels, train),
            gather_domains(images, labels, test),
            self.inner_lr,
            self.weights,
            order=config.meta_order,
            lean=config.lean_second_order,
            amp_dtype=self.amp_dtype,
        )
        return {"inner": inner, "outer": outer}

    @torch.no_grad()
    def initialise_memory(self) -> None:
        """Class means of the query features over two passes of draws, L2-normalised.

        A class that is never seen starts as a zero row: reading gives it no weight of its own,
        and its first write makes it the class's mean.
        """
        memory, config = self.model.memory, self.config
        assert memory is not None
        sums = torch.zeros_like(memory.memory)
        mass = torch.zeros_like(memory.memory[:, 0])
        draws = config.memory_init_draws
        dataset = DomainDataset(
            self.sources, 2 * draws, seed=seed_of(config.seed, _INIT_DRAWS) % 2**32
        )
        loader = load_draws(dataset, range(2 * draws), config, self.device)
        with evaluating(self.model):
            for images, labels in self.report.track(loader, "memory"):
                batch = gather_domains(
                    self._augment(images, []),
                    labels.to(self.device, non_blocking=True),
                    range(images.shape[1]),
                )
                with autocast(batch.images, self.amp_dtype):
                    query = self.model.encode(batch.images).query
                more_sums, more_mass = ops.class_sums(query, batch.labels, config.num_classes)
                sums += more_sums
                mass += more_mass
        means = sums / mass.clamp_min(torch.finfo(mass.dtype).tiny)[:, None]
        memory.store(torch.nn.functional.normalize(means, dim=1))

    def validate(self) -> dict[str, float]:
        """Score every validation set, log it with pictures, keep the best checkpoint."""
        scores: dict[str, Score] = {}
        for name, dataset in self.validation.items():
            confusion = confusion_of(
                self.model, dataset, workers=self.config.workers, amp_dtype=self.amp_dtype
            )
            if not confusion.any():
                raise ValueError(f"{name}: no labelled pixel in its validation split")
            scores[name] = score(confusion)
        self.report.validation(self.iteration, scores, self.model, self.validation)
        # The best checkpoint is the best on unseen domains; on seen ones where there are none.
        judged = [s.miou for name, s in scores.items() if name.startswith("unseen")]
        judged = judged or [s.miou for s in scores.values()]
        mean = sum(judged) / max(len(judged), 1)
        if mean > self.best:
            self.best = mean
            self.save("best.pt")
        return {name: s.miou for name, s in scores.items()}

    def save(self, name: str) -> None:
        """Write a checkpoint of everything a resumed run needs."""
        cuda = self.device.type == "cuda"
        content = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "iteration": self.iteration,
            "inner_lr": self.inner_lr,
            "best": self.best,
            "start_scores": self.start_scores,
            "scores": self.scores,
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if cuda else None,
            "config": dict(vars(self.config)),
            "classes": self.classes.state(),
        }
        checkpoint.save(self.out / name, content)

    def _resume(self) -> bool:
        path = self.out / "last.pt"
        if not path.exists():
            return False
        content = checkpoint.load(path)
        for option in _SAME_RUN:
            here, there = getattr(self.config, option), content["config"].get(option)
            if here != there:
                raise ValueError(
                    f"{option}: got {here!r}, but checkpoint {path} was trained with {there!r}"
                )
        named = content.get("classes", {}).get("names", list(self.classes.names))
        if named != list(self.classes.names):  # a description may change under its name
            raise ValueError(
                f"sources: have the classes {', '.join(self.classes.names)}, "
                f"but checkpoint {path} was trained on {', '.join(named)}"
            )
        checkpoint.load_model(path, content, self.model)
        self.optimizer.load_state_dict(content["optimizer"])
        self.iteration, self.inner_lr = content["iteration"], content["inner_lr"]
        self.best, self.scores = content["best"], content["scores"]
        self.start_scores = content["start_scores"]
        torch.set_rng_state(content["rng"])
        if self.device.type == "cuda" and content["cuda_rng"] is not None:
            torch.cuda.set_rng_state(content["cuda_rng"], self.device)
        return True

    def _loader(self, start: int) -> DataLoader[Any]:
        config = self.config
        size = config.batch_size
        dataset = DomainDataset(
            self.sources,
            config.iterations * size,
            seed=seed_of(config.seed, _DRAWS) % 2**32,
            class_uniform=config.class_uniform,
            places=self.places,
        )
        return load_draws(dataset, range(start * size, len(dataset)), config, self.device)

    def _augment(self, images: Tensor, hard: list[int]) -> Tensor:
        """Jitter, blur and normalise uint8 [B,D,3,h,w] on the device; some domains harder."""
        images = images.to(self.device, non_blocking=True)
        with seeded(self.config.seed, _PHOTOMETRIC, self.iteration):
            domains = [
                self.photometric[domain in hard](images[:, domain])
                for domain in range(images.shape[1])
            ]
        return torch.stack(domains, dim=1)

    def _anneal(self) -> None:
        if self.config.meta and self.config.inner_lr_anneal:
            self.inner_lr = _rate(self.config, self.iteration) / 4


def _rate(config: TrainConfig, iteration: int) -> float:
    """The optimiser's rate at an iteration."""
    if config.schedule == "exp":
        return config.lr * math.exp(-9 * iteration / 120_000)
    if config.schedule == "poly":
        return config.lr * (1 - min(iteration / config.iterations, 1)) ** 0.9
    return config.lr


def main() -> None:
    """Run the program."""
    Trainer(parse(TrainConfig, program="python -m pinmem.train")).fit()


if __name__ == "__main__":
    run(main)
