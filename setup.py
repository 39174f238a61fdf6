"""Builds the C++ and CUDA kernels where there is a compiler; the rest is in pyproject.toml.

Nothing here fails because a compiler, nvcc or torch's headers are missing: the library is left
out, a line says so, and pinmem/_build.txt keeps it for ``python -m pinmem.info``.
"""

from __future__ import annotations

import os
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
INSTEAD = {
    "_cpu.so": "plain PyTorch serves CPUs",
    "_cuda.so": "Triton serves GPUs",
}


class BuildKernels(build_ext):
    """Puts _cpu.so and _cuda.so beside the package's modules: no Python API, no ABI tag."""

    def run(self) -> None:
        inplace = self.inplace or getattr(self, "editable_mode", False)
        package = ROOT / "pinmem" if inplace else Path(self.build_lib, "pinmem")
        package.mkdir(parents=True, exist_ok=True)
        left_out = []
        for extension in list(self.extensions):
            library = package / self.get_ext_filename(extension.name.rpartition(".")[2])
            try:
                self._build(library)
            except toolchain.LeftOut as reason:
                # A library of an earlier build would not fit the Python code beside it.
                library.unlink(missing_ok=True)
                left_out.append(f"{library.name}: {reason}; {INSTEAD[library.name]}")
                self.extensions.remove(extension)
            except toolchain.BuildFailed as error:
                raise SystemExit(f"pinmem: {library.name} does not build:\n{error}") from None
        for line in left_out:
            print(f"pinmem: left out {line}", file=sys.stderr)
        (package / "_build.txt").write_text("".join(f"{line}\n" for line in left_out))

    def _build(self, library: Path) -> None:
        if library.name == "_cuda.so":
            toolchain_cuda.build_cuda(library)
        else:
            toolchain.build_cpu(library, sanitize=SANITIZE)

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", os.sep) + ".so"


def build_requirements() -> list[str]:
    """torch, where its headers are nowhere and could be used; otherwise nothing.

    Only for an isolated build, whose front end asks first: elsewhere setuptools would try to
    install it by itself.
    """
    if "setuptools.build_meta" not in sys.modules or toolchain.find_torch() is not None:
        return []
    try:
        toolchain.need_compiler()
    except toolchain.LeftOut:
        return []
    return ["torch>=" + ".".join(map(str, toolchain.OLDEST_TORCH))]


libraries = [Extension("pinmem._cpu", [])]
if not SANITIZE and toolchain.sources(toolchain_cuda.CUDA, "*.cu"):
    libraries.append(Extension("pinmem._cuda", []))

setup(
    license="BSD-3-Clause",
    packages=[*find_packages(include=["pinmem", "pinmem.*"]), "pinmem.kernels"],
    package_dir={"pinmem.kernels": "kernels"},
    package_data={"pinmem": ["py.typed"]},
    ext_modules=libraries,
    cmdclass={"build_ext": BuildKernels},
    # One wheel for every Python 3: the libraries use no Python API.
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
    setup_requires=build_requirements(),
)
