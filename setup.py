"""Builds the C++ and CUDA kernels where there is a compiler; the rest is in pyproject.toml.

Nothing here fails because a compiler, nvcc or torch's headers are missing, or because nvcc cannot
make the CUDA library: the library is not built, a line says so, and pinmem/_build.txt keeps it for
``python -m pinmem.info``.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "csrc"))

import toolchain  # noqa: E402
import toolchain_cuda  # noqa: E402

# The C++ library for `make sanitize`; a GPU's code has tools of its own.
SANITIZE = os.environ.get("PINMEM_SANITIZE") == "1"
# The CUDA library is built, or the build fails; or it is not built.
REQUIRE_CUDA = os.environ.get("PINMEM_REQUIRE_CUDA") == "1"
NO_CUDA = os.environ.get("PINMEM_REQUIRE_CUDA") == "0"
INSTEAD = {
    "_cpu.so": "CPUs fall back to plain PyTorch",
    "_cuda.so": "GPUs fall back to Triton and plain PyTorch",
}


class BuildKernels(build_ext):
    """Puts _cpu.so and _cuda.so beside the package's modules: no Python API, no ABI tag."""

    def run(self) -> None:
        inplace = self.inplace or getattr(self, "editable_mode", False)
        package = ROOT / "pinmem" if inplace else Path(self.build_lib, "pinmem")
        package.mkdir(parents=True, exist_ok=True)
        not_built = []
        for extension in list(self.extensions):
            library = package / self.get_ext_filename(extension.name.rpartition(".")[2])
            try:
                self._build(library)
            except (toolchain.NotBuilt, toolchain.BuildFailed) as error:
                failed = isinstance(error, toolchain.BuildFailed)
                cuda = library.name == "_cuda.so"
                if REQUIRE_CUDA if cuda else failed:
                    raise SystemExit(f"pinmem: {library.name} does not build:\n{error}") from None
                # A library of an earlier build would not fit the Python code beside it.
                library.unlink(missing_ok=True)
                reason = f"{error.brief()} (PINMEM_REQUIRE_CUDA=1 shows all)" if failed else error
                not_built.append(f"{library.name}: {reason}; {INSTEAD[library.name]}")
                self.extensions.remove(extension)
        for line in not_built:
            print(f"pinmem: not built: {line}", file=sys.stderr)
        (package / "_build.txt").write_text("".join(f"{line}\n" for line in not_built))

    def _build(self, library: Path) -> None:
        if library.name == "_cuda.so" and NO_CUDA:
            raise toolchain.NotBuilt("PINMEM_REQUIRE_CUDA is 0")
        if library.name == "_cuda.so":
            toolchain_cuda.build_cuda(library)
        else:
            toolchain.build_cpu(library, sanitize=SANITIZE)

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", os.sep) + ".so"


def build_requirements() -> list[str]:
    """What is nowhere and could be used: torch for its headers, nvcc where the extra is asked for.

    Only for an isolated build, whose front end asks first: elsewhere setuptools would try to
    install it by itself.
    """
    if "setuptools.build_meta" not in sys.modules:
        return []
    try:
        toolchain.need_compiler()
    except toolchain.NotBuilt:
        return []
    torch = toolchain.find_torch()
    needed = [] if torch else ["torch>=" + ".".join(map(str, toolchain.OLDEST_TORCH))]
    if "cuda" in asked_extras():
        needed += toolchain_cuda.missing_nvcc(torch.cuda if torch else toolchain_cuda.PACKAGED_CUDA)
    return needed


def asked_extras() -> set[str]:
    """The extras in the command that runs this build, such as ``pip install -e '.[cuda]'``.

    A build is told nothing of them, and runs before their packages are there. Where they come from
    elsewhere, a file of requirements say, installing once more finds the nvcc that they brought.
    """
    try:
        command = Path(f"/proc/{os.getppid()}/cmdline").read_text(errors="replace")
    except OSError:
        return set()
    lists = re.findall(r"\[([\w\s,.-]+)\]", command)
    return {extra.strip() for names in lists for extra in names.split(",")}


libraries = [Extension("pinmem._cpu", [])]
if not SANITIZE and toolchain.sources(toolchain_cuda.CUDA, "*.cu"):
    libraries.append(Extension("pinmem._cuda", []))

kernels = ["pinmem.kernels", *(f"pinmem.kernels.{name}" for name in find_packages("kernels"))]

setup(
    license="BSD-3-Clause",
    packages=[*find_packages(include=["pinmem", "pinmem.*"]), *kernels],
    package_dir={"pinmem.kernels": "kernels"},
    package_data={"pinmem": ["py.typed", "data/datasets/*.yaml"]},
    ext_modules=libraries,
    cmdclass={"build_ext": BuildKernels},
    # One wheel for every Python 3: the libraries use no Python API.
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
    setup_requires=build_requirements(),
)
