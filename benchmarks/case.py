"""A row of the table: implementations of one thing, how to call each, and whether it is right."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor

import pinmem
from benchmarks import check
from benchmarks.inputs import Inputs, Source
from benchmarks.plan import BACKWARD, FORWARD, SECOND, Plan, Size, short
from pinmem import backends, ops

# One file each; then whole procedures.
OPS = tuple(ops.__all__)
FILES = (*OPS, "memory_module", "training_step", "evaluation")

Results = tuple[Tensor, ...]
Call = Callable[[], Results]


class Case(Protocol):
    """What the runner asks of a row."""

    op: str
    variant: str
    what: str
    size: str
    dtype: torch.dtype
    moved: int | None
    operations: int | None
    # That a call trains on; none where it is an op.
    images: int | None
    ours: tuple[str, ...]
    baselines: tuple[str, ...]
    skipped: dict[str, str]
    # Whether what a call keeps (networks, the optimiser) counts as its memory.
    keeps_state: bool

    @property
    def sets(self) -> int:
        """How many seeds to rotate so that no cache holds the inputs."""
        ...

    def call(self, name: str, seed: int = 0) -> Call:
        """A function without arguments that does the work once on the inputs of a seed."""
        ...

    def backend_of(self, name: str) -> str:
        """The backend of pinmem to choose while ``name`` runs."""
        ...

    def check(self, name: str) -> str:
        """Why an implementation's results are wrong; empty where they are right."""
        ...

    def release(self) -> None:
        """Forget the inputs."""
        ...


