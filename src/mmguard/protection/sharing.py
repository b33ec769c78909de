"""One trigger for all questions with one answer: a shortcut that is the same in many samples is learned sooner, and
what is left of it after some of its words are dropped still tells the answer."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mmguard.config import ProtectConfig
from mmguard.data.images import load_picture
from mmguard.data.tasks import target_text
from mmguard.lvlm.prompt import Example
from mmguard.perturb.budget import apply, to_unit
from mmguard.protection.batch import Item, originals, remaining
from mmguard.protection.ensemble import Ensemble

CANDIDATES = 64
"""Triggers that are judged for an answer, at most; chosen at random from those that were found for its questions."""

JUDGES = 16
"""Samples of an answer that judge them, at most."""

Place = tuple[Item, int]
"""A sample: its image, and its number there."""


def share(items: Sequence[Item], ensemble: Ensemble, config: ProtectConfig) -> None:
    """Gives all questions with one answer the same trigger: of those found for them, the one with the least ℓ_prot
    (Eq. 31) in the mean over them. In place; perturbations stay as they are.

    Args:
        items: as Algorithm 1 leaves them.
        ensemble: the surrogates, as the last round adapted them.
        config: the settings.
    """
    for answer, group in by_answer(items).items():
        if len(group) == 1:
            continue
        rng = random.Random(f"{config.seed} share {answer}")
        found = list(dict.fromkeys(item.triggers[number] for item, number in group))
        candidates = rng.sample(found, min(CANDIDATES, len(found)))
        judges = rng.sample(group, min(JUDGES, len(group)))
        losses = [ensemble.judge(*sample, candidates) for sample in _readable(judges)]
        if losses:
            best = candidates[int(torch.stack(losses).sum(0).nan_to_num(nan=torch.inf).argmin())]
            for item, number in group:
                item.triggers[number] = best


def by_answer(items: Sequence[Item]) -> dict[str, list[Place]]:
    """The samples that have a trigger, by what they answer, whatever its case."""
    groups: dict[str, list[Place]] = defaultdict(list)
    for item in remaining(items):
        for number, sample in enumerate(item.samples):
            if item.triggers[number]:
                groups[target_text(sample).strip().casefold()].append((item, number))
    return groups


def _readable(samples: Sequence[Place]) -> Iterator[tuple[Example, Tensor, Tensor]]:
    """Each sample with its image as it is protected now and as it was; those whose file is gone are passed over."""
    for item, number in samples:
        for picture in originals([item], load_picture):
            protected = item.seen(picture.image, to_unit(apply(picture.image, item.delta)))
            yield item.examples[number], protected, to_unit(picture.image)
