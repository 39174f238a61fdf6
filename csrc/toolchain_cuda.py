"""Compiles csrc/cuda: with nvcc for GPUs, and for tests with the C++ compiler (emulation/).

``python csrc/toolchain_cuda.py`` prints the nvcc that a build here uses, or why there is none.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

from toolchain import (
    OBJECTS,
    STABLE_ABI,
    BuildFailed,
    NotBuilt,
    Object,
    Torch,
    make,
    need_compiler,
    need_torch,
    package_folders,
    run,
    sources,
)

CUDA = Path("csrc/cuda")

# Ampere, Hopper and Blackwell, as far as nvcc knows them. Code for 8.0 runs on 8.6 and 8.9 too,
# code for 10.0 on 10.3; others (11.0, 12.0) compile the PTX of the last when it is loaded.
DEFAULT_ARCHITECTURES = ("8.0", "9.0", "10.0")

# The release of the torch on the package index, and so of the extra [cuda] in pyproject.toml.
PACKAGED_CUDA = "13.0"


def build_cuda(output: Path, torch: Torch | None = None, folder: Path = OBJECTS / "cuda") -> None:
    """csrc/cuda into one library; beside every object lies what ptxas said (csrc/ptxas.py)."""
    torch = torch or need_torch()
    nvcc = find_nvcc(torch.cuda)
    host = need_compiler()
    command = [nvcc, host[-1], *(["-ccbin", host[0]] if len(host) == 2 else [])]
    code = architectures(run([nvcc, "--list-gpu-arch"]).stdout.split())
    base = [*command, "-c", "-O3", *code, "-DUSE_CUDA", STABLE_ABI, "-Xptxas", "-v"]
    base += ["-Xcompiler", "-fPIC,-fvisibility=hidden", "--expt-relaxed-constexpr"]
    objects = [
        Object(folder / f"{source.stem}.o", source, [*base, *torch.headers])
        for source in sources(CUDA, "*.cu")
    ]
    # The runtime goes in whole: it shares the device's primary context with torch's own, and
    # nobody has to have a libcudart of this release.
    link = [*command, "-shared", "-cudart", "static", "--no-device-link"]
    link += ["-Xlinker", "--exclude-libs=ALL", "-Xlinker", "--no-undefined"]
    # A toolkit of packages has its libraries where nvcc does not look.
    link += [f"-L{path.parent}" for path in Path(nvcc).parent.glob("../lib/libcudart_static.a")]
    torch_libraries = [f"-L{torch.root}/lib", "-ltorch_cuda", "-ltorch_cpu"]
    make(objects, link, torch_libraries, folder / output.name, output)


def build_emulation(output: Path) -> None:
    """csrc/cuda for a CPU, every thread of a block a fiber: for tests where there is no GPU."""
    compiler = need_compiler()
    torch = need_torch()
    folder = OBJECTS / "emulation"
    base = [*compiler, "-x", "c++", "-c", "-O1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
    # nvcc's own pragmas, and attributes of what is not a function here.
    base += ["-Wno-unknown-pragmas", "-Wno-attributes", "-DPINMEM_HOST_EMULATION", STABLE_ABI]
    objects = [
        Object(folder / f"{source.stem}.o", source, [*base, *torch.headers])
        for source in sources(CUDA, "*.cu")
    ]
    link = [*compiler, "-shared"]
    make(objects, link, [f"-L{torch.root}/lib", "-ltorch_cpu"], folder / output.name, output)


def find_nvcc(cuda: str | None) -> str:
    """The first nvcc of the major version of ``cuda``, the release that torch is built with.

    It is looked for in CUDA_HOME, or else in PATH; among the environment's packages; and, without
    CUDA_HOME, in /usr/local/cuda.
    """
    if cuda is None:
        raise NotBuilt("torch is a build without CUDA")
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    places = [Path(home, "bin")] if home else [Path(folder) for folder in os.get_exec_path()]
    places += [path for folder in package_folders() for path in folder.glob("nvidia/cu*/bin")]
    places += [] if home else [Path("/usr/local/cuda/bin")]
    others = []
    for place in dict.fromkeys(places):
        nvcc = shutil.which("nvcc", path=str(place))
        if nvcc is None:
            continue
        release = re.search(r"release ([\d.]+)", run([nvcc, "--version"]).stdout)
        toolkit = release[1] if release else "an unknown release"
        if major(toolkit) == major(cuda):
            return nvcc
        others.append(f", {nvcc} is of CUDA {toolkit}")
    where = f"CUDA_HOME={home}" if home else "PATH, /usr/local/cuda"
    wanted = "-e '.[cuda]'" if cuda == PACKAGED_CUDA else " ".join(map(repr, packaged_nvcc(cuda)))
    brings = f"; pip install {wanted} brings it" if wanted else ""
    raise NotBuilt(
        f"no nvcc of CUDA {major(cuda)}, torch's, was found"
        f" ({where}, this environment{''.join(others)}){brings}"
    )


def missing_nvcc(cuda: str | None) -> list[str]:
    """The packages with nvcc that a build for this torch lacks and could have."""
    try:
        find_nvcc(cuda)
    except NotBuilt:
        return packaged_nvcc(cuda)
    return []


def packaged_nvcc(cuda: str | None) -> list[str]:
    # All parts by name: some releases of the toolkit leave the version of nvvm open. Before CUDA 13
    # its packages have no nvcc.
    able = cuda is not None and int(major(cuda)) >= 13
    return [f"cuda-toolkit[nvcc,nvvm,crt,cudart,cccl]=={cuda}.*"] if able else []


def major(release: str) -> str:
    return release.partition(".")[0]


def architectures(known: list[str]) -> list[str]:
    """nvcc's flags for TORCH_CUDA_ARCH_LIST (8.0;9.0a;10.0+PTX, or with spaces)."""
    given = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip(" ;")
    if not given:
        able = [
            name for name in DEFAULT_ARCHITECTURES if f"compute_{name.replace('.', '')}" in known
        ]
        given = ";".join(able) + ("+PTX" if able else "")
    flags = []
    for name in re.split(r"[;,\s]+", given) if given else []:
        parts = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", name)
        if parts is None:
            raise BuildFailed(
                f"TORCH_CUDA_ARCH_LIST: got '{name}', expected such as 9.0 or 9.0+PTX"
            )
        number = parts[1] + parts[2] + parts[3]
        codes = f"sm_{number},compute_{number}" if parts[4] else f"sm_{number}"
        flags.append(f"-gencode=arch=compute_{number},code=[{codes}]")
    return flags


def main() -> int:
    try:
        print(find_nvcc(need_torch().cuda))
    except NotBuilt as reason:
        print(reason, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
