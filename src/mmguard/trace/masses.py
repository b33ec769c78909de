"""Attention masses: how much of the answer's attention rests on what, layer by layer (Eq. 24; the paper's Fig. 9).

Three versions of each sample are compared: the original, the released one, and the matched control, which changes the
same places at random. Like the audit this reads the release and the original, never the private record.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmguard import losses
from mmguard.auditing.arms import Pairing, Pixels, inserted, pair, random_words, shuffled_noise
from mmguard.auditing.stats import Estimate, interval
from mmguard.data.images import load_image
from mmguard.data.readers import read_dataset
from mmguard.data.tasks import target_text
from mmguard.data.text import insert_trigger, inserted_place
from mmguard.errors import ReleaseError, SurrogateError
from mmguard.lvlm.attention import attending_layers
from mmguard.lvlm.loading import load_surrogate
from mmguard.lvlm.prompt import Example
from mmguard.lvlm.surrogate import Surrogate
from mmguard.release.layout import sha256
from mmguard.runtime.progress import progress
from mmguard.runtime.provenance import commit, versions
from mmguard.trace.regions import token_boxes
from mmguard.types import Sample, TokenRoles

Arm = Literal["clean", "release", "control"]
ARMS: tuple[Arm, ...] = ("clean", "release", "control")

GROUPS = {
    "image": "the image",
    "perturbed": "the image tokens that the release changes most (Ω_δ)",
    "trigger": "the inserted words",
    "question": "the owner's question",
    "rest": "the template and the answer itself",
}
"""What attention may rest on, by name; `perturbed` is a part of `image`, and all others together are everything."""

_MAPS = 3
_RESAMPLES = 1000


@dataclass(frozen=True)
class Mass:
    """Share of the answer's attention on one group of tokens, from 0 to 1: means over samples."""

    arm: Arm
    group: str
    mean: Estimate
    """Over all layers."""
    layers: tuple[Estimate, ...]


@dataclass(frozen=True)
class Map:
    """Where the answers of one sample look: means over layers."""

    sample: str
    images: dict[Arm, Tensor]
    """uint8 `(3, H, W)`."""
    attention: dict[Arm, Tensor]
    """Attention on each image token. `(N,)`."""
    boxes: Tensor
    """What each image token covers: left, top, right, bottom as shares of the image, NaN for none. `(N, 4)`."""
    perturbed: Tensor
    """Ω_δ, bool `(N,)`; the same tokens in all three."""


@dataclass(frozen=True)
class Shift:
    """The two sides of Theorem 5.1 for R = Ω_δ: means over samples and layers (`losses.routing_shift`)."""

    total_variation: float
    """Left side: how far the answer's attention is from what it was on the original, from 0 to 1."""
    bound: float
    """Right side. It takes clean attention on Ω_δ to be 0, which it is not: only what remains of it after that is
    taken off is sure; it says nothing where it is negative."""


@dataclass(frozen=True)
class Trace:
    """Where the attention of answers goes."""

    surrogate: str
    samples: int
    """One question of each image."""
    masses: tuple[Mass, ...]
    shift: Shift | None = None
    """None where it is not known which image tokens are perturbed."""
    maps: tuple[Map, ...] = ()
    missing: tuple[str, ...] = ()
    """What could not be traced, and why."""
    provenance: dict[str, Any] = field(default_factory=dict)

    def mass(self, arm: Arm, group: str) -> Mass | None:
        """One of the masses; None where it does not exist."""
        return next((one for one in self.masses if (one.arm, one.group) == (arm, group)), None)


