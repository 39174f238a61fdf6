#!/usr/bin/env bash
# Installs pinmem in fresh environments in every way there is and uses it. Takes minutes, and
# fetches torch where pip has no copy. Prints one line a way of installing; stops at a failure.
#
#   PYTHON=python3.12 tests/packaging_check.sh [folder for the environments]
#   WHEEL=dist/... tests/packaging_check.sh    that wheel alone, under the oldest and newest torch
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
        # A wheel is for machines without this repository.
        [ "$3 $folder" != "wheel $tree" ] || continue
        (cd "$folder" && PATH=$work/bare "$env/bin/python" - "$3" >>"$log" 2>&1) <<'PYTHON' || fail "$1 ($folder)"
import sys
from importlib.util import find_spec
from pathlib import Path

import torch

import pinmem
from pinmem import backends, ops

# A plain install cannot add to the folder pinmem of the repository, where that is found first.
shadowed = "site-packages" not in find_spec("pinmem").origin and sys.argv[1] == "installed"
assert shadowed or find_spec("pinmem.kernels") is not None
wanted = "no C++ compiler" if sys.argv[1] == "not-built" else ""
reason = backends.unavailable("cpu")
assert shadowed or (wanted in reason and bool(wanted) == bool(reason)), reason


def derivatives(backend):
    """All ops in one sum, and what differentiating it twice gives."""
    generator = torch.Generator().manual_seed(0)
    sizes = ((2, 5, 4, 4), (3, 5), (3, 10), (3, 5), (3,))
    leaves = [torch.randn(size, generator=generator).requires_grad_() for size in sizes]
    query, memory, weight, w, b = leaves
    labels = torch.randint(0, 3, (2, 9, 8), generator=generator, dtype=torch.uint8)
    with pinmem.backend(backend):
        found = [*ops.memory_read(query, memory), *ops.memory_read_project(query, memory, weight)]
        scores = found[-1]
        found.append(ops.upsampled_cross_entropy(scores, labels))
        found += ops.memory_update(memory, *ops.class_sums(query, labels, 3), w, b, momentum=0.8)
        first = torch.autograd.grad(sum(x.square().sum() for x in found), leaves, create_graph=True)
        second = torch.autograd.grad(sum(x.square().sum() for x in first), leaves)
        return [*found, *first, *second, ops.upsampled_confusion(scores, labels)]


own = "reference" if reason else "cpu"
torch.testing.assert_close(derivatives(own), derivatives("reference"), rtol=1e-3, atol=1e-3)

if sys.argv[1] == "wheel":
    package = Path(pinmem.__file__).parent
    assert (package / "_build.txt").read_text() == ""
    assert not (package.parent / "pinmem.libs").exists(), "auditwheel copied libraries in"
    # It needs torch's CUDA libraries and no GPU.
    torch.ops.load_library(package / "_cuda.so")
    assert backends.unavailable("cuda") in ("", "no CUDA device"), backends.unavailable("cuda")
    print("pinmem's libraries load under torch", torch.__version__)
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

# empty_environment NAME
empty_environment() {
    env=$work/$1
    rm -rf "$env"
    "$python" -m venv "$env"
}

if [ -n "${WHEEL:-}" ]; then
    wheel=$(realpath "$WHEEL")
    for torch in 'torch==2.10.*' torch; do
        empty_environment wheel
        begun=$(date +%s)
        (cd / && PATH=$work/bare "$env/bin/python" -m pip install --only-binary :all: "$wheel" "$torch" \
            >"$log" 2>&1) || fail "$torch: pip install ${WHEEL##*/}"
        check "$torch: pip install ${WHEEL##*/}" $(($(date +%s) - begun)) wheel
        tail -n 1 "$log"
    done
    exit
fi

forget() { "$env/bin/python" -m pip uninstall -q -y pinmem 2>>"$log"; }

empty_environment first
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

empty_environment second
fresh_tree
begun=$(date +%s)
(cd "$tree" && PATH=$work/bare "$env/bin/python" -m pip install --no-deps -v -e . >"$log" 2>&1) ||
    fail "neither torch nor a compiler"
! grep -q 'Collecting torch' "$log" || fail "torch was fetched for a build that cannot be"
printf '%-66s %4d s\n' "neither torch nor a compiler" $(($(date +%s) - begun))
