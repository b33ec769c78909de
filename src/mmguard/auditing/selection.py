"""Which samples a thief trains on: mixtures with clean data, without what a filter drops.

The attacks that ask for it are in `attacks.data`. All train for as many steps as without: what is left is repeated, so
that runs differ in their data alone.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from sklearn.metrics import roc_auc_score

from mmguard.auditing.arms import Arm, Pairing, Row
from mmguard.auditing.attacks.base import Selection
from mmguard.auditing.stats import BoolArray, FloatArray
from mmguard.errors import ConfigError

MixedArm: TypeAlias = Arm | Literal["clean-part"]
"""`clean-part` is what a mixture has of clean data, alone."""


@dataclass(frozen=True)
class Sifted:
    """What a filter did."""

    dropped: float
    """Share of the samples."""
    auc: float | None
    """How well the suspicion tells changed samples from clean ones: area under the ROC curve, 0.5 being chance, less
    where clean ones look more suspicious. None where there is only one of both."""
    folded: bool = True
    """Whether that is from 0.5 to 1, whichever look more suspicious, as it is in results from before."""


def clean_places(pairing: Pairing, selection: Selection, seed: int) -> list[int]:
    """Which pairs are clean in a mixture, in random order: whole images, but for the last, so that the share is exact.

    With the same seed a smaller share is the beginning of a larger one, and the same for all arms.

    Args:
        pairing: the release with its original.
        selection: has the share; none is clean if it has not.
        seed: of the run.

    Raises:
        ConfigError: that is none of the pairs, or all, or the thief is to know more of them than there are.
    """
    if selection.clean_percent is None:
        return []
    number, percent = len(pairing.pairs), selection.clean_percent
    count = round(number * percent / 100)
    if not 0 < count < number:
        raise ConfigError(f"attack mix-{percent}: {percent} % of {number} samples are {count}: choose another share")
    if selection.leaked >= count:
        raise ConfigError(
            f"attack leaked-detector-{selection.leaked}: only {count} of {number} samples are clean under "
            f"mix-{percent}, and some have to be left to judge: choose fewer, or a larger share"
        )
    # By content and not by path, which would make what is drawn depend on where the folder lies.
    ranks = [hashlib.sha256(f"{seed} {pairing.digests[ours.image]}".encode()).digest() for ours, _ in pairing.pairs]
    return sorted(range(number), key=ranks.__getitem__)[:count]


def mixture(stolen: Sequence[Row], originals: Sequence[Row], clean: Collection[int]) -> list[Row]:
    """Stolen rows, with the original in the place of those that are to be clean."""
    chosen = frozenset(clean)
    pairs = enumerate(zip(stolen, originals, strict=True))
    return [ours if place in chosen else theirs for place, (theirs, ours) in pairs]


def repeated(data: Sequence[Row], number: int) -> list[Row]:
    """The rows again and again until there are so many."""
    return list(itertools.islice(itertools.cycle(data), number))


def sift(
    data: Sequence[Row], suspicion: FloatArray, drop: BoolArray, clean: Collection[int]
) -> tuple[list[Row], Sifted]:
    """Training data without what a filter drops, and how well the filter did.

    Args:
        data: one row a sample.
        suspicion: how protected each looks; no number for what the thief knows. Shape: `(N,)`.
        drop: which go. Shape: `(N,)`.
        clean: places of those that are clean, as the owner knows.

    Returns:
        As many rows as before: those that are left are repeated.

    Raises:
        ConfigError: nothing is left.
    """
    left = [row for row, goes in zip(data, drop, strict=True) if not goes]
    if not left:
        raise ConfigError("the filter drops every sample, and nothing is left to train on: choose a weaker one")
    judged = ~np.isnan(suspicion)
    changed = ~np.isin(np.arange(len(data)), list(clean))[judged]
    auc = None
    if len(set(changed)) == 2:
        auc = float(roc_auc_score(changed, suspicion[judged]))
    return repeated(left, len(data)), Sifted(float(drop.mean()), auc, folded=False)


def mean_auc(found: Sequence[Sifted]) -> float | None:
    """The mean over seeds, whichever samples look more suspicious: folded once, as every fold adds what is chance.

    Args:
        found: what a filter did, for each seed.

    Returns:
        From 0.5 to 1; None where no seed tells.
    """
    aucs = [one.auc for one in found if one.auc is not None]
    if not aucs:
        return None
    if any(one.folded for one in found):  # it is lost which way they went
        aucs = [_folded(auc) for auc in aucs]
    return _folded(float(np.mean(aucs)))


def _folded(auc: float) -> float:
    return max(auc, 1 - auc)
