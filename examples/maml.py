"""A MAML step through the memory ops with torch.func: ``python -m examples.maml``.

The inner step adapts a projection of the readout to some images; the outer loss asks how well it
does on others. The gradient that ignores the inner step's curvature (first order) points elsewhere.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import grad

from pinmem import ops

CLASSES, CHANNELS = 5, 16


def loss(parameters: dict[str, Tensor], features: Tensor, labels: Tensor) -> Tensor:
    """Read the memory at every pixel, project the readout to classes, compare with the labels."""
    logits, scores = ops.memory_read_project(features, parameters["memory"], parameters["weight"])
    return ops.upsampled_cross_entropy(logits, labels) + ops.upsampled_cross_entropy(scores, labels)


def meta_gradient(
    parameters: dict[str, Tensor], inner: tuple[Tensor, Tensor], outer: tuple[Tensor, Tensor],
    rate: float, second_order: bool,
) -> dict[str, Tensor]:  # fmt: skip
    """The gradient of the outer loss after one inner step with respect to the parameters."""

    def after_a_step(parameters: dict[str, Tensor]) -> Tensor:
        steps = grad(loss)(parameters, *inner)
        if not second_order:
            steps = {name: step.detach() for name, step in steps.items()}
        adapted = {name: p - rate * steps[name] for name, p in parameters.items()}
        return loss(adapted, *outer)

    return grad(after_a_step)(parameters)


def main() -> float:
    """Print both gradients' norms, and return the angle between them in degrees."""
    torch.manual_seed(0)
    parameters = {
        "memory": torch.nn.functional.normalize(torch.randn(CLASSES, CHANNELS), dim=1),
        "weight": torch.randn(CLASSES, 2 * CHANNELS),
    }
    inner, outer = (
        (torch.randn(2, CHANNELS, 8, 8), torch.randint(0, CLASSES, (2, 32, 32), dtype=torch.uint8))
        for _ in range(2)
    )
    flat = []
    for second_order in (False, True):
        grads = meta_gradient(parameters, inner, outer, rate=0.5, second_order=second_order)
        flat.append(torch.cat([g.flatten() for g in grads.values()]))
        print(f"{'second' if second_order else 'first '} order: norm {flat[-1].norm():.4f}")
    cosine = torch.nn.functional.cosine_similarity(flat[0], flat[1], dim=0).clamp(-1, 1)
    angle = float(torch.rad2deg(torch.arccos(cosine)))
    print(f"angle between them: {angle:.1f} degrees")
    return angle


if __name__ == "__main__":
    main()
