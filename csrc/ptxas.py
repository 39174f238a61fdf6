"""What ptxas said of every kernel in the last build: ``python csrc/ptxas.py`` prints a table.

The build compiles csrc/cuda with ``-Xptxas -v`` and keeps the output beside the objects.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOGS = ROOT / "build/objects/cuda"

ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")


@dataclass(frozen=True)
class Kernel:
    """One kernel for one architecture; sizes in bytes per thread."""

    name: str  # readable, with template arguments and parameters
    architecture: str  # sm_90
    registers: int
    stack: int
    spill_stores: int
    spill_loads: int

    @property
    def double(self) -> bool:
        """Whether it computes in float64, by its first template argument or else its arguments."""
        _, _, arguments = self.name.partition("<")
        return re.match(r"double\b", arguments) is not None

    @property
    def spills(self) -> bool:
        return self.spill_stores + self.spill_loads > 0


def kernels(log: str) -> list[Kernel]:
    """The kernels of a log, in its order."""
    found: list[tuple[str, tuple]] = []
    entry: tuple[str, str] | None = None
    frame: tuple[int, ...] = ()
    for line in log.splitlines():
        if match := ENTRY.search(line):
            entry, frame = (match[1], match[2]), ()
        elif match := FRAME.search(line):
            # Functions that are called, not inlined, have lines of their own behind the entry's.
            frame = frame or tuple(map(int, match.groups()))
        elif (match := USED.search(line)) and entry is not None:
            if not frame:
                raise ValueError(f"{entry[0]}: ptxas printed no line on its stack frame")
            found.append((entry[0], (entry[1], int(match[1]), *frame)))
            entry = None
    names = readable([name for name, _ in found])
    return [Kernel(name, *rest) for name, (_, rest) in zip(names, found, strict=True)]


def readable(names: list[str]) -> list[str]:
    """C++ names without the namespaces of this library; c++filt comes with every compiler."""
    said = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    ours = re.compile(r"pinmem::|\(anonymous namespace\)::|\w+_op::")
    return [re.sub(r"^void ", "", ours.sub("", name)) for name in said]


def last_build() -> Iterator[Kernel]:
    """All kernels of the CUDA library that was built last."""
    for source in sorted((ROOT / "csrc/cuda").glob("*.cu")):
        log = LOGS / f"{source.stem}.log"
        if log.exists():
            yield from kernels(log.read_text())


def main() -> int:
    found = list(last_build())
    if not found:
        print(f"{LOGS}: there are no logs; `make build` with nvcc writes them", file=sys.stderr)
        return 1
    print("registers  stack  spilled  architecture  kernel")
    for kernel in found:
        spilled = kernel.spill_stores + kernel.spill_loads
        name = kernel.name.partition("(")[0] if "(Pass)" not in kernel.name else kernel.name
        print(
            f"{kernel.registers:9}  {kernel.stack:5}  {spilled:7}  {kernel.architecture:12}  {name}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
