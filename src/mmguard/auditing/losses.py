"""How an attacker's training loss falls: an attacker who watches it may see that data is protected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_POINTS = 60
"""A curve has at most so many: each the mean over neighbouring steps, whose losses differ by their samples."""


@dataclass(frozen=True)
class LossCurve:
    """Training loss in nats a token, over the seeds of one arm; all lists are equally long."""

    attacker: str
    recipe: str
    arm: str
    steps: tuple[float, ...]
    """Middle of the steps that a point is the mean of, the first step being 1."""
    mean: tuple[float, ...]
    low: tuple[float, ...]
    """Of the seed whose loss is least."""
    high: tuple[float, ...]
    """Of the seed whose loss is largest."""


def loss_curve(attacker: str, recipe: str, arm: str, runs: Sequence[Sequence[float]]) -> LossCurve:
    """The curve of an arm. Where a loss is no finite number the curve has a gap.

    Args:
        attacker: its name.
        recipe: how it was fine-tuned.
        arm: on what.
        runs: the loss of every step, for each seed.
    """
    length = min(map(len, runs))
    losses = np.array([run[:length] for run in runs], dtype=np.float64)
    bins = np.array_split(np.arange(length), min(length, _POINTS))
    means = np.stack([losses[:, steps].mean(1) for steps in bins], axis=1)  # (seeds, points)
    finite = np.isfinite(means).all(0)
    means = means[:, finite]
    steps = [float(steps.mean()) + 1 for steps, kept in zip(bins, finite, strict=True) if kept]
    mean, low, high = (tuple(values.tolist()) for values in (means.mean(0), means.min(0), means.max(0)))
    return LossCurve(attacker, recipe, arm, tuple(steps), mean, low, high)
