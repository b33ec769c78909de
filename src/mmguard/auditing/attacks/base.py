"""What an attack is: a change of images, of texts, or of both, made before training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mmguard.types import Sample


@dataclass(frozen=True)
class Attack:
    """A change that a thief makes to the release before training on it."""

    name: str
    """As the user writes it, such as `jpeg-50`."""
    image: Callable[[Tensor, torch.Generator], Tensor] | None = None
    """Changes an image, float `(3, H, W)` in [0, 1], into another of that kind; its size may change. All randomness
    comes from the generator."""
    text: Callable[[Sample, torch.Generator], str | None] | None = None
    """The new text input of a sample, or None to leave the sample out."""
    each_epoch: bool = False
    """Whether it is an augmentation, drawn anew for every epoch."""
