"""Which samples a thief trains on: mixtures with clean data, and filters for what looks protected.

The attacks that ask for it are in `attacks.data`. All of them train for as many steps as without: what is left is
repeated, so that runs differ in their data alone.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from mmguard.auditing.arms import Arm, Pairing, Row, rows
from mmguard.auditing.stats import FloatArray
from mmguard.errors import ConfigError

MixedArm: TypeAlias = Arm | Literal["clean-part"]
"""`clean-part` is what a mixture has of clean data, alone."""

BoolArray: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True)
class Sifted:
    """What a filter did."""

    dropped: float
    """Share of the samples."""
    auc: float | None
    """How well the suspicion tells what is protected from what is clean (area under the ROC curve; 0.5 is chance).
    None where there is only one of both."""


def clean_part(pairing: Pairing, percent: int, seed: int) -> BoolArray:
    """Which pairs are clean in a mixture: whole images, and of the last one as many pairs as make the share exact.

    With the same seed a smaller share is part of a larger one.

    Args:
        pairing: the release with its original.
        percent: share of the pairs, rounded to whole ones.
        seed: of the draw.

    Returns:
        Shape: `(N,)`, in the order of the pairs.

    Raises:
        ConfigError: that is none of the pairs, or all.
    """
    number = len(pairing.pairs)
    if not 0 < (count := round(number * percent / 100)) < number:
        raise ConfigError(f"mix-{percent}: {percent} % of {number} samples are {count}; choose another share")
    # By content and not by path, which would make what is drawn depend on where the folder lies.
    ranks = [hashlib.sha256(f"{seed} {pairing.digests[ours.image]}".encode()).digest() for ours, _ in pairing.pairs]
    chosen = sorted(range(number), key=lambda place: (ranks[place], place))[:count]
    return np.isin(np.arange(number), chosen)


def mixture(arm: MixedArm, pairing: Pairing, words: Sequence[str], seed: int, percent: int) -> list[Row]:
    """The training data of an arm of which a part is clean, the same part for every arm.

    Args:
        arm: of the other samples; `clean-part` has none, and its clean samples are repeated instead.
        pairing: the release with its original.
        words: as for `rows`.
        seed: of the run.
        percent: share of clean samples.

    Returns:
        One row a pair, whatever the arm.

    Raises:
        ConfigError: as `clean_part`.
    """
    clean = clean_part(pairing, percent, seed)
    originals = rows("clean", pairing, words, seed)
    if arm == "clean-part":
        return repeated([row for row, is_clean in zip(originals, clean, strict=True) if is_clean], len(originals))
    others = rows(arm, pairing, words, seed)
    return [ours if is_clean else other for ours, other, is_clean in zip(originals, others, clean, strict=True)]


def repeated(data: Sequence[Row], number: int) -> list[Row]:
    """The rows again and again until there are so many: training on them takes as many steps."""
    return list(itertools.islice(itertools.cycle(data), number))


def sift(data: Sequence[Row], suspicion: FloatArray, drop: BoolArray, clean: BoolArray) -> tuple[list[Row], Sifted]:
    """Training data without what a filter drops, and how well the filter did.

    Args:
        data: one row a sample.
        suspicion: how protected each looks; no number where the thief knows. Shape: `(N,)`.
        drop: which go. Shape: `(N,)`.
        clean: which are known to the owner to be clean. Shape: `(N,)`.

    Returns:
        As many rows as before: those that are left are repeated.

    Raises:
        ConfigError: nothing is left.
    """
    left = [row for row, goes in zip(data, drop, strict=True) if not goes]
    if not left:
        raise ConfigError("the filter drops every sample, and nothing is left to train on")
    protected, judged = ~clean, ~np.isnan(suspicion)
    both = len(np.unique(protected[judged])) == 2
    auc = float(roc_auc_score(protected[judged], suspicion[judged])) if both else None
    return repeated(left, len(data)), Sifted(float(drop.mean()), auc)
