"""Checkpoints that can be differentiated twice: what a stage computed is computed again.

PyTorch's own checkpoint keeps everything alive once a graph of gradients is asked for. Here a
stage's backward pass is itself a function that recomputes, and so is the backward pass of that: in
either order only the tensors between stages are kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import Function

from pinmem.backends import under_fake_tensors
from pinmem.distributed import entered
from pinmem.second_order import TwiceDifferentiable


class Stage:
    """A method of a module that maps a tensor to a tensor, with the parameters it uses.

    Args:
        module: whose method it is.
        method: its name.
        parts: the submodules that it uses, by name; all where there are none.
    """

    def __init__(self, module: nn.Module, method: str = "forward", parts: Sequence[str] = ()):
        self.module, self.method = module, method
        self.names = [
            f"{part}.{name}" if part else name
            for part in (parts or ("",))
            for name, _ in module.get_submodule(part).named_parameters()
        ]

    @property
    def parameters(self) -> list[Tensor]:
        """What stands in the parameters' places now."""
        places = (_owner(self.module, name) for name in self.names)
        return [cast(Tensor, module._parameters[leaf]) for module, leaf in places]

    def __call__(self, tensors: Sequence[Tensor]) -> Tensor:
        """Run on the input and, in place of the module's parameters, those that follow it."""
        features, *parameters = tensors
        with parameters_as(self.module, dict(zip(self.names, parameters, strict=True))):
            return getattr(type(self.module), self.method)(self.module, features)


class _Surroundings:
    """What a stage's first run found: random state, autocast, and ranks it shares a batch with."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.random = random_state(device)
        self.autocast = torch.is_autocast_enabled(device.type)
        self.dtype = torch.get_autocast_dtype(device.type)
        self.whole_batch = entered[-1] if entered else contextlib.nullcontext()

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """The same once more; afterwards the random state is what it was before."""
        now = random_state(self.device)
        set_random_state(self.device, self.random)
        try:
            with torch.autocast(self.device.type, self.dtype, self.autocast), self.whole_batch:
                yield
        finally:
            set_random_state(self.device, now)


class _Values(Function):
    """A stage's output, of which nothing is kept but its input."""

    @staticmethod
    def forward(ctx: Any, stage: Stage, *tensors: Tensor) -> Tensor:
        ctx.stage, ctx.surroundings = stage, _Surroundings(tensors[0].device)
        ctx.save_for_backward(*tensors)
        return stage(tensors)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        # The first stage's images, and what is frozen, need none.
        needs = ctx.needs_input_grad[1:]
        tensors = ctx.saved_tensors
        return None, *_Gradients.apply(ctx.stage, ctx.surroundings, needs, cotangent, *tensors)


class _Gradients(Function):
    """The gradients of a stage's input and parameters, recomputed; and theirs, likewise."""

    @staticmethod
    def forward(
        ctx: Any,
        stage: Stage,
        surroundings: _Surroundings,
        needs: Sequence[bool],
        cotangent: Tensor,
        *tensors: Tensor,
    ) -> tuple[Tensor | None, ...]:
        ctx.stage, ctx.surroundings, ctx.needs = stage, surroundings, needs
        ctx.save_for_backward(cotangent, *tensors)
        return _gradients(stage, surroundings, cotangent, leaves_of(tensors, needs), False)

    @staticmethod
    def backward(ctx: Any, *tangents: Tensor | None) -> Any:
        if torch.is_grad_enabled():
            raise NotImplementedError("checkpoint: third derivatives are not implemented")
        needs = (True, *ctx.needs)
        cotangent, *tensors = leaves_of(ctx.saved_tensors, needs)
        grads = _gradients(ctx.stage, ctx.surroundings, cotangent, tensors, True)
        pairs = [
            (grad, tangent)
            for grad, tangent in zip(grads, tangents, strict=True)
            if grad is not None and tangent is not None and grad.requires_grad
        ]
        asked = [tensor for tensor in (cotangent, *tensors) if tensor.requires_grad]
        with torch.enable_grad():
            found = torch.autograd.grad(
                [grad for grad, _ in pairs], asked, [tangent for _, tangent in pairs],
                allow_unused=True, materialize_grads=True,
            )  # fmt: skip
        return None, None, None, *_spread(found, needs)


def _gradients(
    stage: Stage, surroundings: _Surroundings, cotangent: Tensor, leaves: Sequence[Tensor],
    create_graph: bool,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Gradients of the leaves that require one, None in place of the others'."""
    second = TwiceDifferentiable() if create_graph else contextlib.nullcontext()
    with torch.enable_grad(), surroundings.again(), second, frozen_statistics(stage.module):
        output = stage(leaves)
    found = torch.autograd.grad(
        output, [leaf for leaf in leaves if leaf.requires_grad], cotangent,
        create_graph=create_graph, allow_unused=True, materialize_grads=True,
    )  # fmt: skip
    return _spread(found, [leaf.requires_grad for leaf in leaves])


def _spread(found: Sequence[Tensor], needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """What was found, in the places that need it."""
    rest = iter(found)
    return tuple(next(rest) if need else None for need in needs)


def leaves_of(tensors: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor]:
    """The same numbers as leaves of a graph of their own, which require a gradient or not."""
    return [t.detach().requires_grad_(need) for t, need in zip(tensors, needs, strict=True)]


@contextlib.contextmanager
def recomputing(stages: Sequence[Stage]) -> Iterator[None]:
    """Inside, these stages keep their input alone, and are run again for every derivative.

    Running statistics move the first time only.
    """

    def run(stage: Stage, features: Tensor) -> Tensor:
        return _Values.apply(stage, features, *stage.parameters)

    try:
        for stage in stages:
            setattr(stage.module, stage.method, partial(run, stage))
        yield
    finally:
        for stage in stages:
            delattr(stage.module, stage.method)


@contextlib.contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Normalise with batch statistics as in training, but leave the running ones alone."""
    tracking = [
        m
        for m in model.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats
    ]
    try:
        for module in tracking:
            module.track_running_stats = False
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True


@contextlib.contextmanager
def parameters_as(model: nn.Module, parameters: Mapping[str, Tensor]) -> Iterator[None]:
    """Run the model with other tensors in place of its parameters, by their full names."""
    own = [_owner(model, name) for name in parameters]
    before = [module._parameters[leaf] for module, leaf in own]
    try:
        for (module, leaf), tensor in zip(own, parameters.values(), strict=True):
            module._parameters[leaf] = cast(nn.Parameter, tensor)
        yield
    finally:
        for (module, leaf), parameter in zip(own, before, strict=True):
            module._parameters[leaf] = parameter


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return model.get_submodule(path), leaf


def random_state(device: torch.device) -> tuple[Tensor, ...]:
    """Of the CPU, and of the device where that is another; nothing under fake tensors."""
    if under_fake_tensors():
        return ()
    states = [torch.get_rng_state()]
    return (*states, torch.cuda.get_rng_state(device)) if device.type == "cuda" else (*states,)


def set_random_state(device: torch.device, states: tuple[Tensor, ...]) -> None:
    """Go back to what :func:`random_state` returned."""
    if states:
        torch.set_rng_state(states[0])
    if states and device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
