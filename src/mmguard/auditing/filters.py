"""What a thief goes by who drops samples that look protected: loss, features, likeness, or a learned detector.

A judge gives every sample a suspicion, and says which samples it drops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from mmguard.auditing.arms import ImageStore, Row
from mmguard.auditing.attackers import Attacker, batches, fine_tune, load_attacker, schedule
from mmguard.auditing.attacks.base import Selection
from mmguard.auditing.features import duplicates, features, neighbour_distance, protected_chance
from mmguard.auditing.selection import BoolArray
from mmguard.auditing.stats import FloatArray
from mmguard.config import AuditConfig, Recipe

_WARM_UP = 0.2
"""Share of the epochs of a warm-up."""


@dataclass(frozen=True)
class Thief:
    """Whose model judges."""

    attacker: str
    recipe: Recipe
    config: AuditConfig
    seed: int
    device: str
    store: ImageStore


def judged(
    selection: Selection, data: Sequence[Row], thief: Thief, leaked: Sequence[tuple[int, Row]] = ()
) -> tuple[FloatArray, BoolArray]:
    """What a filter makes of training data.

    Args:
        selection: its judge, and how much is to be dropped.
        data: one row a sample.
        thief: whose model judges.
        leaked: for a learned detector, places in `data` that are known to be clean, each with its protected version.

    Returns:
        How protected each sample looks (what is known is no number), and which are dropped. Shape of each: `(N,)`.
    """
    if selection.judge == "duplicates":
        drop = duplicates(data, thief.store)
        return drop.astype(np.float64), drop
    if selection.judge == "loss":
        suspicion = unusual_loss(data, thief)
        return suspicion, most(suspicion, selection.drop_percent)
    model = load_attacker(thief.attacker, thief.device)
    found = features(model, data, thief.store)
    if selection.judge == "features":
        suspicion = neighbour_distance(found)
        return suspicion, most(suspicion, selection.drop_percent)
    places = [place for place, _ in leaked]
    suspicion = protected_chance(found, found[places], features(model, [row for _, row in leaked], thief.store))
    suspicion[places] = np.nan
    return suspicion, suspicion > 0.5


def most(suspicion: FloatArray, percent: int) -> BoolArray:
    """Which samples are the most suspicious, so many percent of all. Shape: `(N,)`."""
    worst = np.argsort(-suspicion, kind="stable")[: round(len(suspicion) * percent / 100)]
    return np.isin(np.arange(len(suspicion)), worst)


def unusual_loss(data: Sequence[Row], thief: Thief) -> FloatArray:
    """How far the loss of each sample is from the usual, up or down, after a short warm-up on all of them.

    Protections that drive the loss down are learned sooner than clean data, those that drive it up later. Losses are
    compared as logarithms, since their distribution is skewed and both tails shall count.

    Returns:
        Distance of the logarithm from the median. Shape: `(N,)`.
    """
    epochs = _WARM_UP * schedule(thief.attacker, thief.recipe, thief.config)[1]
    config = replace(thief.config, epochs=epochs)
    warm = fine_tune(thief.attacker, data, thief.recipe, config, thief.seed, device=thief.device, store=thief.store)
    logarithms = np.log(losses(warm, data, config.batch_size, thief.store) + 1e-6)
    return np.abs(logarithms - np.median(logarithms))


@torch.inference_mode()
def losses(attacker: Attacker, data: Sequence[Row], batch_size: int, store: ImageStore) -> FloatArray:
    """The attacker's loss of each sample, in nats a token. Shape: `(N,)`."""
    found = []
    for batch in batches(attacker, data, batch_size, store):
        labels = batch.pop("labels")[:, 1:]
        logits = attacker.model(**batch).logits[:, :-1].float()
        of_tokens = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        found.append(of_tokens.sum(1) / (labels != -100).sum(1))
    return torch.cat(found).double().cpu().numpy()
