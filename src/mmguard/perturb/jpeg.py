"""Perturbations that have to go through a JPEG encoder: seen as they survive it, and kept within the budget behind it.

The encoder rounds coefficients of whole blocks, so what is read back is not what was optimised, and may be beyond ε.
While it is optimised, the model therefore sees the decoded file, cut to the budget; what is released is corrected until
the decoded file is within ε by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, max_pool2d

from mmguard.data.carrier import Jpeg, jpeg_roundtrip, turned, unturned
from mmguard.perturb.budget import to_unit

_BLOCK = 16
"""Pixels that are encoded together, with colour at half resolution."""
_TILE = 16 * _BLOCK
"""What is worked on at a time: little enough for the processor's caches."""
_ROOMS = (1.0, 0.6)
"""Shares of a perturbation that are tried: at high quality less does more, since corrections spoil less of it."""
_CORRECTIONS = 40
"""Where this many do not suffice, perturbations are shrunk."""
_SHRINKINGS, _SHRINK = 10, 0.7
"""After all of them nothing is left of 8 levels: 8 · 0.7¹⁰ < 0.5."""
_TO_COLOUR = ((-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
"""Cb and Cr of red, green and blue, as JFIF has them."""
_FROM_COLOUR = ((0.0, 1.402), (-0.344136, -0.714136), (1.772, 0.0))
"""What Cb and Cr add to red, green and blue."""


def seen(original: Tensor, image: Tensor, jpeg: Jpeg, eps: int) -> Tensor:
    """What a reader of the JPEG file sees, as far as it is within the budget; differentiable in the image.

    The value is that of the real encoder and decoder. The gradient goes straight through its rounding, back through
    its subsampling of colour, and is zero where the budget is exceeded. (Smooth rounding, as in kornia's differentiable
    JPEG, did no better on the whole: its gradient vanishes at whole coefficients, where every JPEG original lies.)

    Args:
        original: uint8 `(3, H, W)`.
        image: `[0,1]` float `(3, H, W)`, on the uint8 grid, upright.
        jpeg: settings.
        eps: ε_x, of 255.
    """
    view: Tensor = _Seen.apply(image, original, jpeg, eps)
    return view


class _Seen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, original: Tensor, jpeg: Jpeg, eps: int) -> Tensor:
        base = original.cpu().to(torch.int16)
        change = jpeg_roundtrip((image * 255).round().to(torch.uint8).cpu(), jpeg).to(torch.int16) - base
        cut = change.clamp(-eps, eps)
        ctx.jpeg = jpeg
        ctx.save_for_backward((cut == change).to(image.device))
        return to_unit(base + cut).to(image.device)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (inside,) = ctx.saved_tensors
        return _through_subsampling(gradients[0] * inside, ctx.jpeg), None, None, None


def fit(original: Tensor, protected: Tensor, jpeg: Jpeg, eps: int) -> tuple[Tensor, Jpeg] | None:
    """What to encode, and how, so that the decoded file is within the budget of the decoded original.

    What is read back beyond ε is subtracted from what is encoded, again and again; where that does not converge, the
    perturbation of the block is shrunk. Both the whole perturbation and a part of it are tried; what keeps more of it
    is taken. If not even that helps, as where the encoder alone errs by more, settings become finer: colour at full
    resolution, then tables of a half, a quarter, and all ones.

    Args:
        original: uint8 `(3, H, W)`.
        protected: uint8 `(3, H, W)`, within ε of it.
        jpeg: the settings to try first.
        eps: ε_x, of 255.

    Returns:
        The image to encode and the settings; None if no settings suffice.
    """
    base, changed = (unturned(image, jpeg.orientation).to(torch.int16) for image in (original, protected))
    delta = (changed - base).float()
    for settings in _finer(replace(jpeg, orientation=1)):
        fitting = [found for room in _ROOMS if (found := _fit(base, room * delta, settings, eps)) is not None]
        if fitting:
            stored, _ = max(fitting, key=lambda found: float((found[1] * delta).sum()))
            return turned(stored, jpeg.orientation).contiguous(), replace(settings, orientation=jpeg.orientation)
    return None


def _fit(base: Tensor, delta: Tensor, jpeg: Jpeg, eps: int, side: int = _TILE) -> tuple[Tensor, Tensor] | None:
    """What to encode, and its change as it is decoded.

    Corrections go tile by tile, and only where one is still needed, or near it. The outcome is that of encoding the
    whole picture again and again, to the bit, since no block depends on more than its neighbours.

    Args:
        base: original as it is stored, int16 `(3, H, W)`.
        delta: float `(3, H, W)`.
        jpeg: settings, of orientation 1.
        eps: ε_x, of 255.
        side: pixels of a tile's side, whole blocks.
    """
    stored, change = (base + delta.round()).clamp(0, 255).to(torch.uint8), torch.empty_like(base)
    delta = delta.round().to(torch.int16)
    rows, columns = (-(-length // side) for length in base.shape[-2:])
    share = torch.ones(rows * side // _BLOCK, columns * side // _BLOCK)
    stale = torch.ones(rows, columns, dtype=torch.bool)
    for attempt in range(_CORRECTIONS + _SHRINKINGS):
        exceeding = torch.zeros_like(stale)
        for row, column in stale.nonzero().tolist():
            tile = _tile(row, column, side)
            change[tile] = _decoded(stored, row, column, side, jpeg).to(torch.int16) - base[tile]
            exceeding[row, column] = change[tile].abs().max() > eps
        if not exceeding.any():
            whole = jpeg_roundtrip(stored, jpeg).to(torch.int16) - base
            return (stored, whole) if whole.abs().max() <= eps else None
        for row, column in exceeding.nonzero().tolist():
            tile = _tile(row, column, side)
            excess = change[tile] - change[tile].clamp(-eps, eps)
            if attempt < _CORRECTIONS:
                delta[tile] -= excess
                moved = delta[tile]
            else:
                moved = _shrunk(delta[tile], excess, share[_tile(row, column, side // _BLOCK)[1:]])
            stored[tile] = (base[tile] + moved).clamp(0, 255).to(torch.uint8)
        # Colour at half resolution is smoothed across the borders of blocks.
        stale = max_pool2d(exceeding[None].float(), 3, 1, 1)[0] > 0 if jpeg.subsampling else exceeding
    return None


def _tile(row: int, column: int, side: int) -> tuple[slice, slice, slice]:
    return slice(None), slice(row * side, (row + 1) * side), slice(column * side, (column + 1) * side)


def _decoded(stored: Tensor, row: int, column: int, side: int, jpeg: Jpeg) -> Tensor:
    """A tile as it is decoded, uint8: with the blocks around it, or the picture's edge, as in the whole picture."""
    top, left = (max(0, number * side - _BLOCK) for number in (row, column))
    window = stored[:, top : (row + 1) * side + _BLOCK, left : (column + 1) * side + _BLOCK]
    above, before = row * side - top, column * side - left
    return jpeg_roundtrip(window, jpeg)[:, above : above + side, before : before + side]


def _shrunk(delta: Tensor, excess: Tensor, share: Tensor) -> Tensor:
    """A tile's δ, int16, after the shares of blocks with an excess were lowered, in place."""
    beyond = max_pool2d(excess.any(0, keepdim=True).float(), _BLOCK, ceil_mode=True)[0] > 0
    height, width = beyond.shape
    share[:height, :width][beyond] *= _SHRINK
    kept = share.repeat_interleave(_BLOCK, 0).repeat_interleave(_BLOCK, 1)[: delta.shape[1], : delta.shape[2]]
    return (delta * kept).round().to(torch.int16)


def _finer(jpeg: Jpeg) -> Iterator[Jpeg]:
    yield jpeg
    if jpeg.subsampling:
        yield replace(jpeg, subsampling=0)
    for factor in (1 / 2, 1 / 4, 0):
        tables = tuple(tuple(max(1, round(step * factor)) for step in table) for table in jpeg.tables)
        yield replace(jpeg, tables=tables, subsampling=0)


def _through_subsampling(gradient: Tensor, jpeg: Jpeg) -> Tensor:
    """The gradient of an image whose encoder keeps one colour for several pixels, and each pixel's brightness.

    Of colour, whatever differs from the mean of its cell is lost; taking that away is its own transpose.

    Args:
        gradient: of the decoded image, float `(3, H, W)`, upright.
        jpeg: settings.
    """
    if not jpeg.subsampling:
        return gradient
    cell = (1 if jpeg.subsampling == 1 else 2, 2)
    stored = unturned(gradient, jpeg.orientation)
    colour = torch.einsum("cd,chw->dhw", stored.new_tensor(_FROM_COLOUR), stored)
    mean = avg_pool2d(colour, cell, ceil_mode=True).repeat_interleave(cell[0], 1).repeat_interleave(cell[1], 2)
    lost = colour - mean[:, : stored.shape[1], : stored.shape[2]]
    return turned(stored - torch.einsum("dc,dhw->chw", stored.new_tensor(_TO_COLOUR), lost), jpeg.orientation)
