"""Kill one of several ranks at a random moment, start all again, and compare with a run left alone.

``python -m tests.kill_ranks_check --kills 20``: every run is killed once. The others have to end by
themselves. Started again with as many ranks, by hand or by torchrun, the run ends bitwise as
the undisturbed one; with another number, but for rounding, which stays small in float64: in float32
a new network on images this small turns it into a percent within an iteration.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pinmem import checkpoint, train
from pinmem.config import TrainConfig
from pinmem.distributed import leave
from pinmem.models import Segmenter
from pinmem.program import run
from pinmem.train import Trainer

from .kill_check import differences, flat, status_of
from .scenes import SMALL, tiny_run

RANKS = 2
IMAGES = 6  # of a domain in a step: one, two and three ranks share them
ROUNDING = 1e-5  # of the norm of whatever moves


def options_of(out: Path) -> dict[str, Any]:
    return tiny_run(
        out, model=SMALL, batch_size=IMAGES, crop_size=32, iterations=4, validate_images=1,
        validate_size=32, memory_init_draws=4, lr=1e-4,
    )  # fmt: skip


def begin(options: dict[str, Any], size: int) -> list[int]:
    """Train as so many ranks, processes with everything imported; their ids. Alone: no ranks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [_begin(options, rank, size, port) for rank in range(size)]


def _begin(options: dict[str, Any], rank: int, size: int, port: int) -> int:
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
        sys.stdout = sys.stderr = os.fdopen(log, "w", buffering=1)  # pytest has its own there
        os.environ |= {
            "RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": f"{size}",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}", "GLOO_SOCKET_IFNAME": "lo",
        }  # fmt: skip
        with in_float64():
            run(lambda: Trainer(TrainConfig(**options)).fit() and leave())
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        sys.stdout.flush()
        os._exit(status)


@contextlib.contextmanager
def in_float64() -> Iterator[None]:
    """Inside, the trainer's networks compute in float64."""
    encode, build = Segmenter.encode, train.build_network
    Segmenter.encode = lambda self, images: encode(self, images.double())  # type: ignore
    train.build_network = lambda config: build(config).double()
    try:
        yield
    finally:
        Segmenter.encode, train.build_network = encode, build  # type: ignore


def torchrun(config: Path) -> subprocess.Popen[bytes]:
    """Two ranks under torchrun, which starts them again once."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        f"--nproc_per_node={RANKS}", "--max-restarts=1", "-m", __spec__.name,
        "--config", str(config),
    ]  # fmt: skip
    with open(config.parent / "output.txt", "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def children_of(process: int) -> list[int]:
    """The processes that another one started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):  # it just ended
            continue
        if parent == process:
            found.append(int(stat.parent.name))
    return sorted(found)


def apart(one: Path, other: Path) -> float:
    """The largest relative distance of two runs' weights, statistics and momenta."""
    first, second = (checkpoint.load(out / "last.pt") for out in (one, other))
    if not torch.equal(first["rng"], second["rng"]) or first["iteration"] != second["iteration"]:
        raise SystemExit("the runs drew other random numbers")
    gaps = []
    for part in ("model", "optimizer"):
        a, b = flat(first[part]), flat(second[part])
        moving = [k for k, v in a.items() if isinstance(v, torch.Tensor) and v.is_floating_point()]
        # What has no gradient, as a bias before a normalisation, moves by rounding alone.
        gaps += [float((a[k] - b[k]).norm() / a[k].norm().clamp_min(1e-6)) for k in moving]
    return max(gaps)


def wait_for(iterations: int, out: Path) -> None:
    """Until a run has logged so many; at most five minutes."""
    log, began = out / "metrics.jsonl", time.monotonic()
    while not log.exists() or log.read_text().count('"loss/inner/total') < iterations:
        if time.monotonic() - began > 300:
            raise SystemExit(f"{log}: fewer than {iterations} iterations after five minutes")
        time.sleep(0.02)


