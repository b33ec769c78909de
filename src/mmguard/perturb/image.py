"""PGD on the uint8 grid: the image side of the outer problem (Eq. 15)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mmguard.perturb.budget import ImageBudget, apply, to_unit

Seen = Callable[[Tensor, Tensor], Tensor]
"""Of an original, uint8 `(3, H, W)`, and its protected image, `[0,1]` float: what a reader of the released file sees,
with a gradient."""


def as_it_is(original: Tensor, image: Tensor) -> Tensor:
    """`Seen` of formats that lose nothing."""
    return image


def descend(
    backward: Callable[[list[Tensor]], None],
    images: Sequence[Tensor],
    deltas: Sequence[Tensor],
    budgets: Sequence[ImageBudget],
    seen: Sequence[Seen] | None = None,
) -> list[Tensor]:
    """One step of signed gradient descent on every perturbation of a batch.

    The model sees exactly the images that would be saved: δ is a whole number of levels before and after.

    Args:
        backward: given the protected images as they are seen, `[0,1]` float `(3, H, W)`, leaves the gradient of ℓ_prot,
            summed over the samples of the batch, in their `.grad`.
        images: originals, uint8.
        deltas: present perturbations, int8.
        budgets: what each may be.
        seen: what a reader of each image's file sees; the very images if not given.

    Returns:
        The new perturbations.
    """
    protected = [to_unit(apply(image, delta)).requires_grad_(True) for image, delta in zip(images, deltas, strict=True)]
    views = [view(*pair) for view, *pair in zip(seen or [as_it_is] * len(images), images, protected, strict=True)]
    # Leaves of their own: the graph of the encoder is walked once, however often that of the model is.
    leaves = [view.detach().requires_grad_(True) for view in views]
    backward(leaves)
    return [
        budget.descend(image, delta, _gradient(unit, view, leaf))
        for image, delta, budget, unit, view, leaf in zip(
            images, deltas, budgets, protected, views, leaves, strict=True
        )
    ]


def _gradient(unit: Tensor, view: Tensor, leaf: Tensor) -> Tensor:
    if leaf.grad is None:
        return torch.zeros_like(unit)
    if view is unit:
        return leaf.grad
    return torch.autograd.grad(view, unit, leaf.grad)[0]
