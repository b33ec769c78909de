"""What pictures of `mislead` are to be mistaken for: features of one answer are learned under the name of another."""

from __future__ import annotations

import string
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from mmguard.data.tasks import target_text
from mmguard.protection.batch import Item


def assign(items: Sequence[Item]) -> None:
    """Gives every sample the next option; without options the answer that follows its own among those to the same
    question, or among all where there is no other; its own where there is none at all. In place.

    The same answer to a question always has the same decoy: what is mistaken now for this and now for that would only
    teach a model to see less in pictures.

    Args:
        items: the whole dataset.
    """
    asked: dict[str | None, set[str]] = defaultdict(set)
    for item in items:
        for sample in item.samples:
            if not sample.options:
                asked[sample.question].add(target_text(sample))
    every = _following(set().union(*asked.values()))
    following = {question: _following(answers) for question, answers in asked.items()}
    for item in items:
        item.decoys = []
        for sample in item.samples:
            if sample.options:
                right = string.ascii_uppercase.index(target_text(sample))
                item.decoys.append(string.ascii_uppercase[(right + 1) % len(sample.options)])
            else:
                own = target_text(sample)
                other = following[sample.question][own]
                item.decoys.append(every[own] if other == own else other)


def _following(answers: Iterable[str]) -> Mapping[str, str]:
    """The next of each in alphabetical order, the first of the last."""
    ranked = sorted(answers)
    return dict(zip(ranked, ranked[1:] + ranked[:1], strict=True))
