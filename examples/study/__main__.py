"""Run the study, or go on with it, and write its tables: ``python -m examples.study``."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from examples.study import report
from examples.study.cells import CELLS
from examples.study.run import file_name, run

Job = tuple[str, int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m examples.study", description=__doc__)
    parser.add_argument(
        "--cells", nargs="+", default=list(CELLS), metavar="CELL", help="default: all"
    )
    parser.add_argument("--seeds", type=int, help="at most so many of each cell")
    parser.add_argument("--out", type=Path, default=Path("runs/study"), help="the runs' folders")
    parser.add_argument(
        "--results", type=Path, default=report.RESULTS, help="a JSON file per run; kept if there"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time")
    parser.add_argument("--document", type=Path, default=report.DOCUMENT, help="whose tables")
    parser.add_argument("--device", default="cpu", help="cpu or cuda; default: cpu")
    parser.add_argument("--run", nargs=2, metavar=("CELL", "SEED"), help="one run, in this process")
    options = parser.parse_args(arguments)
    if options.run:
        run(options.run[0], int(options.run[1]), options.out, options.results, options.device)
        return 0
    if unknown := [cell for cell in options.cells if cell not in CELLS]:
        parser.error(f"--cells: expected some of {', '.join(CELLS)}, got {unknown[0]!r}")
    # Seed by seed: a study that is cut short has some of each cell.
    seeds = max(CELLS[cell].seeds for cell in options.cells)
    jobs = [
        (cell, seed)
        for seed in range(seeds if options.seeds is None else min(seeds, options.seeds))
        for cell in options.cells
        if seed < CELLS[cell].seeds
    ]
    missing = [job for job in jobs if not (options.results / f"{file_name(*job)}.json").exists()]
    print(f"{len(jobs)} runs, {len(jobs) - len(missing)} of them already there", flush=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        failed = [job for job in pool.map(lambda job: _run(job, options), missing) if job]
    report.write(options.results, options.document)
    return 1 if failed else 0


def _run(job: Job, options: argparse.Namespace) -> Job | None:
    """One run in a process of its own, on one thread; the job if it failed."""
    cell, seed = job
    began = time.monotonic()
    options.out.mkdir(parents=True, exist_ok=True)
    log = options.out / f"{file_name(*job)}.txt"
    command = [sys.executable, "-m", "examples.study", "--run", cell, str(seed)]
    command += ["--out", str(options.out), "--results", str(options.results)]
    command += ["--device", options.device]
    with log.open("w") as file:
        done = subprocess.run(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    state = "done" if done.returncode == 0 else f"failed, see {log}"
    print(f"{cell}, seed {seed}: {state} ({time.monotonic() - began:.0f} s)", flush=True)
    return job if done.returncode else None


if __name__ == "__main__":
    sys.exit(main())
