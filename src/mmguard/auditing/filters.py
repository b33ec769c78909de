"""What a thief goes by who drops samples that look protected: their loss, their features, or a learned detector.

A judge gives every sample a suspicion; which samples are dropped follows from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from mmguard.auditing.arms import ImageStore, Row
from mmguard.auditing.attackers import Attacker, batches, fine_tune, schedule
from mmguard.auditing.stats import FloatArray
from mmguard.config import AuditConfig, Recipe

_WARM_UP = 0.2
"""Share of the epochs of a warm-up."""


def unusual_loss(
    name: str, data: Sequence[Row], recipe: Recipe, config: AuditConfig, seed: int, device: str, store: ImageStore
) -> FloatArray:
    """How far the loss of each sample is from the usual, up or down, after a short warm-up on all of them.

    Protections that drive the loss down are learned sooner than clean data, those that drive it up later. Losses are
    compared as logarithms: their distribution is skewed, and both tails shall count.

    Returns:
        Shape: `(N,)`, in nats of the logarithm.
    """
    epochs = _WARM_UP * schedule(name, recipe, config)[1]
    warm = fine_tune(name, data, recipe, replace(config, epochs=epochs), seed, device=device, store=store)
    logarithms = np.log(losses(warm, data, config.batch_size, store) + 1e-6)
    return np.abs(logarithms - np.median(logarithms))


def most(suspicion: FloatArray, percent: int) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Which samples are the most suspicious, so many percent of all. Shape: `(N,)`."""
    worst = np.argsort(-suspicion, kind="stable")[: round(len(suspicion) * percent / 100)]
    return np.isin(np.arange(len(suspicion)), worst)


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
