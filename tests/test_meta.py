"""The pieces of a meta-iteration; the whole is compared with the published numbers elsewhere."""

from __future__ import annotations

import pytest
import torch

import pinmem
from pinmem.losses import LossWeights, losses_of
from pinmem.meta import gather_domains, joint_step, mldg_step, split_domains
from pinmem.passes import Batch, evaluating
from pinmem.recompute import frozen_statistics, parameters_as


def batch(seed: int = 0, images: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 19, (images, 48, 64), generator=generator, dtype=torch.uint8)
    return Batch(torch.randn(images, 3, 48, 64, generator=generator), labels)


def small(memory: bool = True) -> torch.nn.Module:
    return pinmem.build_model("deeplabv3plus_r18", memory=memory).train()


def test_parameters_as_swaps_and_restores_even_on_errors() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    before = dict(model.named_parameters())
    other = {name: torch.zeros_like(p, requires_grad=True) for name, p in before.items()}
    with pytest.raises(RuntimeError, match="stop"), parameters_as(model, other):
        assert model(torch.ones(1, 2)).item() == 0
        assert model[0].weight is other["0.weight"]
        raise RuntimeError("stop")
    assert all(model.get_parameter(name) is p for name, p in before.items())


def test_frozen_statistics_normalise_but_do_not_move() -> None:
    norm = torch.nn.BatchNorm2d(3).train()
    x = torch.randn(4, 3, 5, 5) * 3 + 1
    with frozen_statistics(norm):
        inside = norm(x)
    assert norm.num_batches_tracked == 0 and norm.running_mean.abs().sum() == 0
    torch.testing.assert_close(inside, norm(x))
    assert norm.num_batches_tracked == 1


def test_evaluating_gives_every_module_its_own_mode_back() -> None:
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Dropout())
    model[0].eval()
    with evaluating(model):
        assert not model[1].training
    assert model[1].training and not model[0].training


@pytest.mark.parametrize("count", [2, 3, 5])
def test_split_has_both_sides(count: int) -> None:
    splits = [split_domains(count, torch.Generator().manual_seed(s)) for s in range(50)]
    for train, test in splits:
        assert train and test and sorted(train + test) == list(range(count))
    assert {len(train) for train, _ in splits} == set(range(1, count))
    assert {domain for train, _ in splits for domain in train} == set(range(count))
    with pytest.raises(ValueError, match="domains: got 1"):
        split_domains(1, torch.Generator())


def test_gather_domains_is_domain_by_domain() -> None:
    images = torch.arange(6.0).view(2, 3, 1, 1, 1)
    labels = torch.arange(6).view(2, 3, 1, 1)
    gathered = gather_domains(images, labels, [2, 0])
    assert gathered.images.flatten().tolist() == [2, 5, 0, 3]
    assert gathered.labels.flatten().tolist() == [2, 5, 0, 3]


@pytest.mark.parametrize("memory", [True, False])
def test_a_step_moves_weights_and_memory_and_leaves_no_gradient(memory: bool) -> None:
    model = small(memory)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inner, outer = mldg_step(model, optimizer, batch(0), batch(1), inner_lr=0.01)
    assert model.training and all(p.grad is None for p in model.parameters())
    for losses in (inner, outer):
        assert all(torch.isfinite(loss) and not loss.requires_grad for loss in losses)
    assert (inner.divergence > 0) == memory and outer.divergence == 0
    after = model.state_dict()
    assert int(after["backbone.bn1.num_batches_tracked"]) == 1
    same = [name for name in before if torch.equal(before[name], after[name])]
    assert not same, same


def plain_meta_gradient(
    model: torch.nn.Module, inner_batch: Batch, outer_batch: Batch, inner_lr: float, order: int
) -> dict[str, torch.Tensor]:
    """The gradient of the two-level objective by plain autograd, in plain PyTorch ops."""
    weights, named = LossWeights(), dict(model.named_parameters())
    with pinmem.backend("reference"):
        output = model(inner_batch.images)
        written = model.memory.write(output.query, inner_batch.labels)
        inner = losses_of(model, output, inner_batch.labels, weights, written).total
        steps = torch.autograd.grad(
            inner, list(named.values()), create_graph=order == 2, retain_graph=True
        )
        stepped = {n: p - inner_lr * g for (n, p), g in zip(named.items(), steps, strict=True)}
        with parameters_as(model, stepped), frozen_statistics(model):
            with torch.no_grad():
                query = model.encode(inner_batch.images).query
            memory = model.memory.write(query, inner_batch.labels).memory
            output = model(outer_batch.images, memory=memory)
            outer = losses_of(model, output, outer_batch.labels, weights).total
        grads = torch.autograd.grad(
            inner + outer, list(named.values()), allow_unused=True, materialize_grads=True
        )
    return dict(zip(named, grads, strict=True))


