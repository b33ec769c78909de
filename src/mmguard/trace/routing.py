"""Where attention goes on a release, against the original: the mechanism behind BPH and CRS, as a diagnostic."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from mmguard import losses
from mmguard.data.images import load_image
from mmguard.data.readers import read_dataset
from mmguard.data.tasks import target_text
from mmguard.data.text import inserted_place, inserted_words
from mmguard.errors import DataError
from mmguard.lvlm.prompt import Example
from mmguard.lvlm.surrogate import Surrogate, load_surrogate
from mmguard.types import Sample


@dataclass(frozen=True)
class RoutingTrace:
    """Means over samples and layers; masses are shares of the answer's attention, from 0 to 1."""

    samples: int
    mass_on_trigger: float
    """Attention of answer tokens on the inserted words, protected sequence."""
    mass_on_perturbed: float
    """Attention of answer tokens on Ω_δ, protected sequence."""
    clean_mass_on_perturbed: float
    """The same tokens on the original: what Theorem 5.1 takes to be 0."""
    total_variation: float
    """Left side of Theorem 5.1."""
    bound: float
    """Right side of Theorem 5.1, 1 − √(η/2); it says nothing where it is negative, and is 0 for an
    image that was not changed."""


@torch.no_grad()
def trace_routing(
    release: str | Path,
    original: str | Path,
    surrogate: str | Surrogate,
    *,
    layers: int = 2,
    tau: float = 0.1,
    limit: int = 64,
    device: str = "auto",
) -> RoutingTrace:
    """Follows the attention of answer tokens (Eq. 24) and computes both sides of Theorem 5.1 with R = Ω_δ.

    Args:
        release: the released folder.
        original: the dataset that it was made from.
        surrogate: whose attention.
        layers: the first so many decoder layers.
        tau: share of the image tokens that count as perturbed.
        limit: look at the first so many images.
        device: where a surrogate given by name runs.

    Raises:
        DataError: release and original have no sample in common.
    """
    model = surrogate if isinstance(surrogate, Surrogate) else load_surrogate(surrogate, device)
    ours = {sample.id: sample for sample in read_dataset(original).samples}
    pairs = [(ours[s.id], s) for s in read_dataset(release, limit=limit).samples if s.id in ours]
    if not pairs:
        raise DataError(f"{release}: shares no sample id with {original}: give the dataset that it was made from")
    rows = [_trace(model, before, after, range(layers), tau) for before, after in pairs]
    return RoutingTrace(len(rows), *torch.stack(rows).mean(0).tolist())


def _trace(model: Surrogate, before: Sample, after: Sample, layers: range, tau: float) -> torch.Tensor:
    """The five numbers of one sample, `(5,)`."""
    words = inserted_words(before.question, after.question) if before.question and after.question else ()
    after_words = inserted_place(before.question, after.question) if before.question and after.question else None
    clean = Example(before.question, target_text(before), before.options)
    protected = Example(before.question, target_text(before), before.options, words or (), after_words)
    old, new = (load_image(sample.image) / 255 for sample in (before, after))
    old_pixels, new_pixels = model.pixels([old]), model.pixels([new])
    old_encoded, encoded = model.encode([clean], [old]), model.encode([protected], [new])
    old_rows = model.forward(old_encoded, old_pixels, layers).attention
    new_rows = model.forward(encoded, new_pixels, layers).attention
    assert old_rows is not None
    assert new_rows is not None
    roles = model.key_roles(encoded)
    aligned = losses.align(old_rows.answer, encoded.length - old_encoded.length, roles.trigger)
    energy = model.token_energy(encoded, new_pixels, old_pixels)
    perturbed = losses.perturbed_tokens(energy, roles.image, tau)
    shift = losses.routing_shift(aligned, new_rows.answer, perturbed)
    on_trigger = (new_rows.answer * roles.trigger).sum(-1).mean(0)
    on_perturbed = (new_rows.answer * perturbed).sum(-1).mean(0)
    return torch.cat([on_trigger, on_perturbed, shift.clean_mass, shift.total_variation, shift.bound])
