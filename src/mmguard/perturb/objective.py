"""The protection loss of one surrogate, ℓ_joint (Eq. 30), for a batch of samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmguard import losses
from mmguard.config import ProtectConfig
from mmguard.lvlm.prompt import Encoded, Example
from mmguard.lvlm.surrogate import Forward, Surrogate
from mmguard.types import TokenRoles


@dataclass(frozen=True)
class Reference:
    """What a batch is like before protection, as one surrogate in its present state sees it."""

    pixels: dict[str, Tensor]
    """Preprocessed originals."""
    answer_rows: Tensor | None
    """Ā_k^clean(Ω_y), `(K, B, L_clean)`; CRS only."""
    length: Tensor | None
    """Tokens of each clean sequence, `(B,)`; CRS only."""


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

    def __call__(
        self, examples: Sequence[Example], images: Sequence[Tensor], reference: Reference
    ) -> tuple[Tensor, Encoded, Forward]:
        """ℓ_joint of each sample, `(B,)`, with the graph to images and embeddings where gradients are enabled.

        Args:
            examples: with their triggers.
            images: protected, `[0,1]` float, each `(3, H, W)`.
            reference: of the same samples in the same order.
        """
        encoded = self.surrogate.encode(examples, images)
        pixels = self.surrogate.pixels(images)
        forward = self.surrogate.forward(encoded, pixels, self._layers)
        perturbed = self._perturbed(encoded, pixels, reference)
        return self._joint(encoded, forward, perturbed, reference), encoded, forward

    @torch.no_grad()
    def candidates(
        self, examples: Sequence[Example], image: Tensor, pixels: dict[str, Tensor], reference: Reference
    ) -> Tensor:
        """ℓ_joint of many texts for one image, `(C,)`: the exact side of the trigger search (Eq. 20).

        Args:
            examples: the same sample with different triggers.
            image: protected, `(3, H, W)`.
            pixels: its preprocessed form, `Surrogate.pixels([image])`.
            reference: of this one sample.
        """
        encoded, forward = self.surrogate.forward_candidates(examples, image, self._layers, pixels)
        perturbed = None
        if self._config.binding == "bph":
            # The image tokens are the same in every candidate: one sample tells which of them are perturbed.
            roles = TokenRoles(**{name: role[:1] for name, role in vars(encoded.roles).items()})
            one = self._perturbed(replace(encoded, roles=roles), pixels, reference)
            assert one is not None
            perturbed = torch.zeros_like(encoded.roles.image)
            perturbed[encoded.roles.image] = one[roles.image].repeat(len(examples))
        repeated = reference
        if reference.answer_rows is not None and reference.length is not None:
            rows = reference.answer_rows.expand(-1, len(examples), -1)
            repeated = replace(reference, answer_rows=rows, length=reference.length.expand(len(examples)))
        return self._joint(encoded, forward, perturbed, repeated)

    def _perturbed(self, encoded: Encoded, pixels: dict[str, Tensor], reference: Reference) -> Tensor | None:
        """Ω_δ, which only BPH needs."""
        if self._config.binding != "bph":
            return None
        energy = self.surrogate.token_energy(encoded, pixels, reference.pixels)
        return losses.perturbed_tokens(energy, encoded.roles.image, self._config.tau)

    def _joint(self, encoded: Encoded, forward: Forward, perturbed: Tensor | None, reference: Reference) -> Tensor:
        bind = None
        if forward.attention is not None:
            trigger, answer = forward.attention.trigger, forward.attention.answer
            if perturbed is not None:
                bind = losses.bridge_path_hijack(trigger, answer, encoded.roles.trigger, perturbed)
            elif reference.answer_rows is not None and reference.length is not None:
                clean = losses.align(reference.answer_rows, reference.length, encoded.roles.trigger, encoded.length)
                bind = losses.contrastive_routing_shift(clean, answer)
        config = self._config
        return losses.joint(forward.nll, bind, config.lambda_train, config.lambda_bind, config.maximises)
