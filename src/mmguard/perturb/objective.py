"""The protection loss of one surrogate, ℓ_joint (Eq. 30), for a batch of samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmguard import losses
from mmguard.config import ProtectConfig
from mmguard.lvlm.candidates import Candidates
from mmguard.lvlm.prompt import Encoded, Example
from mmguard.lvlm.surrogate import Attention, Forward, Surrogate
from mmguard.perturb.trigger import Trigger


@dataclass(frozen=True)
class Reference:
    """What a batch is like before protection, as one surrogate in its present state sees it."""

    pixels: dict[str, Tensor]
    """Preprocessed originals."""
    answer_rows: Tensor | None
    """Ā_k^clean(Ω_y), `(K, B, L_clean)`; CRS only."""
    length: Tensor | None
    """Tokens of each clean sequence, `(B,)`; CRS only."""


@dataclass(frozen=True)
class Evaluation:
    """ℓ_joint of a batch, and what it was computed from."""

    loss: Tensor
    """`(B,)`."""
    encoded: Encoded
    forward: Forward
    perturbed: Tensor | None
    """Ω_δ, bool `(B, L)`; BPH only."""


class Objective:
    """ℓ_joint of one surrogate under one configuration.

    Args:
        surrogate: the model; whatever adapter it carries at the time of a call takes part.
        config: variant, weights, layers.
    """

    def __init__(self, surrogate: Surrogate, config: ProtectConfig) -> None:
        self.surrogate = surrogate
        self._config = config
        self._layers = range(config.bind_layers) if config.binding else ()

    @torch.no_grad()
    def reference(self, examples: Sequence[Example], images: Sequence[Tensor]) -> Reference:
        """The clean side of a batch, computed once a round: the originals do not move.

        Args:
            examples: with or without triggers; they are left out.
            images: originals, `[0,1]` float, each `(3, H, W)`.
        """
        pixels = self.surrogate.pixels(images)
        if self._config.binding != "crs":
            return Reference(pixels, None, None)
        encoded = self.surrogate.encode([replace(example, trigger=()) for example in examples], images)
        forward = self.surrogate.forward(encoded, pixels, self._layers)
        assert forward.attention is not None
        return Reference(pixels, forward.attention.answer, encoded.length)

    def __call__(self, examples: Sequence[Example], images: Sequence[Tensor], reference: Reference) -> Evaluation:
        """ℓ_joint of a batch, with the graph to images and embeddings where gradients are enabled.

        Args:
            examples: with their triggers.
            images: protected, `[0,1]` float, each `(3, H, W)`.
            reference: of the same samples in the same order.
        """
        encoded = self.surrogate.encode(examples, images)
        pixels = self.surrogate.pixels(images)
        forward = self.surrogate.forward(encoded, pixels, self._layers)
        perturbed = self._perturbed(encoded, pixels, reference)
        clean = None
        if reference.answer_rows is not None and reference.length is not None:
            clean = reference.answer_rows, reference.length
        bind = _binding(encoded, forward.attention, perturbed, clean)
        return Evaluation(_joint(self._config, forward.nll, bind), encoded, forward, perturbed)

    def of_trigger(
        self, example: Example, image: Tensor, evaluation: Evaluation, reference: Reference, row: int
    ) -> TriggerLoss:
        """ℓ_joint of one sample as a function of its trigger: the exact side of the trigger search (Eq. 20).

        Args:
            example: with its present trigger.
            image: protected, `(3, H, W)`.
            evaluation: of the batch that the sample is in.
            reference: of that batch.
            row: the sample's place in the batch.
        """
        perturbed = None
        if evaluation.perturbed is not None:
            # The image tokens and their energies are the same under every trigger, wherever they stand.
            perturbed = evaluation.perturbed[row][evaluation.encoded.roles.image[row]]
        clean = None
        if reference.answer_rows is not None and reference.length is not None:
            clean = reference.answer_rows[:, row : row + 1], reference.length[row : row + 1]
        return TriggerLoss(Candidates(self.surrogate, example, image, self._layers), self._config, perturbed, clean)

    def _perturbed(self, encoded: Encoded, pixels: dict[str, Tensor], reference: Reference) -> Tensor | None:
        """Ω_δ, which only BPH needs."""
        if self._config.binding != "bph":
            return None
        energy = self.surrogate.token_energy(encoded, pixels, reference.pixels)
        return losses.perturbed_tokens(energy, encoded.roles.image, self._config.tau)


class TriggerLoss:
    """ℓ_joint of one sample under many triggers, and what it cannot fall below.

    Args:
        candidates: the sample.
        config: weights.
        perturbed: which of the image tokens are Ω_δ, `(|Ω_x|,)`; BPH only.
        clean: Ā_k^clean(Ω_y) and the length of the clean sequence, `(K, 1, L_clean)` and `(1,)`; CRS only.
    """

    def __init__(
        self,
        candidates: Candidates,
        config: ProtectConfig,
        perturbed: Tensor | None,
        clean: tuple[Tensor, Tensor] | None,
    ) -> None:
        self._candidates, self._config = candidates, config
        self._mask, self._clean = perturbed, clean

    def __call__(self, triggers: Sequence[Trigger]) -> Tensor:
        """The exact losses, `(C,)`."""
        encoded = self._candidates.encode(triggers)
        forward = self._candidates.forward(encoded)
        bind = _binding(encoded, forward.attention, *self._sides(encoded))
        return _joint(self._config, forward.nll, bind)

    def bound(self, triggers: Sequence[Trigger]) -> Tensor | None:
        """Numbers that the exact losses are not below, `(C,)`, from the first |K| layers alone.

        ℓ_train is not negative, so ℓ_joint ≥ λ_bind ℓ_bind. None where nothing is known so cheaply: without binding,
        and in the -Max variants, whose -ℓ_train has no bound.
        """
        if self._config.binding is None or self._config.maximises:
            return None
        encoded = self._candidates.encode(triggers)
        attention = self._candidates.attention(encoded)
        if attention is None:
            return None
        bind = _binding(encoded, attention, *self._sides(encoded))
        assert bind is not None
        return self._config.lambda_bind * bind

    def _sides(self, encoded: Encoded) -> tuple[Tensor | None, tuple[Tensor, Tensor] | None]:
        """Ω_δ and the clean side, for every candidate."""
        many = len(encoded.labels)
        perturbed = clean = None
        if self._mask is not None:
            perturbed = torch.zeros_like(encoded.roles.image)
            perturbed[encoded.roles.image] = self._mask.repeat(many)
        if self._clean is not None:
            rows, length = self._clean
            clean = rows.expand(-1, many, -1), length.expand(many)
        return perturbed, clean


def _binding(
    encoded: Encoded, attention: Attention | None, perturbed: Tensor | None, clean: tuple[Tensor, Tensor] | None
) -> Tensor | None:
    """ℓ_bind of each sample, `(B,)`: BPH where Ω_δ is given, CRS where the clean side is."""
    if attention is None:
        return None
    trigger = encoded.roles.trigger
    if perturbed is not None:
        return losses.bridge_path_hijack(attention.trigger, attention.answer, trigger, perturbed)
    assert clean is not None
    aligned = losses.align(*clean, trigger, encoded.length)
    return losses.contrastive_routing_shift(aligned, attention.answer)


def _joint(config: ProtectConfig, nll: Tensor, bind: Tensor | None) -> Tensor:
    return losses.joint(nll, bind, config.lambda_train, config.lambda_bind, config.maximises)
