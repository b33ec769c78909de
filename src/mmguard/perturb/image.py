"""PGD on the uint8 grid: the image side of the outer problem (Eq. 15)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mmguard.perturb.budget import ImageBudget, apply, to_unit


def descend(
    backward: Callable[[list[Tensor]], None],
    images: Sequence[Tensor],
    deltas: Sequence[Tensor],
    budget: ImageBudget,
) -> list[Tensor]:
    """One step of signed gradient descent on every perturbation of a batch.

    The model sees exactly the images that would be saved: δ is a whole number of levels before and after.

    Args:
        backward: given the protected images, `[0,1]` float `(3, H, W)`, leaves the gradient of ℓ_prot, summed over
            the samples of the batch, in their `.grad`.
        images: originals, uint8.
        deltas: present perturbations, int8.
        budget: what they may be.

    Returns:
        The new perturbations.
    """
    protected = [to_unit(apply(image, delta)).requires_grad_(True) for image, delta in zip(images, deltas, strict=True)]
    backward(protected)
    return [
        budget.descend(image, delta, torch.zeros_like(unit) if unit.grad is None else unit.grad)
        for image, delta, unit in zip(images, deltas, protected, strict=True)
    ]
