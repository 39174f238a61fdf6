"""Compiles csrc/cpu into a shared library, and has what toolchain_cuda.py needs too.

A library needs a compiler and torch's headers, and Python's headers never. What cannot be built
raises :class:`LeftOut` with the reason in one sentence; code that does not compile raises
:class:`BuildFailed`. Objects are kept in build/objects and compiled again where their source, a
header or the command changed; what the compiler said lies beside them.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CPU = Path("csrc/cpu")

# The oldest torch that the libraries run on: the stable ABI of 2.10, whose minor version is a byte.
OLDEST_TORCH = (2, 10)
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"

# Loops may become vectors where only errno, traps or the sign of a zero would tell the difference;
# NaN, infinity and the order of a sum stay as written (no -ffast-math).
MATH = [
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-signed-zeros",
    "-fopenmp-simd",
]
COMMON = ["-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", *MATH, f"-I{CPU}"]
SANITIZE = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-omit-frame-pointer"]
# The levels of csrc/cpu/isa.h.
ISA_FLAGS = {
    "avx512": [
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"),
        "-mprefer-vector-width=512",
    ],
    "avx2": ["-mavx2", "-mfma"],
    "baseline": [],
}
# What `nvcc -Xptxas -v` says of every kernel: for the log alone.
STATISTICS = re.compile(r"ptxas info |\s+\d+ bytes stack frame")
ERROR = re.compile(r"error|undefined reference|cannot find", re.IGNORECASE)


class LeftOut(Exception):
    """A library cannot be built here; the message says why."""


class BuildFailed(Exception):
    """A compiler is there and refuses the code; the message is its command and what it said."""

    def brief(self) -> str:
        """The first error in one line."""
        command, _, said = str(self).partition("\n")
        return first_error(said) or command


@dataclass(frozen=True)
class Torch:
    """An installed torch, looked at without importing it."""

    root: Path
    version: tuple[int, int]
    cuda: str | None

    @property
    def headers(self) -> list[str]:
        return ["-isystem", str(self.root / "include")]


@dataclass(frozen=True)
class Job:
    """One command that makes one file, and the file of its dependencies."""

    output: Path
    command: list[str]
    inputs: tuple[Path, ...] = ()

    def stale(self) -> bool:
        stamp, listed = self.output.with_suffix(".command"), self.output.with_suffix(".d")
        if not self.output.exists() or not stamp.exists():
            return True
        if stamp.read_text() != shlex.join(self.command):
            return True
        inputs = list(self.inputs)
        if listed.exists():
            names = listed.read_text().replace("\\\n", " ").partition(":")[2]
            inputs += [
                ROOT / name.replace("\\ ", " ") for name in re.split(r"(?<!\\)\s+", names) if name
            ]
        made = self.output.stat().st_mtime
        return any(not path.exists() or path.stat().st_mtime > made for path in inputs)

    def run(self) -> None:
        """Make the file, under another name first so that nobody sees half of it."""
        self.output.parent.mkdir(parents=True, exist_ok=True)
        begun = time.time()
        fresh = self.output.with_name(f"{self.output.name}.{os.getpid()}")
        command = [*self.command, "-o", str(fresh)]
        listed = fresh.with_name(fresh.name + ".d")
        if "-c" in command:
            command += ["-MD", "-MF", str(listed)]
        said = run(command)
        if said.returncode != 0:
            raise BuildFailed(f"{shlex.join(command)}\n{said.stdout}{said.stderr}")
        self.output.with_suffix(".log").write_text(said.stderr)
        for line in said.stderr.splitlines():
            if line.strip() and not STATISTICS.match(line):
                print(line, file=sys.stderr)
        if listed.exists():
            listed.replace(self.output.with_suffix(".d"))
        # As old as the text it is made of: an edit while the compiler ran makes it stale.
        os.utime(fresh, (begun, begun))
        fresh.replace(self.output)
        self.output.with_suffix(".command").write_text(shlex.join(self.command))


def run(command: list[str], given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, input=given, capture_output=True, text=True, check=False
    )


def package_folders() -> list[Path]:
    """Where packages lie: those of this process, then those of the environment to install into.

    pip's build isolation hides the environment that it installs into but keeps its prefix: what is
    there serves, and nobody downloads gigabytes a second time.
    """
    folders = [*sys.path, sysconfig.get_path("platlib"), sysconfig.get_path("purelib")]
    if not sys.flags.no_user_site and sys.prefix == sys.base_prefix:
        folders.append(site.getusersitepackages())
    return [Path(folder) for folder in dict.fromkeys(folders)]


def find_torch() -> Torch | None:
    """The torch to build against: the importable one, else that of the target environment."""
    spec = find_spec("torch")
    places = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    for place in [*places, *(folder / "torch" for folder in package_folders())]:
        version = place / "version.py"
        if not version.exists() or not (place / "include/torch/csrc/stable/library.h").exists():
            continue
        text = version.read_text()
        number = re.search(r"__version__ = '(\d+)\.(\d+)", text)
        if number is None:
            continue
        cuda = re.search(r"^cuda\b[^=]*= '([^']+)'", text, re.MULTILINE)
        found = (int(number[1]), int(number[2]))
        if found >= OLDEST_TORCH:
            return Torch(place, found, cuda[1] if cuda else None)
    return None


def need_torch() -> Torch:
    torch = find_torch()
    if torch is None:
        oldest = ".".join(map(str, OLDEST_TORCH))
        raise LeftOut(f"the headers of torch >= {oldest} are not in this environment")
    return torch


def need_compiler() -> list[str]:
    """The C++ compiler with its language flag: $CXX, else c++, g++ or clang++."""
    if sys.platform == "win32":
        raise LeftOut("building on Windows is not supported")
    given = shlex.split(os.environ.get("CXX", ""))
    names = [given] if given else [["c++"], ["g++"], ["clang++"]]
    reason = (
        f"no C++ compiler was found ({'CXX=' if given else ''}{', '.join(n[0] for n in names)})"
    )
    for compiler in names:
        if shutil.which(compiler[0]) is None:
            continue
        for standard in ("-std=c++20", "-std=c++17"):
            probe = "#include <optional>\n#include <type_traits>\n"
            said = run([*compiler, standard, "-x", "c++", "-fsyntax-only", "-"], probe)
            if said.returncode == 0:
                return [*compiler, standard]
        reason = f"{compiler[0]} does not compile C++17: {first_error(said.stderr + said.stdout)}"
    raise LeftOut(reason)


def first_error(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return next((line for line in lines if ERROR.search(line)), lines[0] if lines else "")


def build_cpu(
    output: Path, sanitize: bool = False, torch: Torch | None = None, glue: Path | None = None
) -> None:
    """csrc/cpu into one library, its kernels once for every instruction set.

    ``glue``: a folder of its own for the objects that are compiled with torch's headers.
    """
    compiler = need_compiler()
    torch = torch or need_torch()
    objects = ROOT / "build/objects" / ("cpu-sanitize" if sanitize else "cpu")
    glue = glue or objects
    extra = SANITIZE if sanitize else []
    base = [*compiler, "-c", *COMMON, *extra]
    jobs = [
        Job(glue / f"{source.stem}.o", [*base, STABLE_ABI, *torch.headers, str(source)])
        for source in sources(CPU, "*.cpp")
    ]
    x86 = run([*compiler, "-dumpmachine"]).stdout.startswith("x86_64")
    for isa in ISA_FLAGS if x86 else ["baseline"]:
        flags = [*base, *ISA_FLAGS[isa], f"-DPINMEM_ISA={isa}", "-fno-exceptions"]
        jobs += [
            Job(objects / isa / f"{source.stem}.o", [*flags, str(source)])
            for source in sources(CPU / "simd", "*.cpp")
        ]
    link = [*compiler, "-shared", *extra]
    if sys.platform == "linux" and not sanitize:
        link += ["-Wl,--no-undefined"]
    make(jobs, link, [f"-L{torch.root}/lib", "-ltorch_cpu"], glue / output.name, output)


def sources(folder: Path, pattern: str) -> list[Path]:
    """The files of a folder, relative to the root: so no path of this machine gets into them."""
    return sorted(path.relative_to(ROOT) for path in (ROOT / folder).glob(pattern))


def make(jobs: list[Job], link: list[str], ending: list[str], library: Path, output: Path) -> None:
    """Compile what is stale, link, and put the library at its place in one step."""
    stale = [job for job in jobs if job.stale()]
    workers = int(os.environ.get("MAX_JOBS", "0")) or min(os.cpu_count() or 1, 4)
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(Job.run, stale))
    objects = tuple(job.output for job in jobs)
    linking = Job(library, [*link, *map(str, objects), *ending], objects)
    if linking.stale():
        linking.run()
    output.parent.mkdir(parents=True, exist_ok=True)
    fresh = output.with_name(f"{output.name}.{os.getpid()}")
    shutil.copy2(library, fresh)
    fresh.replace(output)
