"""``python -m pinmem.info``: versions, devices, which implementation of each op runs and why."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import pinmem
from pinmem import backends, ops
from pinmem.extras import apex_state


def versions() -> dict[str, str]:
    """Name and version of everything that matters to a bug report."""
    found = {"pinmem": pinmem.__version__, "python": platform.python_version()}
    for package in ("torch", "torchvision", "triton", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    found["CUDA of torch"] = torch.version.cuda or "none"
    found["apex"] = apex_state()
    return found


def device_name(device: str) -> str:
    """Name of the current GPU (device ``cuda``) or of the processor."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def devices() -> list[str]:
    """The CPU, and every GPU."""
    found = [
        f"cpu: {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    ]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = properties.total_memory / 2**30
        found.append(f"cuda:{index}: {properties.name}, {memory:.0f} GiB")
    return found


def choices() -> list[str]:
    """For every op, what ``auto`` takes on each device, and why not the others."""
    lines = []
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        lines.append(f"{device} tensors, float32:")
        refused: dict[str, list[str]] = {}
        for op in ops.__all__:
            chosen, *others = backends.candidates(op, device, torch.float32)
            fallback = f" (then {', '.join(others)})" if others else ""
            lines.append(f"  {op:<26}{chosen}{fallback}")
            for name in backends.KERNEL_BACKENDS:
                reason = backends.unsupported(name, op, device, torch.float32)
                if reason:
                    refused.setdefault(f"not {name}: {reason}", []).append(op)
        for reason, without in refused.items():
            which = "" if len(without) == len(ops.__all__) else f" ({', '.join(without)})"
            lines.append(f"  {reason}{which}")
        for dtype in (torch.float64, torch.bfloat16, torch.float16):
            first = {op: backends.candidates(op, device, dtype)[0] for op in ops.__all__}
            names = ", ".join(sorted(set(first.values())))
            lines.append(f"  {str(dtype).removeprefix('torch.')} tensors: {names}")
    return lines


def not_built() -> list[str]:
    """What was not built, why, and what brings it."""
    notes = Path(__file__).parent / "_build.txt"
    lines = notes.read_text().splitlines() if notes.exists() else []
    return [f"not built: {line}" for line in lines]


def main() -> None:
    """Run the program."""
    for name, found in versions().items():
        print(f"{name:<16}{found}")
    print("\n".join(devices()))
    print(f"backend: {backends.get_backend()}")
    lines = choices()
    # A library that no device here asks for is not among the reasons.
    lines += [line for line in not_built() if not any(line in reason for reason in lines)]
    print("\n".join(lines))


if __name__ == "__main__":
    main()
