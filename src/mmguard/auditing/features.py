"""What a model sees in training samples, and what can be told from it: outliers, protected ones, near duplicates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from rapidfuzz.fuzz import token_set_ratio
from scipy.fft import dctn
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from mmguard.auditing.arms import ImageStore, Row
from mmguard.auditing.attackers import Attacker, batches
from mmguard.auditing.selection import BoolArray
from mmguard.auditing.stats import FloatArray
from mmguard.lvlm.families import family

_NEIGHBOURS = 10
_SAME_BITS = 6
"""Images whose perceptual hashes differ in so many bits of 64, or fewer, are nearly the same."""
_SAME_WORDS = 90
"""Questions are nearly the same from this similarity of their sets of words, of 100."""


@torch.inference_mode()
def features(attacker: Attacker, data: Sequence[Row], store: ImageStore) -> FloatArray:
    """What the language model is given of each sample: the mean image feature, and the mean embedding of the prompt.

    Both are of the model as it is, and the answer is left out.

    Returns:
        Shape: `(N, D)`.
    """
    model = attacker.model
    projected: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        projected.append(output.flatten(0, -2).float().mean(0))

    last = next(
        part
        for part in map(model.get_submodule, reversed(family(model, attacker.name).projector))
        if not isinstance(part, nn.ModuleList)
    )
    handle = last.register_forward_hook(keep)
    found = []
    try:
        for batch in batches(attacker, data, 1, store):  # of one sample, so that all that is projected belongs to it
            prompt = batch["input_ids"][batch.pop("labels") == -100]
            model(**batch)
            text = model.get_input_embeddings()(prompt).float().mean(0)
            found.append(torch.cat([torch.stack(projected).mean(0), text]))
            projected.clear()
    finally:
        handle.remove()
    return torch.stack(found).double().cpu().numpy()


def neighbour_distance(found: FloatArray) -> FloatArray:
    """Mean distance of each sample to its ten nearest neighbours, all features scaled alike.

    Shape:
        `(N, D)` to `(N,)`.
    """
    scaled = StandardScaler().fit_transform(found)
    nearest = NearestNeighbors(n_neighbors=min(_NEIGHBOURS, len(found) - 1)).fit(scaled)
    distances, _ = nearest.kneighbors()  # without the sample itself
    return distances.mean(axis=1)


def protected_chance(found: FloatArray, clean: FloatArray, protected: FloatArray) -> FloatArray:
    """How likely each sample is a protected one, by logistic regression on samples of both kinds.

    Args:
        found: features of the samples. Shape: `(N, D)`.
        clean: those of samples that are known to be clean. Shape: `(K, D)`.
        protected: those of the protected versions. Shape: `(K, D)`.

    Returns:
        Shape: `(N,)`.
    """
    detector = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    detector.fit(np.concatenate([clean, protected]), np.repeat([0, 1], [len(clean), len(protected)]))
    return detector.predict_proba(found)[:, 1]


def duplicates(data: Sequence[Row], store: ImageStore) -> BoolArray:
    """Which samples nearly repeat an earlier one that is kept: image, question and answer. Shape: `(N,)`."""
    hashes = [perceptual_hash(row.load(store)) for row in data]
    kept: dict[str, list[int]] = {}
    drop = np.zeros(len(data), dtype=bool)
    for place, row in enumerate(data):
        same_answer = kept.setdefault(row.target, [])
        drop[place] = any(
            (hashes[place] != hashes[other]).sum() <= _SAME_BITS
            and token_set_ratio(row.text, data[other].text) >= _SAME_WORDS
            for other in same_answer
        )
        if not drop[place]:
            same_answer.append(place)
    return drop


def perceptual_hash(image: Image.Image) -> BoolArray:
    """Which of the lowest 64 frequencies are above their median, in grayscale at 32 by 32 pixels ("pHash")."""
    gray = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS), dtype=np.float64)
    low = dctn(gray)[:8, :8].flatten()
    return low > np.median(low)
