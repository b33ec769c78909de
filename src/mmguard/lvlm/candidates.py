"""One sample under many triggers: the exact side of the trigger search (Eq. 20), at the price of what differs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from mmguard.lvlm.prefix import Prefix
from mmguard.lvlm.prompt import Encoded, Example
from mmguard.lvlm.surrogate import Attention, Forward, Surrogate


class Candidates:
    """Losses and attention of one sample under many triggers, as `Surrogate.forward` gives them for the batch.

    The image and the text before the trigger run once, at the first call, whatever number of slots and candidates
    follows; their keys and values then serve every batch, and only the tokens behind them are run. The surrogate must
    stay in the state that it has at the first call.

    Args:
        surrogate: the model.
        example: with its present trigger, which must not be empty.
        image: `(3, H, W)`.
        layers: decoder layers K whose attention is wanted.
        chunk: candidates that run together. Does not change the result.
    """

    def __init__(
        self, surrogate: Surrogate, example: Example, image: Tensor, layers: Sequence[int] = (), chunk: int = 64
    ) -> None:
        self._surrogate, self._image, self._layers, self._chunk = surrogate, image, layers, chunk
        self._texts = surrogate.reworded(example, image)

    @cached_property
    def _prefix(self) -> Prefix | None:
        pixels = self._surrogate.pixels([self._image.detach()])
        return self._surrogate.shared_prefix(self._texts.base.to(self._surrogate.device), pixels)

    def encode(self, triggers: Sequence[Sequence[str]]) -> Encoded:
        """The sample with each of the triggers, none of which may be empty."""
        return self._texts.encode(triggers).to(self._surrogate.device)

    @torch.no_grad()
    def forward(self, encoded: Encoded) -> Forward:
        """What a forward pass of the batch yields but for the embeddings, without gradients."""
        return _concatenate([self._forward(part) for part in self._chunks(encoded)])

    @torch.no_grad()
    def attention(self, encoded: Encoded) -> Attention | None:
        """The attention of `forward` alone, without running the layers behind K; None where that saves nothing."""
        prefix = self._shared_by(encoded)
        if prefix is None or not self._layers:
            return None
        parts = [self._surrogate.attention_from(prefix, part, self._layers) for part in self._chunks(encoded)]
        return Attention(torch.cat([a.trigger for a in parts], 1), torch.cat([a.answer for a in parts], 1))

    def _chunks(self, encoded: Encoded) -> list[Encoded]:
        return [encoded[begin : begin + self._chunk] for begin in range(0, len(encoded.labels), self._chunk)]

    def _shared_by(self, encoded: Encoded) -> Prefix | None:
        prefix = self._prefix
        begins = prefix is not None and bool(prefix.begins(encoded.inputs["input_ids"]).all())
        return prefix if begins else None

    def _forward(self, part: Encoded) -> Forward:
        if (prefix := self._shared_by(part)) is not None:
            return self._surrogate.forward_from(prefix, part, self._layers)
        pixels = self._surrogate.pixels([self._image.detach()] * len(part.labels))
        return self._surrogate.forward(part, pixels, self._layers)


def _concatenate(parts: Sequence[Forward]) -> Forward:
    attention = None
    if parts[0].attention is not None:
        kept = [part.attention for part in parts if part.attention is not None]
        attention = Attention(torch.cat([a.trigger for a in kept], 1), torch.cat([a.answer for a in kept], 1))
    return Forward(torch.cat([part.nll for part in parts]), torch.cat([part.embeddings for part in parts]), attention)
