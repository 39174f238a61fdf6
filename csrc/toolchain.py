"""Compiles csrc/cpu into a shared library, and has what toolchain_cuda.py needs too.

A library needs a compiler and torch's headers, and Python's headers never. What cannot be built
raises :class:`NotBuilt` with the reason in one sentence; code that does not compile raises
:class:`BuildFailed`. ninja keeps the objects in build/objects and compiles them again where their
source, a header or the command changed.
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
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CPU = Path("csrc/cpu")
# Relative to the root, where ninja runs.
OBJECTS = Path("build/objects")

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
ERROR = re.compile(r"error|undefined reference|cannot find", re.IGNORECASE)


class NotBuilt(Exception):
    """A library cannot be built here; the message says why."""


class BuildFailed(Exception):
    """A compiler is there and refuses the code; the message is its command and what it said."""

    def brief(self) -> str:
        """The first error in one line."""
        return first_error(str(self))


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
class Object:
    """A file that a compiler makes of a source."""

    output: Path
    source: Path
    command: list[str]


def run(command: list[str], given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, input=given, capture_output=True, text=True, check=False
    )


def package_folders() -> list[Path]:
    """Where packages lie: those of this process, then those of the environment to install into.

    pip's build isolation hides the environment that it installs into but keeps its prefix: what is
    there will do, and nobody downloads gigabytes a second time.
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
        raise NotBuilt(f"the headers of torch >= {oldest} are not in this environment")
    return torch


def need_compiler() -> list[str]:
    """The C++ compiler with its language flag: $CXX, else c++, g++ or clang++."""
    if sys.platform == "win32":
        raise NotBuilt("building on Windows is not supported")
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
    raise NotBuilt(reason)


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
    folder = OBJECTS / ("cpu-sanitize" if sanitize else "cpu")
    glue = glue or folder
    extra = SANITIZE if sanitize else []
    base = [*compiler, "-c", *COMMON, *extra]
    objects = [
        Object(glue / f"{source.stem}.o", source, [*base, STABLE_ABI, *torch.headers])
        for source in sources(CPU, "*.cpp")
    ]
    x86 = run([*compiler, "-dumpmachine"]).stdout.startswith("x86_64")
    for isa in ISA_FLAGS if x86 else ["baseline"]:
        flags = [*base, *ISA_FLAGS[isa], f"-DPINMEM_ISA={isa}", "-fno-exceptions"]
        objects += [
            Object(folder / isa / f"{source.stem}.o", source, flags)
            for source in sources(CPU / "simd", "*.cpp")
        ]
    link = [*compiler, "-shared", *extra]
    if sys.platform == "linux" and not sanitize:
        link += ["-Wl,--no-undefined"]
    make(objects, link, [f"-L{torch.root}/lib", "-ltorch_cpu"], glue / output.name, output)


def sources(folder: Path, pattern: str) -> list[Path]:
    """The files of a folder, relative to the root: so no path of this machine gets into them."""
    return sorted(path.relative_to(ROOT) for path in (ROOT / folder).glob(pattern))


# What the compiler said lies beside each object; what `nvcc -Xptxas -v` says of every kernel is for
# that log alone.
RULES = r"""
builddir = build/objects
rule compile
  command = $run -MD -MF $out.d -o $out $in > $log 2>&1; s=$$?; $
    grep -Ev '^(ptxas info.*| +[0-9]+ bytes stack frame.*|)$$' $log; exit $$s
  depfile = $out.d
rule link
  command = $run -o $out $in $ending
"""


def make(
    objects: list[Object], link: list[str], ending: list[str], library: Path, output: Path
) -> None:
    """Compile what is stale, link, and put the library at its place in one step."""
    lines = [RULES]
    for made in objects:
        log = str(made.output.with_suffix(".log"))
        lines += [f"build {escaped(made.output)}: compile {escaped(made.source)}"]
        lines += [f"  run = {quoted(made.command)}", f"  log = {quoted([log])}"]
    lines += [f"build {escaped(library)}: link {' '.join(escaped(o.output) for o in objects)}"]
    lines += [f"  run = {quoted(link)}", f"  ending = {quoted(ending)}", ""]
    steps = ROOT / library.with_suffix(".ninja")
    steps.parent.mkdir(parents=True, exist_ok=True)
    steps.write_text("\n".join(lines))
    jobs = os.environ.get("MAX_JOBS") or str(min(os.cpu_count() or 1, 4))
    said = run([need_ninja(), "--quiet", "-f", str(steps), "-j", jobs])
    if said.returncode != 0:
        raise BuildFailed(said.stdout + said.stderr)
    print(said.stdout.removeprefix("ninja: no work to do.\n"), end="", file=sys.stderr)
    output.parent.mkdir(parents=True, exist_ok=True)
    fresh = output.with_name(f"{output.name}.{os.getpid()}")
    shutil.copy2(ROOT / library, fresh)
    fresh.replace(output)


def need_ninja() -> str:
    """That of this environment, which need not be active, or else of PATH."""
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    ninja = shutil.which("ninja", path=path)
    if ninja is None:
        raise NotBuilt("no ninja was found; pip install ninja brings it")
    return ninja


def escaped(path: Path) -> str:
    """A path in a line of ninja's."""
    return re.sub(r"([$ :])", r"$\1", str(path))


def quoted(command: list[str]) -> str:
    """A command for the shell, in a line of ninja's."""
    return shlex.join(command).replace("$", "$$")
