"""Keys and values of a text's beginning, lent to every text that begins so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


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
        lent.layers = [_Lent(layer, batch) for layer in self.cache.layers]
        return lent


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
