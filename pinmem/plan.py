"""Whether a run fits, before it starts: ``python -m pinmem.train --plan``.

The trainer's own step runs on fake tensors, which have shapes, types and lifetimes but no values:
nothing is computed and no data is read, so that any machine plans for any device.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from pinmem import process_memory
from pinmem.config import TrainConfig, named_folder
from pinmem.data.parse import open_description
from pinmem.evaluate import pick_device
from pinmem.info import device_name
from pinmem.planner import Peak, Planner, Run, crop_of, network_of
from pinmem.program import parse
from pinmem.storages import KINDS

GB = 10**9
# In a checkout; an installed package has none.
RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"


def measured(config: TrainConfig, device: torch.device, learn_from: int) -> int:
    """Bytes at the peak of a real step on random numbers, above those of the process itself.

    In a process of its own: on a CPU by the high-water mark of the resident set, on a GPU by
    PyTorch's allocator.

    Raises:
        ValueError: the system keeps no such mark, or the process failed.
    """
    if device.type == "cpu" and not process_memory.supported():
        raise ValueError("measure: expected Linux, whose kernel knows a process's peak memory")
    answer = subprocess.run(
        [sys.executable, "-m", "pinmem.plan"],
        input=pickle.dumps((config, device, learn_from)),
        capture_output=True,
        env={**os.environ, **process_memory.ENVIRONMENT},
    )
    if answer.returncode:
        last = (answer.stderr.decode().strip().splitlines() or [""])[-1]
        raise ValueError(f"measure: the step ended with status {answer.returncode}: {last}")
    return int(answer.stdout.split()[-1])


def _measure(config: TrainConfig, device: torch.device, learn_from: int) -> int:
    if config.threads:
        torch.set_num_threads(config.threads)

    def run() -> Run:
        return Run(config, network_of(config).to(device), device)

    run().step(config, learn_from)  # loads libraries, compiles
    if device.type == "cuda":
        gc.collect()
        before = torch.cuda.memory_allocated(device)
        again = run()
        torch.cuda.reset_peak_memory_stats(device)
        again.step(config, learn_from)
        return torch.cuda.max_memory_allocated(device) - before
    before = process_memory.resident()
    again = run()
    process_memory.reset_peak()
    again.step(config, learn_from)
    return process_memory.peak() - before


def main(arguments: Sequence[str]) -> None:
    """Plan the run that these options of the trainer describe.

    Raises:
        ValueError: an option does not fit.
    """
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False, exit_on_error=False)
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--plan_gb", type=float)
    parser.add_argument("--measure", action="store_true")
    try:
        own, rest = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise ValueError(str(error)) from None
    if own.plan_gb is not None and not 0 < own.plan_gb < math.inf:
        raise ValueError(f"plan_gb: got {own.plan_gb}, expected a number above 0")
    config = parse(TrainConfig, rest, "python -m pinmem.train --plan")
    config.validate()
    if not config.num_classes:
        name, _ = named_folder("sources", config.sources[0])
        config.num_classes = len(open_description(name)[0].classes)
    absent = re.fullmatch(r"cuda(:\d+)?", config.device) and not own.measure
    device = torch.device(config.device) if absent else pick_device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    planner = Planner(config, device)
    peak = planner.peak()
    height, width = crop_of(config)

    def say(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True)

    console = Console()
    say(
        f"{config.model}, {config.mode}, {len(config.sources)} domains of "
        f"{config.batch_size}x{height}x{width}, {config.num_classes} classes, {device}"
    )
    console.print(_table(peak))
    known = seconds(config, device)
    say(f"{known[0]:.2f} s an iteration ({known[1]})" if known else "time: not known")
    if own.plan_gb:
        room = int(own.plan_gb * GB)
        crop, batch = planner.largest_crop(room, peak), planner.largest_batch(room, peak)
        say(
            f"In {own.plan_gb:g} GB, largest crop at batch_size {config.batch_size}: "
            + (f"{crop[0]}x{crop[1]}" if crop else "none")
            + f"; largest batch_size at {height}x{width}: {batch or 'none'}"
        )
    if own.measure:
        real = measured(config, device, peak.learn_from)
        say(
            f"Measured peak {real / GB:.3f} GB, predicted {peak.total / GB:.3f} GB: "
            f"{100 * (peak.total / real - 1):+.1f}%"
        )


def seconds(config: TrainConfig, device: torch.device) -> tuple[float, str] | None:
    """Seconds an iteration, and the file that says so: a benchmark of this step on this device.

    None where there is none: time is not predicted.
    """
    if device.type == "cuda" and not torch.cuda.is_available():
        return None
    if config.mode != "memory-mldg" or len(config.sources) != 2 or config.freeze:
        return None
    if config.accumulate > 1 or config.checkpoint_activations or config.compile:
        return None
    height, width = crop_of(config)
    step = {
        "op": "training_step",
        "variant": config.model,
        "size": f"2 domains of {config.batch_size}x{height}x{width}",
        "dtype": "float32" if config.amp == "none" else config.amp,
    }
    order = {(1, False): "auto", (2, False): "second order", (2, True): "second order, lean"}
    name = order[config.meta_order, config.lean_second_order]
    for file in sorted(RESULTS.glob("*.json")):
        results = json.loads(file.read_text())
        there = results["environment"]
        if there["device"] != device.type or there["device_name"] != device_name(device.type):
            continue
        if device.type == "cpu" and there["threads"] != torch.get_num_threads():
            continue
        for row in results["rows"]:
            if step.items() <= row.items() and "median" in row["results"].get(name, {}):
                return row["results"][name]["median"], file.name
    return None


def _table(peak: Peak) -> Table:
    table = Table()
    table.add_column("at the peak of a step")
    table.add_column("GB", justify="right")
    for kind in KINDS:
        table.add_row(kind, f"{peak.kinds[kind] / GB:.3f}")
    table.add_section()
    table.add_row("sum", f"{peak.total / GB:.3f}")
    return table


if __name__ == "__main__":
    print(_measure(*pickle.load(sys.stdin.buffer)))
