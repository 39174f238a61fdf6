"""What a run tells: progress, a log, metrics.jsonl, TensorBoard, overlay pictures."""

from __future__ import annotations

import contextlib
import logging
import math
import resource
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, track
from torch import Tensor
from torch.utils.data import Dataset

from pinmem.config import TrainConfig
from pinmem.data import Classes
from pinmem.evaluate import Score, table
from pinmem.metrics import Metrics
from pinmem.models import Segmenter
from pinmem.predict import overlay_row, write_png
from pinmem.visualization.page import check_installed, write_page

Item = TypeVar("Item")


class Report:
    """The reports of one run, in its folder and on the screen.

    Args:
        out: the run's folder; ``log.txt``, ``metrics.jsonl``, ``scores.txt``, ``tensorboard/`` and
            ``overlays/`` go there.
        config: of the run.
        iteration: the iteration the run starts at.
        validated: the iteration of its last validation.
        resumed: whether it goes on from a checkpoint; what was logged after that goes.
        classes: names and colours for tables and pictures.
        memory: [K,C], the network's buffer, if it has one.

    Raises:
        ValueError: ``config.logger`` is not installed.
    """

    def __init__(
        self,
        out: Path,
        config: TrainConfig,
        iteration: int,
        validated: int,
        resumed: bool,
        classes: Classes,
        memory: Tensor | None,
    ) -> None:
        self.out = out
        self.config = config
        self.classes = classes
        self.console = Console()
        self.log = logging.getLogger(f"pinmem.{out}")
        self.log.setLevel(logging.INFO)
        self.log.propagate = False
        for handler in self.log.handlers[:]:
            self.log.removeHandler(handler)
            handler.close()
        file = _LogFile(out / "log.txt", mode="a" if resumed else "w")
        file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        screen: logging.Handler = logging.StreamHandler(sys.stdout)
        if self.console.is_terminal:
            screen = RichHandler(console=self.console, show_path=False, show_level=False)
        self.log.addHandler(file)
        self.log.addHandler(screen)
        self.metrics = Metrics(out, config, iteration if resumed else -1, validated)
        self.memory = memory
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[shown]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.bar = self.progress.add_task("training", total=config.iterations, shown="")
        self.validation_seconds = 0.0
        self._restart()
        self.scores: Mapping[str, Score] | None = None  # of the last validation
        start = f"resumed at iteration {iteration}" if resumed else "started"
        self.log.info(f"{start}: {config.mode}, {config.model}, run folder {out}")

    def go_back(self, iteration: int, validated: int) -> None:
        """Take back what was logged after an iteration and its validation, which are run again."""
        self.metrics.go_back(iteration, validated)
        self._restart()

    def _restart(self) -> None:
        self.started: float | None = None
        self.trained = 0  # iterations since then
        self._begin_interval()

    def track(self, items: Iterable[Item], what: str) -> Iterator[Item]:
        """Go through items under a progress bar."""
        self.log.info(f"{what}: going through the training data")
        yield from track(items, what, console=self.console, transient=True)

    def add(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Numbers of some iterations, for the means that are logged."""
        for row in rows:
            for name, value in row.items():
                self.sums[name] = self.sums.get(name, 0.0) + value
        self.summed += len(rows)

    def step(self, iteration: int, waited: float, rate: float, skipped: int) -> None:
        """Show an iteration that is done; every so often, log means, speed and ETA.

        Args:
            iteration: how many are done.
            waited: seconds it waited for data.
            rate: of the optimiser.
            skipped: iterations that changed nothing, so far.
        """
        now = time.perf_counter()
        if self.started is None:
            # The first iteration is slow (threads, kernels, workers start): not in the ETA.
            self.started = now
        self.trained += 1
        self.count += 1
        self.waited += waited
        seconds = (now - self.since) / self.count
        images = self.config.batch_size * len(self.config.sources) / seconds
        means = {name: value / self.summed for name, value in self.sums.items()}
        totals = {k: v for k, v in means.items() if k.endswith("/total")}
        shown = ", ".join(
            [
                f"{images:.1f} images/s",
                f"data {100 * self.waited / max(now - self.since, 1e-9):.0f}%",
                f"{peak_memory() / 2**30:.2f} GiB peak",
                f"ETA {timedelta(seconds=int(self._left(iteration, now)))}",
                *(f"{name.removeprefix('loss/')} {value:.3f}" for name, value in totals.items()),
                *([f"{skipped} skipped"] if skipped else []),
            ]
        )
        self.progress.start()
        self.progress.update(self.bar, completed=iteration, shown=shown)
        last = iteration == self.config.iterations
        if iteration % self.config.log_every and not last:
            if self.trained == 2 and not self.console.is_terminal:
                self.log.info(f"iteration {iteration}/{self.config.iterations}, {shown}")
            return
        self.log.info(f"iteration {iteration}/{self.config.iterations}, {shown}, lr {rate:.2e}")
        self.metrics.write(
            iteration,
            means
            | self._memory_metrics()
            | {
                "lr": rate,
                "skipped": skipped,
                "speed/images_per_second": images,
                "speed/data_wait": self.waited / max(now - self.since, 1e-9),
                "memory_gib": peak_memory() / 2**30,
            },
        )
        self._begin_interval()

    def validation(
        self,
        iteration: int,
        seconds: float,
        scores: Mapping[str, Score],
        model: Segmenter,
        datasets: Mapping[str, Dataset[tuple[Tensor, Tensor]]],
    ) -> None:
        """Log scores that took some seconds, and one overlay picture a validation set."""
        began = time.perf_counter()
        row: dict[str, float] = {}
        self.scores = scores
        for name, result in scores.items():
            self.log.info(f"iteration {iteration}, {name}: mIoU {100 * result.miou:.2f}%")
            with open(self.out / "scores.txt", "a") as file:
                file.write(f"iteration {iteration}, {name}\n{table(result, self.classes)}\n")
            row[f"miou/{name}"] = result.miou
            for k, value in enumerate(result.iou.tolist()):
                named = self.classes.names[k] if k < len(self.classes) else f"{k}"
                row[f"iou/{name}/{named}"] = value
            picture = overlay_row(model, *datasets[name][0], self.classes)
            folder = self.out / "overlays" / name
            folder.mkdir(parents=True, exist_ok=True)
            write_png(folder / f"{iteration:06d}.png", picture)
            self.metrics.picture(name, picture, iteration)
        if self.memory is not None:
            self.metrics.picture("memory/similarity", similarity(self.memory), iteration)
        self.metrics.write(iteration, row)
        # Validation does not count as training time.
        spent = seconds + time.perf_counter() - began
        self.validation_seconds = spent
        self.since += spent
        if self.started is not None:
            self.started += spent

    def page(
        self, model: Segmenter, datasets: Mapping[str, Dataset[tuple[Tensor, Tensor]]]
    ) -> None:
        """Write the page of pictures, where what draws it is installed."""
        images = self.config.page_images
        if not images or not datasets:
            return
        try:
            check_installed()
        except ValueError as error:
            self.log.warning(f"no page of pictures: {error}")
            return
        options = vars(self.config)
        page = write_page(
            self.out / "page", model, datasets, self.classes, options,
            scores=self.scores, images=images,
        )  # fmt: skip
        self.log.info(f"page of pictures: {page}")

    def close(self, start: Mapping[str, float], final: Mapping[str, float]) -> None:
        """Say how the run went and where everything lies."""
        for name, value in final.items():
            before = f"{100 * start[name]:.2f}% at the start, " if name in start else ""
            self.log.info(f"{name}: mIoU {before}{100 * value:.2f}% at the end")
        best = self.out / "best.pt"
        self.log.info(
            f"checkpoints: {self.out / 'last.pt'}" + (f" and {best}" if best.exists() else "")
        )
        self.log.info(
            f"log: {self.out / 'log.txt'}, scores of every class: {self.out / 'scores.txt'}"
        )
        self.log.info(f"overlay pictures: {self.out / 'overlays'}")
        self.log.info(f"curves: tensorboard --logdir {self.out / 'tensorboard'}")

    def stop(self) -> None:
        """Write what is held back and free the screen; however the run ended."""
        self.progress.stop()
        self.metrics.close()

    def _begin_interval(self) -> None:
        self.sums: dict[str, float] = {}
        self.summed = self.count = 0
        self.waited, self.since = 0.0, time.perf_counter()
        self.before = None if self.memory is None else self.memory.clone()

    def _left(self, iteration: int, now: float) -> float:
        """Seconds to the end: of the iterations, and of the validations that are to come."""
        config = self.config
        if self.trained > 1 and self.started is not None:
            each = (now - self.started) / (self.trained - 1)
        else:
            each = (now - self.since) / self.count
        every = config.validate_every or config.iterations
        validations = math.ceil(config.iterations / every) - iteration // every
        return each * (config.iterations - iteration) + validations * self.validation_seconds

    def _memory_metrics(self) -> dict[str, float]:
        """How far the slots moved since the last log, and how alike different ones are."""
        if self.memory is None or self.before is None:
            return {}
        alike = cosines(self.memory)
        others = (alike.sum() - alike.trace()) / max(alike.numel() - len(alike), 1)
        movement = (self.memory - self.before).norm(dim=1).mean()
        numbers = torch.stack([movement, others]).tolist()
        return dict(zip(("memory/movement", "memory/similarity"), numbers, strict=True))


class _LogFile(logging.FileHandler):
    """A log whose disk is full ends the run, as every other file of it does."""

    def handleError(self, _: logging.LogRecord) -> NoReturn:  # noqa: N802
        stream: Any = self.stream
        self.stream = None  # type: ignore[assignment]
        error = sys.exc_info()[1]
        with contextlib.suppress(OSError):  # of the same cause; closed it is
            stream.close()
        assert error is not None
        raise error


def cosines(memory: Tensor) -> Tensor:
    """The cosine of every slot [K,C] with every other, [K,K]; zero for one never written."""
    unit = torch.nn.functional.normalize(memory.float(), dim=1)
    return unit @ unit.T


def similarity(memory: Tensor, pixels: int = 16) -> Tensor:
    """Cosines of the slots [K,C] as a picture uint8 [1,16K,16K]: black -1, white 1."""
    shade = ((cosines(memory).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()
    return shade.repeat_interleave(pixels, 0).repeat_interleave(pixels, 1)[None]


def peak_memory() -> int:
    """Bytes: of the GPU's allocator where there is one in use, else of this process."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