def kill_one(
    options: dict[str, Any], size: int, victim: int, wait: Callable[[], None]
) -> float | None:
    """Kill a rank; the seconds until the others had ended. None: the run was over before."""
    processes = begin(options, size)
    wait()
    os.kill(processes[victim], signal.SIGKILL)
    killed = time.monotonic()
    statuses = [status_of(process) for process in processes]
    waited = time.monotonic() - killed
    if statuses[victim] == 0:
        return None
    if statuses[victim] != -signal.SIGKILL or any(s not in (0, 2, -9) for s in statuses):
        raise SystemExit(f"after a kill the ranks ended with {statuses}")
    return waited


def kill_ranks_check(kills: int, seed: int, root: Path, torchruns: int = 5) -> dict[str, float]:
    """How runs were started again, and the longest that a rank outlived another.

    Args:
        torchruns: every so many runs one is under torchrun; 0: none.
    """
    chance = random.Random(seed)
    whole, broken = root / "whole", root / "broken"
    began = time.monotonic()
    for process in begin(options_of(whole), RANKS):
        if status := status_of(process):
            raise SystemExit(f"the undisturbed run ended with {status}: see {root}/output.txt")
    length = time.monotonic() - began
    counts = {"same": 0, "other": 0, "torchrun": 0, "outlived": 0.0, "apart": 0.0}
    while (done := counts["same"] + counts["other"] + counts["torchrun"]) < kills:
        shutil.rmtree(broken, ignore_errors=True)
        options = options_of(broken) | {"resume": True}
        if torchruns and done % torchruns == torchruns - 1:
            _under_torchrun(root, options, chance)
            size = RANKS
            counts["torchrun"] += 1
        else:
            seconds = chance.uniform(0, length)
            victim = chance.randrange(RANKS)
            waited = kill_one(options, RANKS, victim, partial(time.sleep, seconds))
            if waited is None:
                continue
            counts["outlived"] = max(counts["outlived"], waited)
            size = chance.choice([RANKS, RANKS, 1, 3])
            statuses = [status_of(process) for process in begin(options, size)]
            if any(statuses):
                raise SystemExit(f"{size} ranks ended with {statuses}: see {root}/output.txt")
            counts["same" if size == RANKS else "other"] += 1
        if size != RANKS:
            counts["apart"] = max(counts["apart"], apart(whole, broken))
            if counts["apart"] > ROUNDING:
                raise SystemExit(f"{size} ranks ended {counts['apart']:.1e} from {RANKS}")
        elif found := differences(whole, broken):
            raise SystemExit(f"{len(found)} entries differ: {', '.join(found[:5])}")
        print(f"{counts} after {time.monotonic() - began:.0f} s", flush=True)
    return counts


def _under_torchrun(root: Path, options: dict[str, Any], chance: random.Random) -> None:
    """Kill a rank once an iteration is logged; torchrun starts both again."""
    config = root / "broken.yaml"
    TrainConfig(**options | {"resume": False}).save(config)
    process = torchrun(config)
    wait_for(chance.randrange(3), root / "broken")
    os.kill(chance.choice(children_of(process.pid)), signal.SIGKILL)
    if status := process.wait():
        raise SystemExit(f"torchrun ended with {status}: see {root}/output.txt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--config", help="be a rank of this run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.config:
        with in_float64():
            return run(train.main)
    began = time.monotonic()
    root = Path(tempfile.mkdtemp(prefix="pinmem-ranks-"))  # kept where something is wrong
    counts = kill_ranks_check(options.kills, options.seed, root)
    shutil.rmtree(root)
    print(
        f"{options.kills} runs with a rank killed: {counts['same']:.0f} went on as {RANKS} ranks "
        f"and {counts['torchrun']:.0f} under torchrun, all bitwise; {counts['other']:.0f} as 1 or "
        f"3, at most {counts['apart']:.1e} away; no rank outlived another by more than "
        f"{counts['outlived']:.1f} s; {time.monotonic() - began:.0f} s"
    )


if __name__ == "__main__":
    main()
