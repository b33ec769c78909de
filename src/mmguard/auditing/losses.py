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
    diverged: int = 0
    """How many seeds' last loss is no finite number."""


def loss_curve(attacker: str, recipe: str, arm: str, runs: Sequence[Sequence[float]]) -> LossCurve:
    """The curve of an arm: of the seeds whose loss is a finite number; where none is, there is no point.

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
    finite = np.isfinite(means)
    kept = finite.any(0)
    means = np.where(finite, means, np.nan)[:, kept]
    steps = [float(steps.mean()) + 1 for steps, keep in zip(bins, kept, strict=True) if keep]
    mean, low, high = (tuple(of(means, axis=0).tolist()) for of in (np.nanmean, np.nanmin, np.nanmax))
    diverged = sum(not np.isfinite(run[-1]) for run in runs)
    return LossCurve(attacker, recipe, arm, tuple(steps), mean, low, high, diverged)
