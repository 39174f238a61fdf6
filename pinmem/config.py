"""The options of a training run: one dataclass, a YAML file and the command line."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser

from pinmem.arguments import spelt_out

Mode = Literal["joint", "mldg", "memory-joint", "memory-mldg"]
Options = TypeVar("Options")


@dataclass
class TrainConfig:
    """Everything a run depends on. The defaults are the paper's, but for data and size.

    Args:
        sources: training domains, each ``name=folder``, e.g. ``gtav=data/gtav``, or a description
            of your own, ``my.yaml``; two or more to meta-learn. Name one twice to train on two
            views of it.
        unseen: domains that are only validated on, written in the same way.
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
        batch_size: images of every domain in a step.
        crop_size: height and width of a training crop, one number for both.
        scale: bounds of the random scale.
        class_uniform: share of the draws that begin with a class, all equally likely, and crop
            around a place where it is; the published code's value is 0.5, its scripts' 0.
        statistics: folder of the class statistics that class_uniform draws from, made by
            ``python -m pinmem.data.check --statistics`` or at the start of a run.
        cache: folder in which decoded pairs of the sources are kept, 4 bytes a pixel.
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
        memory_momentum: how much of the old memory a write keeps.
        memory_temperature: of the reading loss.
        gumbel: Gumbel noise on the attention while training.
        memory_init_draws: draws in each of the two passes that initialise the memory.
        hard_augmentation: which domains get the stronger colour jitter.
        compat: reproduce two habits of the published code: noise at evaluation, and the stronger
            jitter always on the first domain.
        amp: autocast to this type.
        validate_every: iterations between validations; 0: at start and end only.
        validate_images: images of each validation set, evenly spread; 0: all.
        validate_size: height images are validated at; absent: their own.
        page_images: images of each validation set that the page of pictures at the end of the run
            is made from; 0: no page.
        checkpoint_every: iterations between checkpoints.
        log_every: iterations between log lines.
        resume: go on from the last checkpoint in ``out`` if there is one.
        workers: processes that load data.
        threads: CPU threads; 0: as torch has it.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ...
        seed: of everything random.
    """

    sources: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    out: str = "runs/default"
    mode: Mode = "memory-mldg"
    model: str = "deeplabv3plus_r50"
    weights: str | None = None
    start: str | None = None
    freeze: Literal["backbone"] | None = None
    num_classes: int = 0
    output_stride: int | None = None
    iterations: int = 30_463
    batch_size: int = 4
    crop_size: int | tuple[int, int] = 768
    scale: tuple[float, float] = (0.5, 2.0)
    class_uniform: float = 0.0
    statistics: str | None = None
    cache: str | None = None
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["exp", "poly", "constant"] = "exp"
    inner_lr: float = 0.001
    inner_lr_anneal: bool = True
    meta_order: int = 1
    lean_second_order: bool = False
    aux_weight: float = 0.4
    reading_weight: float = 0.02
    divergence_weight: float = 0.4
    classification_weight: float = 0.2
    memory_momentum: float = 0.8
    memory_temperature: float = 1.0
    gumbel: bool = True
    memory_init_draws: int = 2975
    hard_augmentation: Literal["meta-test", "all", "none"] = "meta-test"
    compat: bool = False
    amp: Literal["none", "bfloat16"] = "none"
    validate_every: int = 2000
    validate_images: int = 0
    validate_size: int | None = None
    page_images: int = 20
    checkpoint_every: int = 500
    log_every: int = 50
    resume: bool = False
    workers: int = 2
    threads: int = 0
    device: str = "auto"
    seed: int = 0

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
        for option in ("sources", "unseen"):
            for text in getattr(self, option):
                named_folder(option, text)
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
        smallest = self.batch_size * (1 if self.meta else len(self.sources))
        if smallest < 2:
            raise ValueError(
                "batch_size: got 1, expected at least 2: batch normalisation needs two images"
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
            "threads", "seed",
        ):  # fmt: skip
            if getattr(self, option) < 0:
                raise ValueError(f"{option}: got {getattr(self, option)}, expected 0 or more")
        if self.has_memory and self.memory_init_draws < 1:
            raise ValueError(
                f"memory_init_draws: got {self.memory_init_draws}, expected at least 1"
            )

    def save(self, path: Path) -> None:
        """Write the resolved options as YAML that ``--config`` reads back."""
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        path.write_text(yaml.safe_dump(plain, sort_keys=False))


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


def parse(
    options: type[Options], arguments: Sequence[str] | None = None, program: str | None = None
) -> Options:
    """Read options from ``--config file.yaml`` and ``--option value``, the later one winning.

    A misspelt option or key, or a value of the wrong type, ends the program with one line.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = _Parser(prog=program, description=(options.__doc__ or "").splitlines()[0])
    parser.known = [f.name for f in fields(options)]  # type: ignore[arg-type]
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file of options")
    parser.add_class_arguments(options, as_group=False)
    parser.check_spelling(arguments)
    arguments = spelt_out(arguments, get_type_hints(options))
    parsed = parser.parse_args(arguments)
    parsed.pop("config", None)
    return options(**parsed.as_dict())


class _Parser(ArgumentParser):
    """jsonargparse with one-line errors that name the nearest right option."""

    known: list[str]

    def error(self, message: str, ex: Exception | None = None) -> Any:  # type: ignore[override]
        line = " ".join(str(message).split())
        print(f"error: {line}", file=sys.stderr)
        raise SystemExit(2)

    def check_spelling(self, arguments: Sequence[str]) -> None:
        """Find options and configuration keys that do not exist, and configurations that do not."""
        for i, argument in enumerate(arguments):
            if not argument.startswith("--"):
                continue
            name, _, value = argument[2:].partition("=")
            if name == "config":
                path = value or (arguments[i + 1] if i + 1 < len(arguments) else "")
                self._check_file(path)
            elif name.rstrip("+") not in (*self.known, "help", "print_config"):
                self.error(f"option --{name}: {self._nearest(name)}")

    def _check_file(self, path: str) -> None:
        try:
            content = yaml.safe_load(Path(path).read_text())
        except OSError as error:
            self.error(f"config {path}: {error.strerror}")
        except yaml.YAMLError as error:
            self.error(f"config {path}: not YAML: {error}")
        if not isinstance(content, dict):
            self.error(f"config {path}: got {type(content).__name__}, expected options: values")
        for key in content:
            if key not in self.known:
                self.error(f"config {path}: key {key!r}: {self._nearest(str(key))}")

    def _nearest(self, name: str) -> str:
        close = difflib.get_close_matches(name, self.known, n=1, cutoff=0.5)
        return f"no such option; did you mean {close[0]!r}?" if close else "no such option"


def run(main: Callable[[], None]) -> None:
    """Call a program's ``main``; an expected error becomes one line and exit status 2."""
    try:
        main()
    except (ValueError, OSError) as error:
        text = str(error)
        if text.startswith("Caught "):  # in a process that loads data: the traceback's last line
            text = text.rstrip().rpartition("\n")[2].partition(": ")[2]
        print(f"error: {' '.join(text.split())}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        raise SystemExit(130) from None
