"""The tap: attention rows of a few layers, without attention matrices (Eq. 24).

The attention function `mmguard_tap` returns what SDPA returns, untouched. Only inside `tap(...)`, and only in
the layers asked for, it also computes `softmax(q[rows] kᵀ)` for the query rows asked for: `|S| × L` numbers
instead of `heads × L × L`, with the graph needed for gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mmguard.errors import SurrogateError

NAME = "mmguard_tap"
IMPLEMENTATION = {"text_config": NAME, "vision_config": "sdpa", "": NAME}
"""`attn_implementation` of a surrogate: the tap in the decoder, SDPA in the vision tower."""

Layer = tuple[nn.Module, ...]
"""The attention modules of one decoder layer: the cross-attention before the self-attention, where there are both."""


@contextmanager
def tap(
    model: nn.Module,
    layers: Sequence[int],
    groups: Mapping[str, Tensor],
    attending: Sequence[Layer] | None = None,
) -> Iterator[dict[str, Tensor]]:
    """Records attention in one forward pass of a model loaded with `attn_implementation=IMPLEMENTATION`.

    Args:
        model: the model, with or without LoRA layers. Only its text decoder is tapped.
        layers: the decoder layers K, as `attention_modules` numbers them.
        groups: by name, which query rows S belong to the group: bool `(B, L)`, with L the length of the
            queries in this forward pass (with a KV cache: of the new tokens only).
        attending: as of `attention_modules`.

    Yields:
        An empty dict. The forward pass fills in, for each group, the attention Ā_k(S) `(K, B, L_keys)`,
        float32: averaged over heads and over the rows of the group, a distribution over keys (Eq. 24). Zeros
        for a sample whose group is empty. The keys of cross-attention stand before those of the text.

    Raises:
        SurrogateError: a tap is active already, the model has no such layer, or a layer never called the tap.
    """
    if _ACTIVE.get() is not None:
        raise SurrogateError("an attention tap is active already: close it before opening another one")
    session = _Session(attention_modules(model, layers, attending), dict(groups))
    token = _ACTIVE.set(session)
    try:
        yield session.result
    finally:
        _ACTIVE.reset(token)
    session.check()


@dataclass
class _Session:
    layers: list[Layer]
    """K."""
    groups: dict[str, Tensor]
    rows: dict[nn.Module, dict[str, Tensor]] = field(default_factory=dict)
    result: dict[str, Tensor] = field(default_factory=dict)

    @cached_property
    def tapped(self) -> set[nn.Module]:
        return {module for layer in self.layers for module in layer}

    def record(self, module: nn.Module, attention: dict[str, Tensor]) -> None:
        if module in self.rows:
            raise SurrogateError("an attention tap serves one forward pass: open another one for the next")
        self.rows[module] = attention
        if len(self.rows) < len(self.tapped):
            return
        for group in self.groups:
            # As heads of one attention over all keys: each sees its own and puts nothing on the others.
            joined = [torch.cat([self.rows[part][group] for part in layer], -1) / len(layer) for layer in self.layers]
            self.result[group] = torch.stack(joined)

    def check(self) -> None:
        if len(self.rows) < len(self.tapped):
            raise SurrogateError(
                "no forward pass went through every layer asked for while the tap was open: "
                "run the model inside it, once"
            )


_ACTIVE: ContextVar[_Session | None] = ContextVar("mmguard_tap", default=None)


def attention_modules(model: nn.Module, layers: Sequence[int], attending: Sequence[Layer] | None = None) -> list[Layer]:
    """The attention modules of some decoder layers.

    Args:
        model: the model, with or without LoRA layers.
        layers: by number from 0 among the layers that attend (layers of linear attention do not count); negative
            numbers count from the last. Where a model reads the image by cross-attention (Mllama), its n-th layer of
            cross-attention and its n-th layer of self-attention count as one layer, which sees image and text.
        attending: the model's `attending_layers`, where they are known: to find them takes a walk through all modules.

    Raises:
        SurrogateError: the model has no such layer.
    """
    found = attending_layers(model) if attending is None else attending
    missing = [layer for layer in layers if not -len(found) <= layer < len(found)]
    if missing or not layers:
        asked = ", ".join(map(str, missing)) or "(none given)"
        there = f"layers 0 to {len(found) - 1}" if found else "none: load the model with load_surrogate"
        raise SurrogateError(f"{type(model).__name__}: no attention to read in layer {asked}; it has {there}")
    return [found[layer] for layer in layers]


def attending_layers(model: nn.Module) -> list[Layer]:
    """All decoder layers that attend, as `attention_modules` numbers them; none if the model has no tap."""
    # Attention modules are known by what calling the interface takes: layer number, configuration, causality.
    by_number: dict[int, nn.Module] = {}
    for module in model.modules():
        number = getattr(module, "layer_idx", None)
        attends = hasattr(module, "is_causal") or hasattr(module, "num_key_value_groups")
        tapped = getattr(getattr(module, "config", None), "_attn_implementation", None) == NAME
        if isinstance(number, int) and attends and tapped:
            by_number[number] = module
    crossing: list[nn.Module] = []
    own: list[nn.Module] = []
    for number in sorted(by_number):
        module = by_number[number]
        (crossing if number in getattr(module.config, "cross_attention_layers", ()) else own).append(module)
    return list(zip(crossing, own, strict=False)) if crossing else [(module,) for module in own]


def _tapped_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """SDPA, with a look at the rows that an active tap asks for. Shapes: `(B, H, q, d)` and `(B, H_kv, k,
    d)`."""
    session = _ACTIVE.get()
    if session is not None and module in session.tapped:
        causal = kwargs.get("is_causal")
        causal = getattr(module, "is_causal", True) if causal is None else causal
        session.record(module, _rows(query, key, attention_mask, kwargs.get("scaling"), causal, session.groups))
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


def _rows(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    causal: bool,
    groups: dict[str, Tensor],
) -> dict[str, Tensor]:
    """Attention of each group of rows, averaged over heads and rows: `(B, k)` each, float32."""
    batch, heads, length, width = query.shape
    keys, kv_heads = key.shape[2], key.shape[1]
    for name, group in groups.items():
        if group.shape != (batch, length):
            raise SurrogateError(f"tap: rows of {name!r} are {tuple(group.shape)}, the queries {(batch, length)}")
    rows = _pack(torch.stack(list(groups.values())).any(0)).to(query.device)  # (B, R): every row of any group
    picked = query.gather(2, rows[:, None, :, None].expand(-1, heads, -1, width)).float()
    # Heads that share a key head stand together: (B, H_kv, H / H_kv · R, d) against (B, H_kv, k, d).
    picked = picked.reshape(batch, kv_heads, -1, width)
    scores = picked @ key.float().transpose(2, 3) * (width**-0.5 if scaling is None else scaling)
    scores = scores.reshape(batch, heads, -1, keys) + _bias(mask, rows, length, keys, causal)
    attention = scores.softmax(-1).mean(1)  # (B, R, k)
    result = {}
    for name, group in groups.items():
        weight = group.to(query.device).gather(1, rows).float()
        weight = weight / weight.sum(1, keepdim=True).clamp(min=1)
        result[name] = torch.einsum("br,brk->bk", weight, attention)
    return result


def _pack(chosen: Tensor) -> Tensor:
    """Positions of the true entries of `(B, L)`, in order, filled up with others to the longest list: `(B,
    R)`."""
    count = max(int(chosen.sum(1).max()), 1)
    return chosen.int().argsort(dim=1, descending=True, stable=True)[:, :count]


def _bias(mask: Tensor | None, rows: Tensor, length: int, keys: int, causal: bool) -> Tensor:
    """What to add to the scores of `rows`: broadcastable to `(B, H, R, k)`; the least float where a key is
    hidden."""
    lowest = torch.finfo(torch.float32).min
    if mask is None:
        # As SDPA reads it: causality from the upper left, and none for a single query.
        if not causal or length == 1:
            return rows.new_zeros((1, 1, 1, 1), dtype=torch.float32)
        seen = torch.arange(keys, device=rows.device) <= rows[:, None, :, None]
        return torch.zeros_like(seen, dtype=torch.float32).masked_fill(~seen, lowest)
    mask = mask.expand(rows.shape[0], -1, length, keys)
    mask = mask.gather(2, rows[:, None, :, None].expand(-1, mask.shape[1], -1, keys))
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=torch.float32).masked_fill(~mask, lowest)
    return mask.float().clamp(min=lowest)


# What the interfaces are for: a name that `attn_implementation` may then say. It changes no model by itself.
AttentionInterface.register(NAME, _tapped_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
