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

from mmguard.data.carrier import Jpeg, jpeg_decoded, jpeg_roundtrip, turned, unturned
from mmguard.perturb.budget import to_unit

_BLOCK = 16
"""Pixels that are encoded together, with colour at half resolution."""
_ROWS = 16 * _BLOCK
"""What is corrected at a time: little enough for the processor's caches."""
_ROOMS = (1.0, 0.75, 0.6)
"""Shares of a perturbation that are tried: at high quality less does more, since corrections spoil less of it."""
_SAMPLE = 16 * _BLOCK
"""Side of the middle of a picture that they are tried on."""
_CORRECTIONS = 40
"""Where this many do not suffice, perturbations are shrunk."""
_SHRINKINGS, _SHRINK = 10, 0.7
"""After all of them nothing is left of 8 levels: 8 · 0.7¹⁰ < 0.5."""
_REPAIRS = 15
"""Further corrections, where the encoder alone errs by more than the budget."""
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
    perturbation of the block is shrunk, to nothing if need be. The whole perturbation and parts of it are tried on the
    middle of the picture; what keeps most of it there is taken. If not even that helps, settings become finer: colour
    at full resolution, then tables of a half, a quarter, and all ones.

    Args:
        original: uint8 `(3, H, W)`.
        protected: uint8 `(3, H, W)`, within ε of it.
        jpeg: the settings to try first.
        eps: ε_x, of 255.

    Returns:
        The image to encode and the settings; None if no settings suffice.
    """
    # As the encoder takes them, pixel by pixel.
    base, changed = (
        unturned(image, jpeg.orientation).permute(1, 2, 0).to(torch.int16).contiguous()
        for image in (original, protected)
    )
    delta = (changed - base).float()
    middle = tuple(_middle(length) for length in base.shape[:2])
    for settings in _finer(replace(jpeg, orientation=1)):
        kept = {
            room: float((found[1] * delta[middle]).sum())
            for room in _ROOMS
            if (found := _fit(base[middle], room * delta[middle], settings, eps)) is not None
        }
        room = max(kept, key=lambda room: kept[room], default=None)
        if room is not None and (found := _fit(base, room * delta, settings, eps)) is not None:
            stored = turned(found[0].permute(2, 0, 1), jpeg.orientation).contiguous()
            return stored, replace(settings, orientation=jpeg.orientation)
    return None


def _middle(length: int) -> slice:
    first = max(0, length - _SAMPLE) // 2 // _BLOCK * _BLOCK  # where a block begins
    return slice(first, first + _SAMPLE)


def _fit(base: Tensor, delta: Tensor, jpeg: Jpeg, eps: int, rows: int = _ROWS) -> tuple[Tensor, Tensor] | None:
    """What to encode, and its change as it is decoded.

    Corrections go strip by strip, and only where one is still needed, or beside it. The outcome is that of encoding the
    whole picture again and again, to the bit, since no block depends on more than its neighbours.

    Args:
        base: original as it is stored, int16 `(H, W, 3)`.
        delta: float `(H, W, 3)`.
        jpeg: settings, of orientation 1.
        eps: ε_x, of 255.
        rows: height of a strip, in whole blocks.
    """
    wanted = base + delta.round().to(torch.int16)
    stored = wanted.clamp(0, 255).to(torch.uint8)
    least, most = ((base + limit).clamp(0, 255).to(torch.uint8) for limit in (-eps, eps))
    strips = [slice(top, top + rows) for top in range(0, base.shape[0], rows)]
    stale = set(range(len(strips)))
    for attempt in range(_CORRECTIONS + _SHRINKINGS + _REPAIRS):
        exceeding = set()
        for number in sorted(stale):
            strip = strips[number]
            decoded = _decoded(stored, strip, jpeg)
            inside = decoded.clamp(least[strip], most[strip])
            if torch.equal(decoded, inside):
                continue
            exceeding.add(number)
            if _CORRECTIONS <= attempt < _CORRECTIONS + _SHRINKINGS:
                wanted[strip] = base[strip] + _shrunk(wanted[strip] - base[strip], decoded != inside)
            else:
                wanted[strip] += inside.to(torch.int16) - decoded
        if not exceeding:
            change = jpeg_decoded(stored, jpeg).to(torch.int16) - base
            return (stored, change) if change.abs().max() <= eps else None
        for number in exceeding:
            stored[strips[number]] = wanted[strips[number]].clamp(0, 255).to(torch.uint8)
        # Colour at half resolution is smoothed across the borders of blocks.
        near = (-1, 0, 1) if jpeg.subsampling else (0,)
        stale = {number + step for number in exceeding for step in near} & set(range(len(strips)))
    return None


def _decoded(stored: Tensor, strip: slice, jpeg: Jpeg) -> Tensor:
    """A strip as it is decoded, uint8: with a row of blocks above and below, or the picture's edge, as in the whole."""
    top = max(0, strip.start - _BLOCK)
    return jpeg_decoded(stored[top : strip.stop + _BLOCK], jpeg)[strip.start - top :][: strip.stop - strip.start]


def _shrunk(delta: Tensor, beyond: Tensor) -> Tensor:
    """δ of a strip, int16 `(H, W, 3)`, with less of it in blocks where what is decoded is beyond the budget."""
    blocks = max_pool2d(beyond.any(-1)[None].float(), _BLOCK, ceil_mode=True)[0] > 0
    there = blocks.repeat_interleave(_BLOCK, 0).repeat_interleave(_BLOCK, 1)[: delta.shape[0], : delta.shape[1], None]
    return torch.where(there, (delta * _SHRINK).trunc(), delta).to(torch.int16)


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