@pytest.mark.parametrize(("order", "lean"), [(1, False), (2, False), (2, True)])
def test_the_order_of_a_step(order: int, lean: bool) -> None:
    """BatchNorm on batch statistics, dropout and Gumbel noise on: the same draws, the same step."""
    torch.manual_seed(0)
    model = small().double()
    model.memory.gumbel = "training"
    assert any(isinstance(m, torch.nn.Dropout2d) and m.p > 0 for m in model.modules())
    batches = [Batch(b.images.double(), b.labels) for b in (batch(0), batch(1))]
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = {}
    for each in (1, 2):
        model.load_state_dict(start)
        torch.manual_seed(7)
        expected[each] = plain_meta_gradient(model, *batches, inner_lr=0.1, order=each)
    model.load_state_dict(start)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    torch.manual_seed(7)
    mldg_step(model, optimizer, *batches, inner_lr=0.1, order=order, lean=lean)
    drawn = torch.rand(())

    def flat(grads: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([grads[name].flatten() for name in expected[1]])

    got = flat({name: start[name] - p.detach() for name, p in model.named_parameters()})
    assert int(model.state_dict()["backbone.bn1.num_batches_tracked"]) == 1
    # As many numbers were drawn as in first order.
    model.load_state_dict(start)
    torch.manual_seed(7)
    mldg_step(model, torch.optim.SGD(model.parameters(), lr=1.0), *batches, inner_lr=0.1)
    assert drawn == torch.rand(())
    wanted, other = flat(expected[order]), flat(expected[3 - order])
    assert (got - wanted).norm() <= 1e-9 * wanted.norm()
    assert (got - other).norm() > 1e-3 * wanted.norm()


@pytest.mark.parametrize("lean", [False, True])
def test_three_iterations_of_second_order_with_momentum(lean: bool) -> None:
    """Weights, memory and statistics are those of plain autograd, with dropout and noise on.

    Four images in a batch: normalised over two, the pooled features amplify rounding a millionfold.
    """
    batches = [batch(seed, images=4) for seed in range(6)]
    batches = [Batch(images.double(), labels) for images, labels in batches]
    finals: dict[str, dict[str, torch.Tensor]] = {}
    for name in ("start", "plain", "first order", "second order"):
        torch.manual_seed(0)
        model = small().double()
        model.memory.gumbel = "training"
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        for pair in (batches[:2], batches[2:4], batches[4:]):
            if name == "plain":
                grads = plain_meta_gradient(model, *pair, inner_lr=0.1, order=2)
                for parameter, grad in grads.items():
                    model.get_parameter(parameter).grad = grad
                optimizer.step()
                with torch.no_grad(), evaluating(model), pinmem.backend("reference"):
                    query = model.encode(pair[0].images).query
                    model.memory.store(model.memory.write(query, pair[0].labels).memory)
            elif name == "first order":
                mldg_step(model, optimizer, *pair, inner_lr=0.1)
            elif name == "second order":
                mldg_step(model, optimizer, *pair, inner_lr=0.1, order=2, lean=lean)
        finals[name] = model.state_dict()

    def moved(name: str, part: str) -> torch.Tensor:
        pairs = ((finals[name][key], start) for key, start in finals["start"].items())
        kept = (key.endswith(part) for key in finals["start"])
        return torch.cat([(a - b).flatten() for (a, b), k in zip(pairs, kept, strict=True) if k])

    for part in (".weight", ".bias", "running_mean", "running_var", "memory.memory"):
        wanted = moved("plain", part)
        assert (moved("second order", part) - wanted).norm() <= 1e-9 * wanted.norm(), part
        assert (moved("first order", part) - wanted).norm() > 1e-3 * wanted.norm(), part


@pytest.mark.parametrize("how", ["module", "part"])
def test_a_compiled_network_has_no_second_order(how: str) -> None:
    model = small()
    compiled = torch.compile(model, backend="eager") if how == "module" else model
    if how == "part":
        model.backbone.layer1.compile(backend="eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with pytest.raises(ValueError, match=r"order: got 2 for a network under torch\.compile"):
        mldg_step(compiled, optimizer, batch(0), batch(1), inner_lr=0.01, order=2)


def test_an_order_that_is_none() -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with pytest.raises(ValueError, match="order: got 3, expected 1 or 2"):
        mldg_step(model, optimizer, batch(0), batch(1), inner_lr=0.01, order=3)


def test_bfloat16_is_close_to_float32() -> None:
    losses = []
    for dtype in (None, torch.bfloat16):
        torch.manual_seed(0)
        model = small()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout2d):
                module.p = 0.0
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        pair = mldg_step(model, optimizer, batch(0), batch(1), 0.001, amp_dtype=dtype)
        losses.append(torch.stack([pair[0].total, pair[1].total]))
        assert model.memory.memory.dtype == torch.float32
    torch.testing.assert_close(losses[1], losses[0], rtol=0.05, atol=0)


def test_joint_step_without_memory_is_plain_training() -> None:
    torch.manual_seed(0)
    model = small(memory=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    first = joint_step(model, optimizer, batch())
    for _ in range(5):
        last = joint_step(model, optimizer, batch())
    assert last.total < first.total and first.reading == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_gradients_lie_as_the_weights_do(dtype: torch.dtype) -> None:
    """A GPU's fused optimiser refuses another layout."""
    model = small().to(dtype).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    strides: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    optimizer.register_step_pre_hook(
        lambda *_: strides.extend((p.grad.stride(), p.stride()) for p in model.parameters())
    )
    images, labels = batch(images=4)
    joint_step(model, optimizer, Batch(images.to(dtype), labels))
    assert strides and all(grad == weight for grad, weight in strides)
