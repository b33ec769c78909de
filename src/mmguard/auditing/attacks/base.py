"""What an attack is: a change of stolen data, or of the training on it, to be rid of its protection."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from mmguard.errors import ConfigError
from mmguard.types import Sample

_NUMBER = re.compile(r"[0-9]+([.][0-9]+)?")

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
    """Share of the samples, without the thief's own clean ones, that is dropped by `loss` and `features`."""
    leaked: int = 0
    """Number of samples that `leaked` learned from in both versions."""

    @property
    def compares(self) -> bool:
        """Whether a filter compares released samples with the thief's own."""
        return self.clean_percent is not None and self.judge in ("loss", "features")


@dataclass(frozen=True)
class Training:
    """How a thief trains, where it is not in the ordinary way (`attacks/training.py`)."""

    epochs: float = 1.0
    """Factor of the number of epochs."""
    lr: float = 1.0
    """Factor of the learning rate."""
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


def plain(name: str, **what: Any) -> Factory:
    """A factory of an attack that has no strength; `what` it does is fields of `Attack`."""

    def factory(strength: str | None) -> Attack:
        if strength is not None:
            raise ConfigError(f"attack {name}-{strength}: {name} has no strength, write {name} alone")
        return Attack(name, **what)

    return factory


def strong(
    name: str,
    what: Callable[[Any], dict[str, Any]],
    number: type[int] | type[float],
    bounds: tuple[float, float],
    example: str,
    *,
    odd: bool = False,
    sign: str = "",
) -> Factory:
    """A factory of an attack with a strength.

    Args:
        name: of the family.
        what: what an attack of a strength does, as fields of `Attack`.
        number: which numbers a strength may be.
        bounds: the least and the largest.
        example: a name that messages propose.
        odd: whether it must be odd.
        sign: what stands before it.
    """
    low, high = bounds
    kind = "a number" if number is float else "an odd whole number" if odd else "a whole number"

    def factory(strength: str | None) -> Attack:
        given = strength or ""
        try:
            value = number(given.removeprefix(sign) if _NUMBER.fullmatch(given, len(sign)) else "")
        except ValueError:
            value = number(low) - 1
        if not given.startswith(sign) or not low <= value <= high or (odd and value % 2 == 0):
            raise ConfigError(
                f"attack {name}{f'-{given}' if given else ''}: behind {name}-{sign} stands {kind} from {low:g} to "
                f"{high:,}, as in {example}"
            )
        return Attack(f"{name}-{sign}{value if number is int else format(value, 'g')}", **what(value))

    return factory
