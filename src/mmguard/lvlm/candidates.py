"""One sample under many triggers: the exact side of the trigger search (Eq. 20), at the price of what differs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial

import torch
from torch import Tensor

from mmguard.lvlm.prefix import Prefix
from mmguard.lvlm.prompt import Encoded, Example
from mmguard.lvlm.surrogate import Attention, Forward, Surrogate
from mmguard.runtime.memory import is_out_of_memory, release_memory


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
    """

    def __init__(self, surrogate: Surrogate, example: Example, image: Tensor, layers: Sequence[int] = ()) -> None:
        self._surrogate, self._image, self._layers = surrogate, image, layers
        self._texts = surrogate.reworded(example, image)

    @cached_property
    def _prefix(self) -> Prefix | None:
        pixels = self._surrogate.pixels([self._image.detach()])
        return self._surrogate.shared_prefix(self._texts.base.to(self._surrogate.device), pixels)

    @torch.no_grad()
    def __call__(self, triggers: Sequence[Sequence[str]]) -> tuple[Encoded, Forward]:
        """The batch, and what a forward pass of it yields but for the embeddings, without gradients.

        Args:
            triggers: none of them empty.
        """
        encoded = self._texts.encode(triggers).to(self._surrogate.device)
        prefix = self._prefix
        run: Callable[[Encoded], Forward] = self._in_full
        if prefix is not None and prefix.begins(encoded.inputs["input_ids"]):
            run = partial(self._surrogate.forward_from, prefix, layers=self._layers)
        while True:
            parts = -(-len(triggers) // self._surrogate.candidates_at_once)
            size = -(-len(triggers) // parts)  # even parts: 65 candidates are not 64 and one
            try:
                return encoded, _concatenate([run(encoded[k : k + size]) for k in range(0, len(triggers), size)])
            except (RuntimeError, MemoryError) as error:
                if size == 1 or not is_out_of_memory(error):
                    raise
            self._surrogate.candidates_at_once = -(-size // 2)
            release_memory()

    def _in_full(self, part: Encoded) -> Forward:
        pixels = self._surrogate.pixels([self._image.detach()] * len(part.labels))
        return self._surrogate.forward(part, pixels, self._layers)


def _concatenate(parts: Sequence[Forward]) -> Forward:
    attention = None
    if parts[0].attention is not None:
        kept = [part.attention for part in parts if part.attention is not None]
        attention = Attention(torch.cat([a.trigger for a in kept], 1), torch.cat([a.answer for a in kept], 1))
    return Forward(torch.cat([part.nll for part in parts]), torch.cat([part.embeddings for part in parts]), attention)
