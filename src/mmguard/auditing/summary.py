"""Many values of one measure in a few numbers, with an interval of their mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from mmguard.auditing.stats import Estimate, interval

_WORST = 3


@dataclass(frozen=True)
class Measure:
    """One measure over all files or texts that have a value."""

    count: int
    """How many have a value."""
    mean: Estimate
    median: float
    quantile_5: float
    quantile_95: float
    worst: tuple[tuple[str, float], ...]
    """The three most visible changes, by name, the most visible first."""
    control: Estimate | None = None
    """Mean after a change at random by as much."""
    beyond_control: Estimate | None = None
    """Mean of the release's value less the control's."""


def measure(
    names: Sequence[str],
    values: Sequence[float | None],
    groups: Sequence[int],
    controls: Sequence[float | None] | None = None,
    *,
    small_is_visible: bool = False,
    seed: int = 0,
) -> Measure | None:
    """Summarises a measure; None if nothing has a value.

    Args:
        names: of the files or texts.
        values: of each; None where there is none.
        groups: number of the image of each; images are resampled, with all their texts.
        controls: the value of each after a change at random.
        small_is_visible: whether a small value means a visible change, as for SSIM, and not a large one.
        seed: of the bootstrap.
    """
    found = [
        (name, value, group) for name, value, group in zip(names, values, groups, strict=True) if value is not None
    ]
    if not found:
        return None
    numbers = [value for _, value, _ in found]
    ranked = sorted(((name, value) for name, value, _ in found), key=lambda pair: pair[1], reverse=not small_is_visible)
    low, median, high = np.quantile(numbers, [0.05, 0.5, 0.95])
    paired = [
        (value, control, group)
        for value, control, group in zip(values, controls or [None] * len(values), groups, strict=True)
        if value is not None and control is not None
    ]
    members = [group for *_, group in paired]
    return Measure(
        count=len(found),
        mean=mean_interval(numbers, [group for *_, group in found], seed),
        median=float(median),
        quantile_5=float(low),
        quantile_95=float(high),
        worst=tuple(ranked[:_WORST]),
        control=mean_interval([control for _, control, _ in paired], members, seed) if paired else None,
        beyond_control=mean_interval([v - control for v, control, _ in paired], members, seed) if paired else None,
    )


def mean_interval(values: Sequence[float], groups: Sequence[int], seed: int = 0, resamples: int = 2000) -> Estimate:
    """A mean with its 95% bootstrap interval; whole groups are resampled, since their members are not independent.

    Args:
        values: at least one.
        groups: number of the group of each value.
        seed: of the bootstrap.
        resamples: how many.
    """
    place = np.unique(np.asarray(groups), return_inverse=True)[1]
    totals, sizes = np.bincount(place, weights=np.asarray(values, dtype=np.float64)), np.bincount(place)
    rng = np.random.default_rng(seed)
    drawn = np.empty(resamples)
    for number in range(resamples):
        picked = rng.integers(len(totals), size=len(totals))
        drawn[number] = totals[picked].sum() / sizes[picked].sum()
    return interval(float(np.mean(values)), drawn)


def share_interval(hits: int, trials: int) -> Estimate:
    """A share with its 95% interval by Wilson's score, which holds for few trials and for none or all hits.

    Args:
        hits: from 0 to `trials`.
        trials: at least one.
    """
    interval = binomtest(hits, trials).proportion_ci(method="wilson")
    return Estimate(hits / trials, float(interval.low), float(interval.high))