@torch.no_grad()
def trace(
    release: str | Path,
    original: str | Path,
    surrogate: str | Surrogate,
    *,
    tau: float = 0.1,
    split: str | None = None,
    limit: int = 64,
    seed: int = 0,
    device: str = "auto",
    show_progress: bool = False,
) -> Trace:
    """Follows the answers' attention on the original, on the release and on its matched control, in every layer.

    Args:
        release: the released folder; nothing beside it is read.
        original: the dataset that it was made from.
        surrogate: whose attention.
        tau: share of the image tokens that count as perturbed (τ_δ).
        split: split of the original.
        limit: look at the first question of each of the first so many images.
        seed: of the controls and of the bootstrap.
        device: where a surrogate given by name runs.
        show_progress: a bar on standard error.

    Raises:
        DataError: a dataset cannot be read.
        ReleaseError: the release does not belong to the original, or changes nothing.
        SurrogateError: the model cannot be loaded, or its attention cannot be read.
    """
    released = read_dataset(release, limit=limit)
    pairing = pair(released, read_dataset(original, split=split))
    model = surrogate if isinstance(surrogate, Surrogate) else load_surrogate(surrogate, device)
    tracer = _Tracer(model, pairing, tau, seed)
    first = {ours.image: (ours, after) for ours, after in reversed(pairing.pairs)}
    chosen = [pair_ for pair_ in first.values() if _is_one_piece(*pair_)][::-1]
    if not chosen:
        raise ReleaseError(f"{release}: no words stand behind their question, as mmguard puts them: nothing to trace")
    if left_out := len(first) - len(chosen):
        tracer.missing.append(f"{left_out} samples: their words do not stand behind the question")
    shares = []
    with progress("Trace", len(chosen), enabled=show_progress) as advance:
        for ours, after in chosen:
            shares.append(tracer.shares(ours, after))
            advance(1)
    masses = list(_masses(np.stack(shares), pairing, tracer.boxed, seed))
    provenance = {
        "versions": versions("mmguard", "torch", "transformers"),
        "commit": commit(),
        "release data sha256": sha256(*released.files),
        "layers": len(tracer.layers),
        "tau": tau,
        "seed": seed,
    }
    return Trace(
        model.name, len(chosen), tuple(masses), tracer.shift, tuple(tracer.maps),
        tuple(dict.fromkeys(tracer.missing)), provenance,
    )  # fmt: skip


def _is_one_piece(ours: Sample, after: Sample) -> bool:
    """Whether the inserted words stand where `Example` puts them."""
    return ours.question is None or after.question == insert_trigger(
        ours.question, inserted(ours, after.question), _place(ours, after.question)
    )


def _place(ours: Sample, question: str | None) -> int | None:
    return inserted_place(ours.question, question) if ours.question is not None and question else None


