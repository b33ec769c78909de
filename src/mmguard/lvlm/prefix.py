"""Keys and values of a text's beginning (of linear attention: its state), lent to every text that begins so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, LinearAttentionLayer


@dataclass(frozen=True)
class Prefix:
    """The first tokens of a sequence, and what a model's layers made of them."""

    ids: Tensor
    """`(n,)`."""
    cache: DynamicCache
    """Of one sample."""
    state: list[tuple[Any, Any]]
    """Modules that remember in `rope_deltas` where a text goes on behind its image, and what they remember."""

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.ids)

    def begins(self, ids: Tensor) -> bool:
        """Whether all of the sequences `(B, L)` begin with the prefix."""
        return bool((ids[:, : self.length] == self.ids).all())

    def lent(self, batch: int) -> DynamicCache:
        """The cache for one forward pass of a batch, which does not change it."""
        lent = DynamicCache()
        lent.layers = [
            _LentState(layer, batch) if isinstance(layer, LinearAttentionLayer) else _Lent(layer, batch)
            for layer in self.cache.layers
        ]
        return lent


def empty_cache(kinds: Sequence[str]) -> DynamicCache:
    """A cache to run the beginning of a text with. It keeps every key: sliding windows are a matter of the mask alone.

    Args:
        kinds: `layer_types` of the text decoder's configuration; empty if it has none.
    """
    cache = DynamicCache()
    cache.layers = [LinearAttentionLayer() if kind == "linear_attention" else DynamicLayer() for kind in kinds]
    return cache


class _Lent(DynamicLayer):
    """A layer's keys and values as one view a row; a new token's are handed on, not kept.

    So a batch costs the memory of one layer at a time, where a repeated cache would cost that of all.
    """

    def __init__(self, layer: Any, batch: int) -> None:
        super().__init__()
        if layer.is_initialized:
            self.lazy_initialization(layer.keys, layer.values)
            self.keys = layer.keys.expand(batch, -1, -1, -1)
            self.values = layer.values.expand(batch, -1, -1, -1)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        assert self.keys is not None
        assert self.values is not None
        return torch.cat([self.keys, key_states], -2), torch.cat([self.values, value_states], -2)


class _LentState(LinearAttentionLayer):
    """A layer's state as one view a row; what new tokens make of it is handed on, not kept."""

    def __init__(self, layer: Any, batch: int) -> None:
        super().__init__()
        self.conv_states[0] = layer.conv_states[0].expand(batch, -1, -1)
        self.recurrent_states[0] = layer.recurrent_states[0].expand(batch, -1, -1, -1)
        self.has_previous_state[0] = True

    def update_conv_state(self, conv_states: Tensor, *_: Any, **__: Any) -> Tensor:
        assert self.conv_states[0] is not None
        return torch.cat([self.conv_states[0], conv_states], -1)

    def update_recurrent_state(self, recurrent_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return recurrent_states
