"""The slowest kernels: every op at its largest size, forward and backward, for NVIDIA's ncu.

``ncu <OPTIONS> python -m benchmarks.kernel_profile`` profiles one call of each, after one that
compiles; :func:`slowest` reads what it prints.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from dataclasses import replace

import torch

import pinmem
from benchmarks.case import OPS, cases
from benchmarks.plan import BACKWARD, Plan

TIME = "gpu__time_duration.sum"
METRICS = {
    TIME: "ns",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "% of the memory's peak",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "% of the multiprocessors'",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "% of the warps resident",
    "launch__registers_per_thread": "registers",
}
OPTIONS = ["--clock-control", "none", "--profile-from-start", "off", "--csv", "--print-units"]
OPTIONS += ["base", "--metrics", ",".join(METRICS)]


def slowest(lines: Sequence[str], count: int = 5) -> list[str]:
    """A line for each of the slowest kernels in ncu's CSV; none where there is no CSV."""
    begin = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    launches: dict[str, dict[str, float]] = {}
    for row in csv.DictReader(lines[begin:]):
        if row["Metric Name"] in METRICS:
            launch = f"{row['Kernel Name'][:60]} (launch {row['ID']})"
            value = float(row["Metric Value"].replace(",", ""))
            launches.setdefault(launch, {})[row["Metric Name"]] = value
    order = sorted(launches.items(), key=lambda launch: -launch[1].get(TIME, 0))
    return [
        f"{name}: " + ", ".join(f"{value:.0f} {METRICS[metric]}" for metric, value in found.items())
        for name, found in order[:count]
    ]


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernel_profile")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    device = parser.parse_args().device
    plan = Plan.of(device, smoke=device == "cpu")
    for case in cases(replace(plan, sizes=plan.sizes[:1], dtypes=plan.dtypes[:1]), OPS):
        if case.what != BACKWARD and case.op != "upsampled_confusion":
            continue
        for name in case.ours[:1]:
            with pinmem.backend(name):
                call = case.call(name)
                call()
                if device == "cuda":
                    torch.cuda.profiler.start()
                call()
                if device == "cuda":
                    torch.cuda.synchronize()
                    torch.cuda.profiler.stop()
            print(f"{case.op}: {name}", flush=True)
        case.release()


if __name__ == "__main__":
    main()
