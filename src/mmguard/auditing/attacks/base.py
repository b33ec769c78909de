"""What an attack is: a change of stolen data before training, to be rid of its protection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from mmguard.types import Sample


@dataclass(frozen=True)
class Attack:
    """What a thief does to stolen data before training."""

    name: str
    """As named on the command line, such as `jpeg-50`."""
    image: Callable[[Tensor, torch.Generator], Tensor] | None = None
    """Changes an image, float `(3, H, W)` in [0, 1], into another of that kind; its size may change. All randomness
    comes from the generator."""
    text: Callable[[Sample, torch.Generator], str | None] | None = None
    """The question of a released sample after the attack; None where it has none, as captions do."""
    each_epoch: bool = False
    """Whether it is an augmentation, drawn anew for every epoch."""


Factory: TypeAlias = Callable[[str | None], Attack]
"""Makes an attack of what follows the first dash of its name; None where there is no dash.

Raises ConfigError if that is no strength that the attack can have.
"""