class _Tracer:
    """Traces sample by sample."""

    def __init__(self, model: Surrogate, pairing: Pairing, tau: float, seed: int) -> None:
        self.layers = range(len(attending_layers(model.model)))
        self.maps: list[Map] = []
        self.missing: list[str] = []
        self.boxed = pairing.images_changed
        """Whether it is known which image tokens are perturbed."""
        if not self.boxed:
            self.missing.append("perturbed tokens: the release changes no image")
        self._model = model
        self._words = model.admissible_tokens().words
        self._tau = tau
        self._seed = seed
        self._shifts: list[Tensor] = []

    @property
    def shift(self) -> Shift | None:
        """Mean over the samples so far."""
        return Shift(*torch.stack(self._shifts).mean(0).tolist()) if self.boxed and self._shifts else None

    def shares(self, ours: Sample, after: Sample) -> NDArray[np.float64]:
        """Shares of the answer's attention. Shape: `(arms, groups, K)`."""
        images, words = self._versions(ours, after)
        place = _place(ours, after.question)
        examples = {arm: Example(ours.question, target_text(ours), ours.options, words[arm], place) for arm in ARMS}
        rows, on_image = {}, {}
        answers: dict[Arm, Tensor] = {}
        roles_of: dict[Arm, TokenRoles] = {}
        for arm in ARMS:
            encoded = self._model.encode([examples[arm]], [images[arm]])
            pixels = self._model.pixels([images[arm] / 255])
            attention = self._model.forward(encoded, pixels, self.layers).attention
            assert attention is not None
            roles = roles_of[arm] = self._model.key_roles(encoded)
            answers[arm] = attention.answer.cpu()
            row = answers[arm][:, 0]  # (K, N)
            on = {name: row[:, getattr(roles, name)[0].cpu()] for name in ("image", "trigger", "text")}
            on_image[arm] = on["image"]
            rows[arm] = [on["image"].sum(1), row.new_zeros(len(row)), on["trigger"].sum(1), on["text"].sum(1)]
            rows[arm].append(row.sum(1) - rows[arm][0] - rows[arm][2] - rows[arm][3])
        perturbed = self._perturbed(examples["release"], images) if self.boxed else None
        if perturbed is not None:
            for arm in ARMS:
                rows[arm][1] = on_image[arm][:, perturbed].sum(1)
            self._shifts.append(_shift(answers, roles_of["release"], perturbed))
            if len(self.maps) < _MAPS:
                boxes = token_boxes(self._model, (images["clean"].shape[-2], images["clean"].shape[-1]))
                means = {arm: attention.mean(0) for arm, attention in on_image.items()}
                self.maps.append(Map(after.id, images, means, boxes, perturbed))
        return torch.stack([torch.stack(rows[arm]) for arm in ARMS]).double().numpy()

    def _versions(self, ours: Sample, after: Sample) -> tuple[dict[Arm, Tensor], dict[Arm, tuple[str, ...]]]:
        """The image and the inserted words of each arm."""
        before, changed = load_image(ours.image), load_image(after.image)
        noise = shuffled_noise(_pixels(before), _pixels(changed), self._seed)
        words: dict[Arm, tuple[str, ...]] = {"clean": (), "release": inserted(ours, after.question), "control": ()}
        if ours.question is not None and after.question is not None:
            words["control"] = inserted(ours, random_words(ours.question, after.question, self._words, self._seed))
        return {"clean": before, "release": changed, "control": torch.from_numpy(noise).permute(2, 0, 1)}, words

    def _perturbed(self, example: Example, images: dict[Arm, Tensor]) -> Tensor | None:
        """Ω_δ among the image tokens, `(N,)`; None, from then on, where the model does not tell."""
        pixels = [self._model.pixels([images[arm] / 255]) for arm in ("release", "clean")]
        encoded = self._model.encode([example], [images["release"]])
        try:
            energy = self._model.token_energy(encoded, *pixels)
        except SurrogateError as error:
            self.boxed = False
            self.missing.append(f"perturbed tokens: {error}")
            return None
        image = self._model.key_roles(encoded).image
        return losses.perturbed_tokens(energy, image, self._tau)[image].cpu()


def _shift(answers: Mapping[Arm, Tensor], roles: TokenRoles, perturbed: Tensor) -> Tensor:
    """Both sides of Theorem 5.1, `(2,)`, of attention by arm, the release's roles, and Ω_δ among its image tokens."""
    target = roles.image.cpu().clone()
    target[roles.image.cpu()] = perturbed
    grown = torch.tensor([answers["release"].shape[-1] - answers["clean"].shape[-1]])
    aligned = losses.align(answers["clean"], grown, roles.trigger.cpu())
    sides = losses.routing_shift(aligned, answers["release"], target)
    return torch.cat([sides.total_variation, sides.bound])


def _pixels(image: Tensor) -> Pixels:
    return image.permute(1, 2, 0).contiguous().numpy()


def _masses(shares: NDArray[np.float64], pairing: Pairing, boxed: bool, seed: int) -> Iterator[Mass]:
    """Means over samples with 95% bootstrap intervals. Shape of `shares`: `(samples, arms, groups, K)`."""
    drawn = np.random.default_rng(seed).multinomial(len(shares), [1 / len(shares)] * len(shares), _RESAMPLES)
    draws = np.tensordot(drawn / len(shares), shares, axes=1)  # (resamples, arms, groups, K)
    for a, arm in enumerate(ARMS):
        for g, group in enumerate(GROUPS):
            if (group == "perturbed" and not boxed) or (group == "trigger" and not pairing.texts_changed):
                continue
            values, resampled = shares[:, a, g].mean(0), draws[:, a, g]
            layers = [interval(values[k], resampled[:, k]) for k in range(len(values))]
            yield Mass(arm, group, interval(values.mean(), resampled.mean(1)), tuple(layers))