class OpCase:
    """A case that a file describes by these names.

    ``OURS`` is the public function, ``EAGER`` the plain one, and ``make(size, dtype, source,
    variant)`` returns the :class:`Inputs`; ``moved(size, itemsize, what, variant)`` is the least
    bytes to move and ``operations(size, what, variant)`` the arithmetic, an addition or
    multiplication counting one: the floor of a row. Optional: ``PASSES``, ``VARIANTS``, ``MORE``
    (further baselines), ``KINKED`` (its gradients jump: ours are held to plain PyTorch's in
    float64).
    """

    def __init__(
        self, file: ModuleType, plan: Plan, size: Size, dtype: torch.dtype, what: str, variant: str
    ) -> None:
        self.keeps_state, self.images = False, None
        self.file, self.plan, self.image_size = file, plan, size
        self.op = file.__name__.rpartition(".")[2]
        self.dtype, self.what, self.variant, self.size = dtype, what, variant, str(size)
        self.moved = file.moved(size, dtype.itemsize, what, variant)
        self.operations = file.operations(size, what, variant)
        self.ours, self.skipped = _kernels_of(self.op, plan.device, dtype)
        # torch.compile cannot be differentiated twice from outside.
        compiled = () if what == SECOND else ("compiled",)
        self.baselines = ("eager", *compiled, *getattr(file, "MORE", {}))
        self._inputs: dict[int, Inputs] = {}
        self._functions: dict[str, Callable[..., Any]] = {}
        self._truth: check.Truth | None = None

    @property
    def sets(self) -> int:
        if self.plan.device == "cpu":
            return 1
        cache = torch.cuda.get_device_properties().L2_cache_size
        return max(2, min(16, -(-4 * cache // max(self._inputs_of(0).bytes, 1))))

    def backend_of(self, name: str) -> str:
        return name if name in self.ours else "reference"

    def call(self, name: str, seed: int = 0) -> Call:
        return self._bind(self._function(name), self._inputs_of(seed))

    def check(self, name: str) -> str:
        if self._truth is None:
            inputs = self._inputs_of(0)
            with pinmem.backend("reference"):
                # Their graphs would keep nodes of the leaves alive, on a stream that none records.
                plain = [each.detach() for each in self._bind(self._plain(), inputs)()]
                exact = [each.detach() for each in self._bind(self._plain(), inputs.double())()]
            self._truth = check.Truth(exact, plain, self.dtype)
        strict, kinked = name in self.ours, getattr(self.file, "KINKED", False)
        with pinmem.backend(self.backend_of(name)):
            results = self.call(name)()
            outputs = len(results) - len(self._inputs_of(0).leaves) if kinked else None
            fault = self._truth.fault(results, strict, outputs)
            if fault or not (strict and kinked):
                return fault
            results = self._bind(self._function(name), self._inputs_of(0).double())()
        exact = check.Truth(self._truth.exact, self._truth.exact, torch.float64)
        fault = exact.fault(results, strict=True)
        return fault and f"in float64: {fault}"

    def release(self) -> None:
        self._inputs.clear()
        self._functions.clear()
        self._truth = None

    def _plain(self) -> Callable[..., Any]:
        return getattr(self.file, "PLAIN", self.file.EAGER)

    def _function(self, name: str) -> Callable[..., Any]:
        if name not in self._functions:
            if name == "compiled":
                # Every row has its own graph; the limit on recompilations counts all of them.
                torch._dynamo.reset()
                function = torch.compile(
                    self.file.EAGER, fullgraph=True, dynamic=False, backend=self.plan.compiler
                )
            elif name in self.ours:
                function = self.file.OURS
            else:
                function = self.file.EAGER if name == "eager" else self.file.MORE[name]
            self._functions[name] = function
        return self._functions[name]

    def _inputs_of(self, seed: int) -> Inputs:
        if seed not in self._inputs:
            source = Source(self.plan, seed)
            inputs = self.file.make(self.image_size, self.dtype, source, self.variant)
            if self.what != FORWARD:
                for leaf in inputs.leaves:
                    leaf.requires_grad_()
                self._add_cotangents(inputs, source)
            self._inputs[seed] = inputs
        return self._inputs[seed]

    def _add_cotangents(self, inputs: Inputs, source: Source) -> None:
        with pinmem.backend("reference"):
            outputs = _smooth(_tuple(self._plain()(*inputs.arguments, **inputs.constants)))
        second = self.what == SECOND
        inputs.cotangents = [source.like(o).requires_grad_(second) for o in outputs]
        if second:
            inputs.directions = [source.like(leaf) for leaf in inputs.leaves]

    def _bind(self, function: Callable[..., Any], inputs: Inputs) -> Call:
        arguments, constants, leaves = inputs.arguments, inputs.constants, inputs.leaves
        cotangents, directions = inputs.cotangents, inputs.directions

        def forward() -> Results:
            with torch.no_grad():
                return _tuple(function(*arguments, **constants))

        def backward() -> Results:
            outputs = _tuple(function(*arguments, **constants))
            return (*outputs, *torch.autograd.grad(_smooth(outputs), leaves, cotangents))

        def second() -> Results:
            outputs = _tuple(function(*arguments, **constants))
            grads = torch.autograd.grad(_smooth(outputs), leaves, cotangents, create_graph=True)
            twice = torch.autograd.grad(grads, [*leaves, *cotangents], directions)
            return (*outputs, *grads, *twice)

        return {FORWARD: forward, BACKWARD: backward, SECOND: second}[self.what]


def _kernels_of(op: str, device: str, dtype: torch.dtype) -> tuple[tuple[str, ...], dict[str, str]]:
    """The kernel backends that run an op, the one that ``auto`` takes first; why others do not.

    A procedure of several ops has ``auto`` alone.
    """
    if op not in OPS:
        return ("auto",), {}
    names = ("triton", "cuda") if device == "cuda" else ("cpu",)
    reasons = {name: backends.unsupported(name, op, device, dtype) for name in names}
    able = [name for name in backends.candidates(op, device, dtype) if name in names]
    return tuple(able), {name: reason for name, reason in reasons.items() if reason}


def _tuple(outputs: Any) -> Results:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _smooth(outputs: Sequence[Tensor]) -> list[Tensor]:
    return [output for output in outputs if output.requires_grad]


def importable(names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The files that can be used here, and why the others cannot: a step needs torchvision."""
    able, skipped = [], {}
    for name in names:
        try:
            importlib.import_module(f"benchmarks.{name}")
        except ImportError as error:
            skipped[name] = str(error)
            continue
        able.append(name)
    return able, skipped


def cases(plan: Plan, names: Sequence[str] = FILES) -> Iterator[Case]:
    """All rows, those of most interest first: a run that ends early has them."""
    rows: list[tuple[tuple[bool, int, int], Case]] = []
    for place, name in enumerate(names):
        file = importlib.import_module(f"benchmarks.{name}")
        for combination, (dtype, size) in enumerate(product(plan.dtypes, plan.sizes)):
            for case in _cases_of(file, plan, size, dtype):
                rank = (case.what in (FORWARD, SECOND), combination, place)
                rows.append((rank, case))
    rows.sort(key=lambda row: row[0])
    yield from (case for _, case in rows)


def _cases_of(file: ModuleType, plan: Plan, size: Size, dtype: torch.dtype) -> Iterator[Case]:
    if hasattr(file, "cases"):
        yield from file.cases(plan, size, dtype)
        return
    for what in getattr(file, "PASSES", (BACKWARD,)):
        for variant in getattr(file, "VARIANTS", ("",)):
            yield OpCase(file, plan, size, dtype, what, variant)


def title(case: Case) -> str:
    """One line that names a row."""
    name = f"{case.op} ({case.variant})" if case.variant else case.op
    return f"{name}, {case.what}, {case.size}, {short(case.dtype)}"
