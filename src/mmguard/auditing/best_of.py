"""The worst case: an attacker who tries every recipe and attack, and keeps what works best.

A thief has a clean validation set, or can make one. The images of the test are therefore split in half: on one half
every attacker chooses the recipe and the attack of the highest accuracy, for each arm by itself, and on the other half
the choices are judged. Choosing and judging on the same answers would credit luck: of many options that are equally
good, one always looks better. An attacker who stops early (`early-stop`) chose its weights on the first half, too.
Intervals are those of the choices that were made; what another half would have led to choose is not in them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmguard.auditing.stats import Finding, Headline, Scores, Status, analyse


@dataclass(frozen=True)
class WorstCase:
    """What the protection is worth against attackers who choose the best of what was tried."""

    findings: tuple[Finding, ...]
    """One an attacker, each arm under the recipe and attack that were best for it, on the judging half of the test."""
    choices: tuple[Mapping[str, str], ...]
    """What each of them chose for every arm, such as `lora under jpeg-50`."""
    headline: Headline
    """The means over attackers that are not brittle."""


def worst_case(
    options: Sequence[Scores], groups: Sequence[int], resamples: int = 2000, seed: int = 0
) -> WorstCase | None:
    """Lets every attacker choose, and judges.

    Args:
        options: scores of every attacker under every recipe and attack, without attack included, with the status of
            the attacker; all on the same test items and with their matched control.
        groups: number of the group (image) of every test item.
        resamples: bootstrap resamples.
        seed: of the bootstrap; the split does not depend on it.

    Returns:
        None if there is nothing to choose from, or too few images to split.
    """
    choosing = choosing_half(groups)
    if not options or not choosing.any() or choosing.all():
        return None
    by_attacker: dict[str, list[Scores]] = {}
    for one in options:
        by_attacker.setdefault(one.attacker, []).append(one)
    best, choices = [], []
    for attacker, tried in by_attacker.items():
        chosen = {
            arm: max(tried, key=lambda one: one.by_arm[arm][:, choosing].mean())
            for arm in ("clean", tried[0].matched, "release")
        }
        choices.append({arm: _spelled(one) for arm, one in chosen.items()})
        best.append(
            Scores(
                attacker=attacker,
                recipe=f"best of {len(tried)}",
                by_arm={arm: one.by_arm[arm][:, ~choosing] for arm, one in chosen.items()},
                zero_shot=tried[0].zero_shot[~choosing],
                matched=tried[0].matched,
                status=_status(tried),
            )
        )
    findings, headline = analyse(best, np.asarray(groups)[~choosing].tolist(), resamples, seed)
    return WorstCase(tuple(findings), tuple(choices), headline)


def choosing_half(groups: Sequence[int]) -> NDArray[np.bool_]:
    """Which test items serve to choose: those of a random half of the images, always the same. Shape: `(N,)`."""
    images = np.unique(np.asarray(groups))
    half = np.random.default_rng(0).permutation(images)[: len(images) // 2]
    return np.isin(np.asarray(groups), half)


def _spelled(one: Scores) -> str:
    return f"{one.recipe} under {one.attack}" if one.attack else one.recipe


def _status(tried: Sequence[Scores]) -> Status | None:
    """The best status that the attacker has under any recipe: it may choose that one."""
    found = {one.status for one in tried}
    return next((status for status in ("valid", "doubtful", "brittle", "untaught") if status in found), "unjudged")
