"""csrc compiles and links with the headers of other torches too: ``make headers-check``.

    python -m tests.old_headers_check [2.10 2.11 newest]

A wheel of torch has 500 MB or more, and 1 MB of it are the headers that matter: they alone are
read, out of the wheel that pip would install, and kept in build/headers. The libraries linked
against are those of this environment's torch: of an older one, what its headers declare is there.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from .build_tools import ROOT, toolchain, toolchain_cuda

KEPT = ROOT / "build/headers"
# What the stable ABI is made of.
FOLDERS = tuple(
    f"torch/include/torch/{name}/" for name in ("csrc/stable", "csrc/inductor", "headeronly")
)


class NoHeaders(Exception):
    """They cannot be fetched here; the message says why."""


class Remote(io.RawIOBase):
    """A file on a server, of which parts are read."""

    def __init__(self, url: str) -> None:
        self.url, self.place = url, 0
        self.size = int(self.part(0, 0).headers["Content-Range"].rpartition("/")[2])

    def part(self, first: int, last: int) -> Any:
        """The server's answer, whose body are these bytes."""
        asked = urllib.request.Request(self.url, headers={"Range": f"bytes={first}-{last}"})
        answer = urllib.request.urlopen(asked, timeout=30)
        if answer.status != 206:
            raise NoHeaders("the server does not send parts of a file")
        return answer

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.place = offset + (0, self.place, self.size)[whence]
        return self.place

    def readinto(self, buffer: Any) -> int:
        count = min(len(buffer), self.size - self.place)
        if count > 0:
            buffer[:count] = self.part(self.place, self.place + count - 1).read()
        self.place += max(count, 0)
        return max(count, 0)


def wheel(version: str) -> str:
    """Where pip would take this torch from; any Python's wheel has the same headers."""
    torch = "torch" if version == "newest" else f"torch=={version}.*"
    pip = [sys.executable, "-m", "pip", "--retries", "1", "install", "--dry-run", "--no-deps"]
    pip += ["--ignore-installed", "--quiet", "--report", "-", torch]
    said = subprocess.run(pip, capture_output=True, text=True)
    if said.returncode != 0:
        raise NoHeaders("is there a network? pip: " + said.stderr.strip().rpartition("\n")[2])
    return json.loads(said.stdout)["install"][0]["download_info"]["url"]


def headers(version: str) -> Path:
    """The folder ``include`` of this torch."""
    kept = KEPT / f"torch-{version}"
    source = kept / "wheel"
    if source.exists() and version != "newest":
        return kept / "torch/include"
    url = wheel(version)
    if not source.exists() or source.read_text() != url:
        shutil.rmtree(kept, ignore_errors=True)
        try:
            with opened(url) as file, zipfile.ZipFile(file) as archive:
                names = [name for name in archive.namelist() if name.startswith(FOLDERS)]
                archive.extractall(kept, names)
        except (OSError, http.client.HTTPException) as error:
            raise NoHeaders(str(error)) from error
        source.write_text(url)
    return kept / "torch/include"


def opened(url: str) -> BinaryIO:
    if url.startswith("file:"):
        return open(urllib.request.url2pathname(urllib.parse.urlsplit(url).path), "rb")
    return io.BufferedReader(Remote(url), 1 << 20)


def check(version: str) -> None:
    """Compile and link both libraries, as far as there are compilers."""
    installed = toolchain.need_torch()
    root = headers(version).parent
    (root / "lib").unlink(missing_ok=True)
    (root / "lib").symlink_to(installed.root / "lib")
    torch = replace(installed, root=root)
    toolchain.build_cpu(root / "built/_cpu.so", torch=torch, glue=root / "cpu")
    print(f"torch {version}: csrc/cpu compiles and links")
    try:
        toolchain_cuda.build_cuda(root / "built/_cuda.so", torch, root / "cuda")
        print(f"torch {version}: csrc/cuda compiles and links")
    except toolchain.NotBuilt as reason:
        print(f"torch {version}: csrc/cuda is not checked: {reason}")


def main(versions: list[str]) -> int:
    for version in versions:
        try:
            check(version)
        except (NoHeaders, toolchain.NotBuilt) as reason:
            print(f"torch {version}: its headers are not checked: {reason}")
        except toolchain.BuildFailed as error:
            print(f"FAILED with the headers of torch {version}:\n{error}")
            return 1
    return 0


if __name__ == "__main__":
    # One architecture will do, and code that nobody runs: torch's headers are for the host.
    os.environ["TORCH_CUDA_ARCH_LIST"] = "8.0"
    os.environ["NVCC_APPEND_FLAGS"] = "-Xcicc -O0 -Xptxas -O0"
    sys.exit(main(sys.argv[1:] or ["2.10", "2.11", "newest"]))
