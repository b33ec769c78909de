"""The protection loss of one surrogate, ℓ_joint (Eq. 30), for a batch of samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmguard import losses
from mmguard.config import ProtectConfig
from mmguard.lvlm.candidates import Candidates
from mmguard.lvlm.prompt import Encoded, Example
from mmguard.lvlm.surrogate import Forward, Surrogate
from mmguard.perturb.trigger import Trigger


@dataclass(frozen=True)
class Reference:
    """What a batch is like before protection, as one surrogate in its present state sees it."""

    pixels: dict[str, Tensor] | None
    """Preprocessed originals, on the CPU: those of a whole batch are kept at a time; BPH only."""
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
    """Ω_δ, bool `(B, N)` over the keys of `Surrogate.key_roles`; BPH only."""


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
        if self._config.binding is None:
            return Reference(None, None, None)
        pixels = self.surrogate.pixels(images)
        if self._config.binding == "bph":
            return Reference({key: value.cpu() for key, value in pixels.items()}, None, None)
        encoded = self.surrogate.encode([replace(example, trigger=()) for example in examples], images)
        forward = self.surrogate.forward(encoded, pixels, self._layers)
        assert forward.attention is not None
        return Reference(None, forward.attention.answer, encoded.length)

    def __call__(
        self,
        examples: Sequence[Example],
        images: Sequence[Tensor],
        reference: Reference,
        encoded: Encoded | None = None,
    ) -> Evaluation:
        """ℓ_joint of a batch, with the graph to images and embeddings where gradients are enabled.

        Args:
            examples: with their triggers.
            images: protected, `[0,1]` float, each `(3, H, W)`.
            reference: of the same samples in the same order.
            encoded: the examples, where the surrogate encoded them before, with images of the same sizes.
        """
        encoded = self.surrogate.encode(examples, images) if encoded is None else encoded
        pixels = self.surrogate.pixels(images)
        forward = self.surrogate.forward(encoded, pixels, self._layers)
        perturbed = self._perturbed(encoded, pixels, reference)
        loss = self._joint(encoded, forward, perturbed, reference.answer_rows, reference.length)
        return Evaluation(loss, encoded, forward, perturbed)

    def exact(
        self, example: Example, image: Tensor, evaluation: Evaluation, reference: Reference, row: int
    ) -> Callable[[Sequence[Trigger]], Tensor]:
        """ℓ_joint of one sample as a function of its trigger: the exact side of the trigger search (Eq. 20).

        Args:
            example: with its present trigger.
            image: protected, `(3, H, W)`.
            evaluation: of the batch that the sample is in.
            reference: of that batch.
            row: the sample's place in the batch.

        Returns:
            From triggers to their losses, `(C,)`.
        """
        candidates = Candidates(self.surrogate, example, image, self._layers)
        clean, length, perturbed = reference.answer_rows, reference.length, None
        if evaluation.perturbed is not None:
            # The image tokens and their energies are the same under every trigger, wherever they stand.
            perturbed = evaluation.perturbed[row][self.surrogate.key_roles(evaluation.encoded).image[row]]

        def losses_of(triggers: Sequence[Trigger]) -> Tensor:
            encoded, forward = candidates(triggers)
            many = len(triggers)
            marked = None
            if perturbed is not None:
                image = self.surrogate.key_roles(encoded).image
                marked = torch.zeros_like(image)
                marked[image] = perturbed.repeat(many)
            if clean is None or length is None:
                return self._joint(encoded, forward, marked, None, None)
            rows = clean[:, row : row + 1].expand(-1, many, -1)
            return self._joint(encoded, forward, marked, rows, length[row : row + 1].expand(many))

        return losses_of

    def _perturbed(self, encoded: Encoded, pixels: dict[str, Tensor], reference: Reference) -> Tensor | None:
        """Ω_δ, which only BPH needs."""
        if reference.pixels is None:
            return None
        originals = {key: value.to(self.surrogate.device) for key, value in reference.pixels.items()}
        energy = self.surrogate.token_energy(encoded, pixels, originals)
        return losses.perturbed_tokens(energy, self.surrogate.key_roles(encoded).image, self._config.tau)

    def _joint(
        self,
        encoded: Encoded,
        forward: Forward,
        perturbed: Tensor | None,
        clean_rows: Tensor | None,
        clean_length: Tensor | None,
    ) -> Tensor:
        bind = None
        if forward.attention is not None:
            trigger, answer = forward.attention.trigger, forward.attention.answer
            inserted = self.surrogate.key_roles(encoded).trigger
            if perturbed is not None:
                bind = losses.bridge_path_hijack(trigger, answer, inserted, perturbed)
            elif clean_rows is not None and clean_length is not None:
                clean = losses.align(clean_rows, encoded.length - clean_length, inserted)
                bind = losses.contrastive_routing_shift(clean, answer)
        config = self._config
        return losses.joint(forward.nll, bind, config.lambda_train, config.lambda_bind, config.maximises)
