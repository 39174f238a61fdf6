"""Measure every op and the training step: ``python -m benchmarks``."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import report, runner, table
from benchmarks.case import FILES
from benchmarks.plan import Plan


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--smoke", action="store_true", help="rehearse on tiny inputs")
    parser.add_argument("--ops", metavar="NAME,...", help=f"some of {','.join(FILES)}")
    parser.add_argument("--channels-last", action="store_true", help="maps in that memory format")
    parser.add_argument("--seconds", type=float, help="time each row that long (10)")
    parser.add_argument("--budget", type=float, help="begin no row after so many seconds")
    parser.add_argument("--threads", type=int, help="of PyTorch, on a CPU")
    parser.add_argument(
        "--report", nargs="+", type=Path, metavar="FILE", help="put results into the documentation"
    )
    parser.add_argument(
        "--compile-report",
        nargs="*",
        metavar="TARGET",
        help="compile the Triton kernels for GPUs that need not be there (sm_80, sm_86, sm_89,"
        " sm_90, sm_100, gfx942) and print registers, spills, shared memory and occupancy; with"
        " --smoke only what training meets",
    )
    args = parser.parse_args(arguments)
    args.ops = args.ops.split(",") if args.ops else list(FILES)
    unknown = [name for name in args.ops if name not in FILES]
    if unknown:
        parser.error(f"--ops: got {', '.join(unknown)}, expected some of {', '.join(FILES)}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: got cuda, but there is no CUDA device")
    return args


def main(arguments: list[str] | None = None) -> int:
    """Run the program; 1 where an implementation of ours was refused."""
    args = parse(arguments)
    if args.report is not None:
        report.write(args.report)
        return 0
    if args.compile_report is not None:
        from benchmarks import compile_report

        return compile_report.main(args.compile_report, args.ops, args.json, args.smoke)
    plan = Plan.of(args.device, args.smoke, args.channels_last)
    changes = {"seconds": args.seconds, "threads": args.threads}
    plan = replace(plan, **{name: value for name, value in changes.items() if value is not None})

    def save(results: dict[str, Any]) -> None:
        if args.json is not None:
            report.save(args.json, results)

    results = runner.run(plan, args.ops, args.budget, save)
    print(table.text(results))
    wrong = runner.refused(results)
    for line in wrong:
        print(f"REFUSED: {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
