"""What a run tells: a log, progress with ETA, TensorBoard, overlay pictures."""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset
from torch.utils.tensorboard import SummaryWriter

from pinmem.config import TrainConfig
from pinmem.data import Classes
from pinmem.evaluate import Score, table
from pinmem.losses import Losses
from pinmem.models import Segmenter
from pinmem.predict import overlay_row, write_png
from pinmem.visualization.page import check_installed, write_page

Item = TypeVar("Item")


class Report:
    """The log of one run, in its folder and on the screen.

    Args:
        out: the run's folder; ``log.txt``, ``tensorboard/`` and ``overlays/`` go there.
        config: of the run.
        iteration: the iteration the run starts at.
        resumed: whether it goes on from a checkpoint.
        classes: names and colours for tables and pictures.
    """

    def __init__(
        self, out: Path, config: TrainConfig, iteration: int, resumed: bool, classes: Classes
    ) -> None:
        self.out = out
        self.config = config
        self.classes = classes
        self.console = Console()
        self.log = logging.getLogger(f"pinmem.{out}")
        self.log.setLevel(logging.INFO)
        self.log.propagate = False
        self.log.handlers.clear()
        file = logging.FileHandler(out / "log.txt", mode="a" if resumed else "w")
        file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        screen: logging.Handler = logging.StreamHandler(sys.stdout)
        if self.console.is_terminal:
            screen = RichHandler(console=self.console, show_path=False, show_level=False)
        self.log.addHandler(file)
        self.log.addHandler(screen)
        # purge_step: what was logged after the checkpoint is logged again.
        self.board = SummaryWriter(out / "tensorboard", purge_step=iteration if resumed else None)
        self.sums: dict[str, Tensor] = {}
        self.count = 0
        self.scores: Mapping[str, Score] | None = None  # of the last validation
        self.since = time.perf_counter()
        start = f"resumed at iteration {iteration}" if resumed else "started"
        self.log.info(f"{start}: {config.mode}, {config.model}, run folder {out}")

    def track(self, items: Iterable[Item], what: str) -> Iterator[Item]:
        """Go through items under a progress bar."""
        self.log.info(f"{what}: going through the training data")
        yield from track(items, what, console=self.console, transient=True)
        self.since = time.perf_counter()

    def step(self, iteration: int, losses: Mapping[str, Losses], rate: float) -> None:
        """Collect the losses of a step; every so often, log their means with speed and ETA."""
        for side, values in losses.items():
            for name, value in values._asdict().items():
                key = f"{side}/{name}"
                # Summed where they are: reading a loss would wait for the device.
                self.sums[key] = self.sums.get(key, 0) + value
        self.count += 1
        if iteration % self.config.log_every and iteration != self.config.iterations:
            return
        means = {key: float(value) / self.count for key, value in self.sums.items()}
        seconds = (time.perf_counter() - self.since) / self.count
        images = self.config.batch_size * len(self.config.sources) / seconds
        left = seconds * (self.config.iterations - iteration)
        shown = ", ".join(f"{k} {v:.3f}" for k, v in means.items() if k.endswith("/total"))
        self.log.info(
            f"iteration {iteration}/{self.config.iterations}, {shown}, lr {rate:.2e}, "
            f"{images:.1f} images/s, {peak_memory() / 2**30:.2f} GiB peak, "
            f"ETA {_clock(left)}"
        )
        for key, value in means.items():
            self.board.add_scalar(f"loss/{key}", value, iteration)
        self.board.add_scalar("speed/images_per_second", images, iteration)
        self.board.add_scalar("lr", rate, iteration)
        self.sums, self.count, self.since = {}, 0, time.perf_counter()

    def validation(
        self,
        iteration: int,
        scores: Mapping[str, Score],
        model: Segmenter,
        datasets: Mapping[str, Dataset[tuple[Tensor, Tensor]]],
    ) -> None:
        """Log scores, and one overlay picture a validation set."""
        began = time.perf_counter()
        self.scores = scores
        for name, result in scores.items():
            self.log.info(f"iteration {iteration}, {name}: mIoU {100 * result.miou:.2f}%")
            with open(self.out / "scores.txt", "a") as file:
                file.write(f"iteration {iteration}, {name}\n{table(result, self.classes)}\n")
            self.board.add_scalar(f"miou/{name}", result.miou, iteration)
            for k, value in enumerate(result.iou.tolist()):
                self.board.add_scalar(f"iou/{name}/{k:02d}", value, iteration)
            picture = overlay_row(model, *datasets[name][0], self.classes)
            folder = self.out / "overlays" / name
            folder.mkdir(parents=True, exist_ok=True)
            write_png(folder / f"{iteration:06d}.png", picture)
            self.board.add_image(name, picture, iteration)
        self.board.flush()
        # Validation does not count as training time.
        self.since += time.perf_counter() - began

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
        self.log.info(f"checkpoints: {self.out / 'last.pt'} and {self.out / 'best.pt'}")
        self.log.info(
            f"log: {self.out / 'log.txt'}, scores of every class: {self.out / 'scores.txt'}"
        )
        self.log.info(f"overlay pictures: {self.out / 'overlays'}")
        self.log.info(f"curves: tensorboard --logdir {self.out / 'tensorboard'}")
        self.board.close()


def peak_memory() -> int:
    """Bytes: of the GPU's allocator where there is one in use, else of this process."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
