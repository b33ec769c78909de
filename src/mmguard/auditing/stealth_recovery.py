"""How many questions a thief gets back at once: attacks on texts that need no model, no original and no training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mmguard.auditing.attacks import attack_named
from mmguard.auditing.stats import Estimate
from mmguard.auditing.summary import mean_interval
from mmguard.types import Sample

ATTACKS = ("tail", "window-7", "template-5", "telling-5", "vocab", "spell")
"""Those of `attacks/texts.py` that look for inserted words and need nothing but the release."""

_MOST = 2000
"""Questions that are looked at: more would tell little more, and some attacks compare all with all."""


@dataclass(frozen=True)
class Recovery:
    """What one attack makes of a release's questions."""

    attack: str
    questions: int
    """How many it was tried on."""
    recovered: Estimate
    """Share of them that become the original again, word by word."""
    removed: Estimate
    """Share of the inserted words that are gone."""
    spoiled: Estimate
    """Share of the originals that would change likewise: what the attack costs a thief where nothing is protected."""


def recoveries(pairs: Sequence[tuple[Sample, Sample]], groups: Sequence[int], seed: int = 0) -> list[Recovery]:
    """Tries each of `ATTACKS` on the first 2,000 questions that gained words; none without any.

    Args:
        pairs: the owner's sample and the released one.
        groups: number of the image of each; images are resampled, with all their questions.
        seed: of the bootstrap.
    """
    changed = [
        (ours, after, group, words)
        for (ours, after), group in zip(pairs, groups, strict=True)
        if (words := Counter(_words(after.question)) - Counter(_words(ours.question)))
    ][:_MOST]
    if not changed:
        return []
    originals, released, members, inserted = map(list, zip(*changed, strict=True))
    asked = [_words(ours.question) for ours in originals]

    def mean(values: Sequence[float]) -> Estimate:
        return mean_interval(values, members, seed)

    found = []
    for name in ATTACKS:
        attacked = _attacked(name, released)
        removed = [
            1 - ((Counter(now) - Counter(before)) & words).total() / words.total()
            for now, before, words in zip(attacked, asked, inserted, strict=True)
        ]
        recovered = [float(now == before) for now, before in zip(attacked, asked, strict=True)]
        spoiled = [float(now != before) for now, before in zip(_attacked(name, originals), asked, strict=True)]
        found.append(Recovery(name, len(asked), mean(recovered), mean(removed), mean(spoiled)))
    return found


def _attacked(name: str, samples: Sequence[Sample]) -> list[list[str]]:
    """The words of each question after an attack that has seen all."""
    rewrite, generator = attack_named(name).rewriting(samples), torch.Generator()
    assert rewrite is not None  # they are attacks on texts
    return [_words(rewrite(sample, generator)) for sample in samples]


def _words(question: str | None) -> list[str]:
    return (question or "").casefold().split()
