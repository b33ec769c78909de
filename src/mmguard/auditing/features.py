"""What can be told from samples alone: which are outliers, which look protected, and which repeat another."""

from __future__ import annotations

from collections import defaultdict
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

from mmguard.auditing.arms import ImageStore, Row
from mmguard.auditing.attackers import Attacker, examples
from mmguard.auditing.stats import BoolArray, FloatArray

_NEIGHBOURS = 10
_SAME_BITS = 6
"""Images are nearly the same if at most so many bits of their perceptual hashes, of 64, differ."""
_SAME_WORDS = 90
"""Questions are nearly the same from this similarity of their sets of words, of 100; inserted words do not lower it."""


@torch.inference_mode()
def features(attacker: Attacker, data: Sequence[Row], store: ImageStore) -> FloatArray:
    """What the untouched model makes of images and prompts: means over their tokens of its first and last states.

    The first are word embeddings and, in most families, projected image features. The answer is left out.

    Returns:
        Shape: `(N, 2D)`.
    """
    found = []
    for example in examples(attacker, data, store):
        prompt = example.pop("labels")[0] == -100
        states = attacker.model(**example, output_hidden_states=True).hidden_states
        found.append(torch.cat([layer[0, prompt].float().mean(0) for layer in (states[0], states[-1])]))
    return torch.stack(found).double().cpu().numpy()


def neighbour_distance(found: FloatArray, among: BoolArray) -> FloatArray:
    """Mean distance of each sample to its ten nearest neighbours, itself not counted, all features scaled alike.

    Args:
        found: features of the samples. Shape: `(N, D)`.
        among: which samples count as neighbours; two or more. Shape: `(N,)`.

    Returns:
        Shape: `(N,)`.
    """
    scaled = StandardScaler().fit_transform(found)
    number = min(_NEIGHBOURS, int(among.sum()) - 1)
    distances, _ = NearestNeighbors(n_neighbors=number + 1).fit(scaled[among]).kneighbors(scaled)
    # Those among whom it is looked for find themselves first.
    return np.where(among[:, None], distances[:, 1:], distances[:, :-1]).mean(axis=1)


def protected_chance(found: FloatArray, clean: FloatArray, protected: FloatArray) -> FloatArray:
    """How likely each sample is a protected one, by logistic regression on samples in both versions.

    Args:
        found: features of the samples. Shape: `(N, D)`.
        clean: those of samples that are known to be clean. Shape: `(K, D)`.
        protected: those of their protected versions. Shape: `(K, D)`.

    Returns:
        Shape: `(N,)`.
    """
    detector = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    detector.fit(np.concatenate([clean, protected]), np.repeat([0, 1], [len(clean), len(protected)]))
    return detector.predict_proba(found)[:, 1]


def duplicates(data: Sequence[Row], store: ImageStore) -> BoolArray:
    """Which samples nearly repeat an earlier one that is kept: image, question and answer. Shape: `(N,)`."""
    hashes = np.stack([perceptual_hash(row.load(store)) for row in data])
    kept: dict[str, list[int]] = defaultdict(list)
    drop = np.zeros(len(data), dtype=bool)
    for place, row in enumerate(data):
        same_answer = kept[row.target]
        near = (hashes[same_answer] != hashes[place]).sum(axis=1) <= _SAME_BITS
        drop[place] = any(
            token_set_ratio(row.text, data[other].text) >= _SAME_WORDS
            for other, alike in zip(same_answer, near, strict=True)
            if alike
        )
        if not drop[place]:
            same_answer.append(place)
    return drop


def perceptual_hash(image: Image.Image) -> BoolArray:
    """Which of an image's lowest 64 frequencies exceed their median: the "pHash". Shape: `(64,)`."""
    gray = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS), dtype=np.float64)
    low = dctn(gray)[:8, :8].flatten()
    return low > np.median(low)
