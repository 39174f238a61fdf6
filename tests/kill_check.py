"""Kill a small run at random moments, resume it, and compare what it ends in with one left alone.

``python -m tests.kill_check --kills 100``: SIGKILL and SIGTERM, in several runs. After every
kill each file of the run has to be whole; at the end, weights, momenta, memory, scores and random
state have to be those of the undisturbed run, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image

from pinmem import checkpoint
from pinmem.config import TrainConfig
from pinmem.program import run
from pinmem.train import Trainer

from .scenes import tiny_run


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested dicts and lists as one dict."""
    if isinstance(value, dict):
        return {k: v for key in value for k, v in flat(value[key], f"{name}/{key}").items()}
    if isinstance(value, list | tuple):
        return flat(dict(enumerate(value)), name)
    return {name: value}


def differences(one: Path, other: Path) -> list[str]:
    """What differs in two runs' checkpoints, but for their options."""
    found = []
    for file in ("last.pt", "best.pt"):
        first, second = (checkpoint.load(out / file) for out in (one, other))
        for content in (first, second):
            content.pop("config")
        a, b = flat(first), flat(second)
        found += [f"{file}{name}" for name in a.keys() ^ b.keys()]
        for name in a.keys() & b.keys():
            tensor = isinstance(a[name], torch.Tensor)
            if not (torch.equal(a[name], b[name]) if tensor else a[name] == b[name]):
                found.append(f"{file}{name}")
    return found


def check_whole(out: Path) -> None:
    """Raise where a file in the folder of a killed run is half written."""
    for path in out.rglob("*"):
        if path.name.startswith(".") or path.is_dir():
            continue
        if path.suffix == ".pt":
            checkpoint.load(path)
        elif path.suffix == ".png":
            Image.open(path).load()
        elif path.suffix == ".yaml":
            TrainConfig(**yaml.safe_load(path.read_text()))
        elif path.suffix == ".jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            kinds = Counter((row["iteration"], "lr" in row) for row in rows)
            assert max(kinds.values(), default=1) == 1, f"{path}: {kinds.most_common(3)}"


def begin(options: dict[str, Any]) -> int:
    """Train in a process of its own, with everything imported; its id."""
    process = os.fork()
    if process:
        return process
    status = 70
    try:
        log = os.open(
            Path(options["out"]).parent / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND
        )
        os.dup2(log, 1)
        os.dup2(log, 2)
        run(lambda: Trainer(TrainConfig(**options)).fit() and None)
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        sys.stdout.flush()
        os._exit(status)


def status_of(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def kill_check(kills: int, seed: int, root: Path) -> dict[str, int]:
    """Returns how often each signal met a living run, and how many runs were compared."""
    chance = random.Random(seed)
    options = tiny_run(
        root / "whole", model="deeplabv3plus_shufflenetv2", crop_size=32, iterations=4,
        validate_images=1, validate_size=32, memory_init_draws=1,
    )  # fmt: skip
    began = time.monotonic()
    if status := status_of(begin(options)):
        raise SystemExit(f"the undisturbed run ended with {status}: see {root}/output.txt")
    whole = time.monotonic() - began
    counts = {"SIGKILL": 0, "SIGTERM": 0, "runs": 0}
    broken = options | {"out": str(root / "broken"), "resume": True}
    while True:
        left = kills - counts["SIGKILL"] - counts["SIGTERM"]
        process = begin(broken | {"workers": chance.choice([0, 0, 1])})
        number = chance.choice([signal.SIGKILL, signal.SIGTERM])
        if left > 0:
            time.sleep(chance.uniform(0, whole))
            os.kill(process, number)  # one that ended waits to be asked for its status
        status = status_of(process)
        if left > 0 and status in (-number, 128 + number):
            # Before the first iteration the handler is not there yet, and SIGTERM is what it was.
            counts[number.name] += 1
            check_whole(root / "broken")
            print(f"{counts} after {time.monotonic() - began:.0f} s", flush=True)
            continue
        if status:
            raise SystemExit(f"a resumed run ended with {status}: see {root}/output.txt")
        if found := differences(root / "whole", root / "broken"):
            raise SystemExit(f"{len(found)} entries differ: {', '.join(found[:5])}")
        counts["runs"] += 1
        if left <= 0:
            return counts
        shutil.rmtree(root / "broken")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    root = Path(tempfile.mkdtemp(prefix="pinmem-kills-"))  # kept where something is wrong
    counts = kill_check(options.kills, options.seed, root)
    shutil.rmtree(root)
    kills = counts["SIGKILL"] + counts["SIGTERM"]
    print(
        f"{kills} kills ({counts['SIGKILL']} SIGKILL, {counts['SIGTERM']} SIGTERM) in "
        f"{counts['runs']} runs: all ended in the undisturbed run's bits, no file half written; "
        f"{time.monotonic() - began:.0f} s"
    )


if __name__ == "__main__":
    main()
