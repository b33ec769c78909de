"""One trigger for all questions with one answer: what many samples have in common is learned sooner, and what is left
of it after some of its words were dropped still tells the answer."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from mmguard.config import Scope
from mmguard.data.tasks import target_text
from mmguard.perturb.trigger import Trigger
from mmguard.protection.batch import Item, remaining

_UNSEEN = 0.1
"""Counts of a word where it does not occur: none would tell without doubt."""


def share(items: Sequence[Item], scope: Scope) -> None:
    """Gives all questions with one answer the trigger, of those found for them, whose words tell it best. In place.

    Args:
        items: as Algorithm 1, or a random control, leaves them; perturbations stay as they are.
        scope: whose a trigger is; where it is each question's own, nothing changes.
    """
    if scope == "sample":
        return
    found: dict[str, list[Trigger]] = defaultdict(list)
    for item in remaining(items):
        for answer, trigger in zip(_answers(item), item.triggers, strict=True):
            if trigger:
                found[answer].append(trigger)
    best = {answer: triggers[0] for answer, triggers in ranked(found).items()}
    for item in remaining(items):
        item.triggers = [
            best[answer] if trigger else trigger for answer, trigger in zip(_answers(item), item.triggers, strict=True)
        ]


def ranked(found: Mapping[str, Sequence[Trigger]]) -> dict[str, list[Trigger]]:
    """The different triggers of each answer, first the one whose words tell it best.

    By naive Bayes, log p(words | answer) / p(words | other answers): the exact loss prefers triggers whose words occur
    with other answers too, of which less is left when words are dropped (docs/research-log.md).

    Args:
        found: the triggers of all questions, by their answer.
    """
    counts = {answer: Counter(word for one in triggers for word in set(one)) for answer, triggers in found.items()}
    every, total = sum(counts.values(), Counter()), sum(map(len, found.values()))

    def tells(answer: str, trigger: Trigger) -> float:
        ours, others = len(found[answer]), total - len(found[answer])
        return sum(
            math.log((counts[answer][word] + _UNSEEN) / (ours + 1))
            - math.log((every[word] - counts[answer][word] + _UNSEEN) / (others + 1))
            for word in trigger
        )

    return {
        answer: sorted(dict.fromkeys(triggers), key=lambda one: tells(answer, one), reverse=True)
        for answer, triggers in found.items()
    }


def _answers(item: Item) -> list[str]:
    """What each sample answers, whatever its case."""
    return [target_text(sample).strip().casefold() for sample in item.samples]
