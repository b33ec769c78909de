"""What an attack is: a change of stolen data, or of the training on it, to be rid of its protection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from mmguard.types import Sample

Rewrite: TypeAlias = "Callable[[Sample, torch.Generator], str | None]"
"""From a released sample to its question after the attack; None where it has none, as captions do."""


@dataclass(frozen=True)
class Selection:
    """Which samples a thief trains on, where it is not all that was released (`attacks/data.py`)."""

    clean_percent: int | None = None
    """Share of the samples that are clean ones of the owner; None for no mixture."""
    judge: Literal["loss", "features", "duplicates", "leaked"] | None = None
    """By what samples are dropped; None for no filter."""
    drop_percent: int = 0
    """Share of the samples that is dropped by `loss` and `features`."""
    leaked: int = 0
    """Number of samples that `leaked` learned from in both versions."""


@dataclass(frozen=True)
class Training:
    """How a thief trains, where it is not in the ordinary way (`attacks/training.py`)."""

    epochs: float = 1.0
    """Factor of the number of epochs."""
    keep_best: bool = False
    """Whether the weights that validated best are kept, and not the last."""
    pixels: float | None = None
    """Largest adversarial change of a pixel, in 255ths; None for no adversary."""
    features: float | None = None
    """Length of an adversarial change of a feature vector, in terms of its own; None for no adversary."""
    staged: bool = False
    """Whether the projector learns alone at first."""


@dataclass(frozen=True)
class Attack:
    """What a thief does to stolen data before training, or to the training."""

    name: str
    """As named on the command line, such as `jpeg-50`."""
    image: Callable[[Tensor, torch.Generator], Tensor] | None = None
    """Changes an image, float `(3, H, W)` in [0, 1], into another of that kind; its size may change. All randomness
    comes from the generator."""
    text: Rewrite | None = None
    """Changes a question."""
    corpus: Callable[[Sequence[Sample]], Rewrite] | None = None
    """Makes what `text` is from all released samples, for an attack that has to see them first; it has no `text`."""
    each_epoch: bool = False
    """Whether `image` is an augmentation, drawn anew for every epoch."""
    selection: Selection = Selection()
    """Which samples are trained on."""
    training: Training = Training()
    """How the attacker trains then."""
    models: tuple[str, ...] = ()
    """Models that change images or texts, by hub id or folder: with other weights they are another attack."""

    def rewriting(self, samples: Sequence[Sample]) -> Rewrite | None:
        """What changes the questions of these samples; None if nothing does."""
        return self.corpus(samples) if self.corpus else self.text


Factory: TypeAlias = Callable[[str | None], Attack]
"""Makes an attack of what follows its family and a dash or colon; None where nothing does.

Raises ConfigError if that is no strength that the attack can have.
"""
