"""What a thief goes by who drops samples that look protected: their loss, features, likeness, or a learned detector."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from mmguard.auditing.arms import ImageStore, Row
from mmguard.auditing.attackers import Attacker, examples, fine_tune, load_attacker, schedule
from mmguard.auditing.attacks.base import Selection
from mmguard.auditing.features import duplicates, features, neighbour_distance, protected_chance
from mmguard.auditing.stats import BoolArray, FloatArray
from mmguard.config import AuditConfig, Recipe

_WARM_UP = 0.2
"""Share of the epochs that a thief trains for before it compares losses."""


@dataclass(frozen=True)
class Judge:
    """An attacker who looks at samples before training on them."""

    attacker: str
    recipe: Recipe
    config: AuditConfig
    seed: int
    device: str
    store: ImageStore

    def of(
        self, data: Sequence[Row], selection: Selection, own: Collection[int], leaked: Mapping[int, Row]
    ) -> tuple[FloatArray, BoolArray]:
        """What a filter makes of training data.

        Args:
            data: one row a sample.
            selection: by what samples are judged, and how many are dropped.
            own: places in `data` of the thief's own clean samples: by loss and features the others are compared with
                them, and none of them is dropped.
            leaked: for a learned detector: places in `data` of known clean samples, each with its protected version.

        Returns:
            How protected each sample looks (what is known is no number), and which are dropped. Shape of each: `(N,)`.
        """
        if selection.judge == "duplicates":
            drop = duplicates(data, self.store)
            return drop.astype(np.float64), drop
        if selection.judge == "leaked":
            known = list(leaked)
            found = self._features(data)
            suspicion = protected_chance(found, found[known], self._features(list(leaked.values())))
            suspicion[known] = np.nan
            return suspicion, suspicion > 0.5
        trusted = np.isin(np.arange(len(data)), list(own))
        everyone = np.full(len(data), True)
        usual = trusted if trusted.sum() > 1 else everyone  # one sample has no neighbours
        if selection.judge == "features":
            found = self._features(data)
            # Those who are looked for among themselves have the other questions about their image for neighbours, which
            # would tell them from the rest without any protection.
            suspicion = neighbour_distance(found, everyone)
            return suspicion, most(neighbour_distance(found, usual), selection.drop_percent, ~trusted)
        losses = self._losses(data)
        # How unusual a loss is goes up both ways from the median: it would not tell two groups apart that lie on
        # either side of it.
        return -losses, most(unusual(losses, usual), selection.drop_percent, ~trusted)

    def _features(self, data: Sequence[Row]) -> FloatArray:
        return features(load_attacker(self.attacker, self.device), data, self.store)

    def _losses(self, data: Sequence[Row]) -> FloatArray:
        """Losses after a warm-up on all of the data."""
        epochs = _WARM_UP * schedule(self.attacker, self.recipe, self.config)[1]
        warm = fine_tune(
            self.attacker, data, self.recipe, replace(self.config, epochs=epochs), self.seed,
            device=self.device, store=self.store,
        )  # fmt: skip
        return sample_losses(warm, data, self.store)


def unusual(losses: FloatArray, usual: BoolArray) -> FloatArray:
    """How far each loss is from the usual, up or down: protections drive losses down, or (-Max) up.

    Losses are compared as logarithms, since their distribution is skewed and both tails shall count.

    Args:
        losses: of each sample, in nats a token. Shape: `(N,)`.
        usual: whose median is the usual. Shape: `(N,)`.

    Returns:
        Distance of the logarithm from the median. Shape: `(N,)`.
    """
    logarithms = np.log(losses + 1e-6)
    return np.abs(logarithms - np.median(logarithms[usual]))


def most(suspicion: FloatArray, percent: int, judged: BoolArray) -> BoolArray:
    """Which samples are the most suspicious, so many percent of those that are judged. Shape of all: `(N,)`."""
    worst = np.argsort(np.where(judged, -suspicion, np.inf), kind="stable")[: round(judged.sum() * percent / 100)]
    return np.isin(np.arange(len(suspicion)), worst)


@torch.inference_mode()
def sample_losses(attacker: Attacker, data: Sequence[Row], store: ImageStore) -> FloatArray:
    """The attacker's loss of each sample, in nats a token of its answer. Shape: `(N,)`."""
    return np.array([attacker.model(**example).loss.item() for example in examples(attacker, data, store)])
