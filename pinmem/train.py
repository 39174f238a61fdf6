"""Train a network: ``python -m pinmem.train [--config FILE] [--option value]``.

Every random number is a function of the seed and the iteration, or of a generator whose state is
in the checkpoint: a run that is killed and resumed ends with the bits of one that was not.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from pinmem import checkpoint, loop
from pinmem.batches import Batches
from pinmem.config import TrainConfig
from pinmem.cuda_graph import GraphedStep
from pinmem.distributed import leave, one_ahead
from pinmem.evaluate import Score, confusion_of, score
from pinmem.extras import optional
from pinmem.health import Watch
from pinmem.launch import Silent, check_folder, take_place
from pinmem.losses import Losses
from pinmem.meta import gather_domains
from pinmem.passes import Batch
from pinmem.prepare import (
    build_network,
    initial_memory,
    judges,
    open_places,
    open_sources,
    open_validation,
    without_validation,
)
from pinmem.program import parse, run
from pinmem.recompute import random_state, set_random_state
from pinmem.report import Report
from pinmem.run_folder import RunFolder, check_resume, files_of
from pinmem.run_state import restore, state_of
from pinmem.step import (
    amp_dtype_of,
    batches_of,
    be_deterministic,
    build_optimizer,
    compile_parts,
    iterate,
    loss_scale_of,
    rate_of,
)
from pinmem.stop import StopSignals

_LEAST_SCALE = 2.0**-14  # of float16's losses; below, it is not the gradients that are too large

_PLAN = (
    "--plan: run on no data but print the memory that a step takes, on any machine; "
    "--plan_gb N: and the largest crop and batch in N GB; --measure: and the measured peak."
)


class Trainer:
    """A run: its network, data, optimiser and folder.

    Args:
        config: validated on entry.

    Raises:
        ValueError: an option, a dataset or the checkpoint to resume from does not fit.
        RankLost: of several ranks, another one ended.
    """

    def __init__(self, config: TrainConfig) -> None:
        config.validate()
        if config.logger is not None:
            optional(config.logger, config.logger, f"logger: {config.logger}")
        self.config = config
        self.device, self.ranks = take_place(config)
        self.writes = self.ranks is None or self.ranks.first
        self.amp_dtype = amp_dtype_of(config)
        if config.threads:
            torch.set_num_threads(config.threads)
        if self.device.type == "cuda":
            be_deterministic(config.deterministic)
        self.sources = open_sources(config)
        self.classes = self.sources[0].classes
        self.validation = open_validation(config, self.classes)
        torch.manual_seed(config.seed)
        with one_ahead(self.ranks):
            network = build_network(config)
        self.model = network.to(self.device).to(memory_format=torch.channels_last)
        if config.compile:
            compile_parts(self.model)
        self.optimizer = build_optimizer(config, self.model)
        self.scale = loss_scale_of(config)
        self.graphed: GraphedStep | None = None
        if config.cuda_graph:
            self.graphed = GraphedStep(config, self.model, self.optimizer)
        self.iteration = 0
        self.skipped: list[int] = []  # iterations whose batch is skipped, counted from 0
        self.best = -1.0
        # mIoU of every validation set before the first iteration, and last.
        self.start_scores: dict[str, float] = {}
        self.scores: dict[str, float] = {}
        self.validated = self.saved = -1  # the iterations of the last validation and last.pt
        self.unsaved = True  # whether anything happened since that was written
        self.signals = StopSignals()
        self.batches = Batches(config, self.sources, self.device, self.ranks)
        self.watch = Watch(self.model, self.optimizer, self.batches.files)
        self.out = Path(config.out)
        resumed = config.resume and (self.out / "last.pt").exists()
        if self.ranks is not None:
            check_folder(self.ranks, self.out, resumed)
        # A memory that is read from a file is not initialised again.
        self.has_memory = self.model.memory is None or resumed
        if config.start is not None and not resumed:
            self.has_memory |= checkpoint.start_from(
                config.start, self.model, config.model, self.classes
            )
        if self.ranks is not None:
            self.ranks.as_first([*self.model.parameters(), *self.model.buffers()])
        self.folder = RunFolder(
            self.out, resume=config.resume, overwrite=config.overwrite, writes=self.writes
        )
        self.fingerprints = [files_of(source) for source in self.sources]
        self.judged = judges(config, self.validation)
        # Scores of other images do not compare.
        self.judged_on = [
            [files_of(self.validation[name]), config.validate_size, config.validate_images]
            for name in self.judged
        ]
        changes = self._resume() if resumed else []
        if config.overwrite:
            self.folder.clear()
        self.folder.record(config)
        memory = self.model.memory.memory if self.model.memory is not None else None
        self.report: Report | Silent = Silent()
        if self.writes:
            self.report = Report(
                self.out, config, self.iteration, self.validated, resumed, self.classes, memory
            )
        for change in changes:
            self.report.log.info(f"applied from here: {change}")
        for name in without_validation(config, self.validation):
            self.report.log.info(f"{name}: no image of a validation split, so it is not validated")
        if not self.judged:
            self.report.log.info(
                "no source has a validation split and --select_on names no other set: "
                "no best.pt is chosen"
            )
        with one_ahead(self.ranks):
            self.batches.places = open_places(
                config, self.sources, lambda what: lambda items: self.report.track(items, what)
            )

    @property
    def overflows(self) -> int:
        """Iterations in which a float16 gradient was not finite; they changed nothing."""
        return 0 if self.scale is None else self.scale.skipped

    @property
    def inner_lr(self) -> float:
        """Rate of the inner step at this iteration."""
        if self.iteration == 0 or not self.config.inner_lr_anneal:
            return self.config.inner_lr
        return rate_of(self.config, self.iteration) / 4

    def fit(self) -> dict[str, float]:
        """Train to the last iteration; returns the final mIoU of every validation set.

        Raises:
            NotFinite: a loss, gradient, weight or memory is, more than ``skip_bad_batches`` times.
            Stopped: by SIGINT or SIGTERM, after the iteration; the run can go on.
            OSError: a file of the run could not be written; ``last.pt`` is as it was.
        """
        return loop.fit(self)

    def step(self, images: Tensor, labels: Tensor) -> dict[str, Losses]:
        """One iteration on images uint8 [B,D,3,h,w] and labels uint8 [B,D,h,w].

        Returns:
            The losses of every pass; none where the iteration changed nothing.
        """
        config = self.config
        train, test = self.batches.split(self.iteration)
        hard = {"meta-test": test, "all": [*train, *test], "none": []}[config.hard_augmentation]
        if config.compat and config.meta:
            hard = [0]
        images = self.batches.augment(images, hard, self.iteration)
        labels = labels.to(self.device, non_blocking=True)
        rate = rate_of(config, self.iteration)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        overflows = self.overflows
        batches = batches_of(images, labels, (train, test))
        if self.graphed is not None:
            return self.graphed(batches, self.inner_lr)
        losses = iterate(
            config, self.model, self.optimizer, batches, self.inner_lr, self.scale, self.ranks
        )
        if self.overflows == overflows:
            return losses
        assert self.scale is not None
        if self.scale.value < _LEAST_SCALE:
            raise self.watch.not_finite(
                self.iteration,
                [f"the gradient, whatever the losses' scale, {self.scale.value:.0e}"],
            )
        return {}

    def initialise_memory(self) -> None:
        """Store the class means over two passes of draws; see `initial_memory`."""
        assert self.model.memory is not None
        with self.signals.at_once():
            memory = initial_memory(self.model, self._memory_batches(), self.amp_dtype, self.ranks)
        self.model.memory.store(memory)
        self.has_memory = True

    def _memory_batches(self) -> Iterator[Batch]:
        loader = self.report.track(self.batches.for_memory(), "memory")
        for index, (images, labels) in enumerate(loader):
            yield gather_domains(
                self.batches.augment_for_memory(images, index),
                labels.to(self.device, non_blocking=True),
                range(images.shape[1]),
            )

    def validate(self) -> None:
        """Score every validation set, log it with pictures, keep the best checkpoint.

        The best is the best mean over the sets of `judges`, which the unseen ones never are.
        """
        self._verify()
        began = time.perf_counter()
        scores: dict[str, Score] = {}
        for name, dataset in self.validation.items():
            with self.signals.at_once():
                confusion = confusion_of(
                    self.model, dataset, workers=self.config.workers, amp_dtype=self.amp_dtype,
                    ranks=self.ranks,
                )  # fmt: skip
            if not confusion.any():
                raise ValueError(f"{name}: no labelled pixel in its validation split")
            scores[name] = score(confusion)
        seconds = time.perf_counter() - began
        self.report.validation(self.iteration, seconds, scores, self.model, self.validation)
        if self.ranks is not None:  # pictures draw noise, on one rank
            states = random_state(self.device)
            self.ranks.as_first(states)
            set_random_state(self.device, states)
        self.validated, self.unsaved = self.iteration, True
        self.scores = {name: s.miou for name, s in scores.items()}
        if self.iteration == 0:
            self.start_scores = self.scores
        mean = sum(self.scores[name] for name in self.judged) / max(len(self.judged), 1)
        if self.judged and mean > self.best:
            self.best = mean
            self.save("best.pt")

    def _verify(self) -> None:
        """Raise ``NotFinite`` rather than let such numbers be saved or ranked."""
        self.report.add(self.watch.fetch())
        self.watch.check_state(self.iteration - 1)

    def save(self, name: str) -> None:
        """Write a checkpoint of everything a resumed run needs; nothing in it is of a rank."""
        self._verify()
        if self.writes:
            checkpoint.save(self.out / name, state_of(self))
        if name == "last.pt":
            self.saved, self.unsaved = self.iteration, False

    def _resume(self) -> list[str]:
        """Go on from ``last.pt``; the options that changed, as text."""
        path = self.folder.last
        content = checkpoint.load(path)
        changes = check_resume(path, content, self.config, self.fingerprints, self.classes)
        restore(self, content)
        if content["judged_on"] != self.judged_on:
            changes.append("best.pt is chosen anew, on other validation images")
        return changes


def main() -> None:
    """Run the program."""
    if any(argument.startswith("--plan") for argument in sys.argv[1:]):
        from pinmem import plan

        return plan.main(sys.argv[1:])
    Trainer(parse(TrainConfig, program="python -m pinmem.train", epilog=_PLAN)).fit()
    leave()


if __name__ == "__main__":
    run(main)
