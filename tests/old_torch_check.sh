#!/usr/bin/env bash
# One binary for every torch: runs the op tests of the library that is built here under this
# environment's torch and under older ones, each in an environment of its own that is kept.
#
#   tests/old_torch_check.sh PYTHON [VERSION ...]     (2.10 and 2.11 unless given)
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
newest=$1
shift
versions=("$@")
[ ${#versions[@]} -gt 0 ] || versions=(2.10 2.11)
cd "$root"

symbols=$(nm -DC pinmem/_cpu.so)
if grep -E '\b(at|c10)::' <<<"$symbols"; then
    echo "FAILED: pinmem/_cpu.so uses symbols that change from one torch to the next"
    exit 1
fi

# op_tests PYTHON: those of the C++ library.
op_tests() {
    "$1" -c 'import torch; print("torch", torch.__version__)'
    OMP_NUM_THREADS=1 "$1" -m pytest -q -p no:cacheprovider tests/test_ops.py -k cpu -n "${JOBS:-2}"
}

sum=$(sha256sum pinmem/_cpu.so)
for version in "${versions[@]}"; do
    env=build/torch-$version
    if [ ! -e "$env/.installed" ]; then
        "$newest" -m venv "$env"
        "$env/bin/python" -m pip install -q "torch==$version.*" numpy pytest pytest-xdist
        touch "$env/.installed"
    fi
    op_tests "$env/bin/python"
done
op_tests "$newest"
sha256sum --quiet --check <<<"$sum"
echo "one binary passes under torch ${versions[*]} and the newest"
