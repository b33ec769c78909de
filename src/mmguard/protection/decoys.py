"""What pictures of `mislead` are to be mistaken for: features of one answer are learned under the name of another."""

from __future__ import annotations

import string
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from mmguard.data.metrics import normalise
from mmguard.data.tasks import target_text
from mmguard.errors import SampleError
from mmguard.protection.batch import Item
from mmguard.types import Sample


def assign(items: Sequence[Item], samples: Sequence[Sample]) -> None:
    """Gives every sample of the items its decoy, in place. An item of which one has none is lost.

    Args:
        items: what is protected.
        samples: the whole dataset.
    """
    found = decoys(samples)
    for item in items:
        item.decoys = [found[one.id] for one in item.samples if one.id in found]
        if len(item.decoys) < len(item.samples):
            item.lost = SampleError(
                str(item.path), "there is no other answer to mistake it for: take another variant than mislead"
            )


def decoys(samples: Sequence[Sample]) -> dict[str, str]:
    """A wrong target for every sample, by its id; none where there is no other answer.

    It is the next option; without options the answer that follows its own in alphabetical order, among those to the
    same question, or among all where there is no other. So the same answer to a question has the same decoy, as far as
    that is no right answer too: what is mistaken now for this and now for that would only teach a model to see less in
    pictures.

    Args:
        samples: the whole dataset.
    """
    asked: dict[str | None, set[str]] = defaultdict(set)
    right: dict[Path, set[str]] = defaultdict(set)
    for one in samples:
        right[one.image] |= {normalise(answer) for answer in (*one.answers, one.answer)}
        if not one.options:
            asked[one.question].add(one.answer)
    every = sorted(set().union(*asked.values()))
    ranked = {question: sorted(answers) for question, answers in asked.items()}
    found: dict[str, str | None] = {}
    for one in samples:
        if one.options:
            number = string.ascii_uppercase.index(target_text(one)) + 1
            found[one.id] = string.ascii_uppercase[number % len(one.options)] if len(one.options) > 1 else None
        else:
            others = chain(_after(one.answer, ranked[one.question]), _after(one.answer, every))
            found[one.id] = next((other for other in others if normalise(other) not in right[one.image]), None)
    return {sample: decoy for sample, decoy in found.items() if decoy is not None}


def _after(answer: str, ranked: Sequence[str]) -> Iterator[str]:
    """All answers, from the one that follows this round to itself, one at a time: there may be as many as samples."""
    start = bisect_right(ranked, answer)
    return (ranked[(start + n) % len(ranked)] for n in range(len(ranked)))
