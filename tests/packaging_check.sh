#!/usr/bin/env bash
# Installs pinmem in fresh environments in every way there is and uses it. Takes minutes, and
# fetches torch where pip has no copy. Prints one line a way of installing; stops at a failure.
#
#   PYTHON=python3.12 tests/packaging_check.sh [folder for the environments]
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
work=${1:-$(mktemp -d)}
python=${PYTHON:-python3}
mkdir -p "$work/bare"
# A PATH with what a shell needs and no compiler.
for tool in sh uname cat; do ln -sf "$(command -v "$tool")" "$work/bare/$tool"; done
tree=$work/tree
log=$work/log

fail() {
    echo "FAILED: $1"
    tail -n 40 "$log"
    exit 1
}

# A clean copy of the tree; objects stay, so that each way of installing does not compile again.
fresh_tree() {
    rm -rf "$work/objects"
    [ ! -d "$tree/build/objects" ] || mv "$tree/build/objects" "$work/objects"
    rm -rf "$tree"
    mkdir -p "$tree/build"
    [ ! -d "$work/objects" ] || mv "$work/objects" "$tree/build/objects"
    (cd "$root" && tar c --exclude=./.git --exclude=./.venv --exclude=./build --exclude='*.so' \
        --exclude='*.egg-info' --exclude=_build.txt .) | tar x -C "$tree"
}

# check NAME SECONDS LIBRARY: what the environment $env has installed works, from two folders.
check() {
    local folder
    for folder in / "$tree"; do
        (cd "$folder" && "$env/bin/python" - "$3" >>"$log" 2>&1) <<'PYTHON' || fail "$1 ($folder)"
import sys
from importlib.util import find_spec

import torch

import pinmem
from pinmem import backends

# A plain install cannot add to the folder pinmem of the repository, where that is found first.
shadowed = "site-packages" not in find_spec("pinmem").origin and sys.argv[1] == "installed"
assert shadowed or find_spec("pinmem.kernels") is not None
wanted = "" if sys.argv[1] in ("built", "installed") else "no C++ compiler"
reason = backends.unavailable("cpu")
assert shadowed or (wanted in reason and bool(wanted) == bool(reason)), reason
memory = torch.eye(3, 5, requires_grad=True)
readout, scores = pinmem.ops.memory_read(torch.rand(2, 5, 4, 4), memory)
readout.sum().backward()
assert memory.grad.isfinite().all()
PYTHON
    done
    printf '%-66s %4d s\n' "$1" "$2"
}

# install NAME LIBRARY ARGUMENTS...: pip install in $env with the variables $setting, then check.
setting=(MAX_JOBS=2)
install() {
    local name=$1 library=$2 begun
    shift 2
    fresh_tree
    begun=$(date +%s)
    (cd "$tree" && env "${setting[@]}" "$env/bin/python" -m pip install -v "$@" >"$log" 2>&1) || fail "$name"
    check "$name" $(($(date +%s) - begun)) "$library"
    case $library in
    not-built) [ "$(grep -c 'pinmem: not built: _cpu.so' "$log")" = 1 ] || fail "$name: not said once" ;;
    *) ! grep -q 'not built: _cpu.so' "$log" || fail "$name: not built" ;;
    esac
}

forget() { "$env/bin/python" -m pip uninstall -q -y pinmem 2>>"$log"; }

env=$work/first
rm -rf "$env"
"$python" -m venv "$env"
install "empty environment: pip install -e ." built -e .
forget
install "torch is there: pip install -e ." built -e .
! grep -q 'Collecting torch' "$log" || fail "torch was fetched a second time"
forget
install "torch is there: pip install ." installed .
forget
"$env/bin/python" -m pip install -q setuptools wheel 2>>"$log"
install "no isolation: pip install --no-build-isolation -e ." built --no-build-isolation -e .
forget
install "no isolation: pip install --no-build-isolation ." installed --no-build-isolation .
forget
setting=(PATH="$work/bare")
install "no compiler: pip install -e ." not-built -e .
forget
install "no compiler, no isolation" not-built --no-build-isolation -e .
forget
# A CUDA_HOME with nothing in it hides the nvcc of this machine.
setting=(CUDA_HOME="$work" MAX_JOBS=2)
install "no nvcc: pip install -e ." built -e .
grep -q "_cuda.so: .* pip install -e '.\[cuda\]' brings it" "$tree/pinmem/_build.txt" || fail "no advice"
! grep -qi 'nvidia.cuda.nvcc' "$log" || fail "nvcc was fetched unasked"
forget
install "no nvcc: pip install -e '.[cuda]'" built -e '.[cuda]'
[ -e "$tree/pinmem/_cuda.so" ] || fail "no CUDA library by the nvcc of the extra"
forget

fresh_tree
(cd "$tree" && "$env/bin/python" setup.py -q sdist >"$log" 2>&1) || fail "source archive"
begun=$(date +%s)
(cd / && "$env/bin/python" -m pip install "$tree"/dist/*.tar.gz >"$log" 2>&1) || fail "archive"
check "from the source archive" $(($(date +%s) - begun)) installed

env=$work/second
rm -rf "$env"
"$python" -m venv "$env"
fresh_tree
begun=$(date +%s)
(cd "$tree" && PATH=$work/bare "$env/bin/python" -m pip install --no-deps -v -e . >"$log" 2>&1) ||
    fail "neither torch nor a compiler"
! grep -q 'Collecting torch' "$log" || fail "torch was fetched for a build that cannot be"
printf '%-66s %4d s\n' "neither torch nor a compiler" $(($(date +%s) - begun))
