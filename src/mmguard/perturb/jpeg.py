"""Perturbations that have to go through a JPEG encoder: seen as they survive it, and kept within the budget behind it.

The encoder rounds coefficients of whole blocks, so what is read back is not what was optimised, and may be beyond ε.
While it is optimised, the model therefore sees the decoded file, cut to the budget; what is released is corrected until
the decoded file is within ε by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, max_pool2d

from mmguard.data.carrier import Jpeg, jpeg_roundtrip, turned, unturned
from mmguard.perturb.budget import to_unit

_BLOCK = 16
"""Pixels that are encoded together, with colour at half resolution."""
_ROOMS = (1.0, 0.6)
"""Shares of a perturbation that are tried: at high quality less does more, since corrections spoil less of it."""
_CORRECTIONS = 40
"""Where this many do not suffice, perturbations are shrunk."""
_SHRINKINGS, _SHRINK = 10, 0.7
"""After all of them nothing is left of 8 levels: 8 · 0.7¹⁰ < 0.5."""


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
    decoded = to_unit(jpeg_roundtrip((image.detach() * 255).round().to(torch.uint8).cpu(), jpeg)).to(image.device)
    if torch.is_grad_enabled() and image.requires_grad:
        soft = _differentiable(image, jpeg)
        decoded = decoded + (soft - soft.detach())
    base = to_unit(original).to(image.device)
    limit = eps / 255 + 1e-6  # a change of exactly ε has a gradient, whatever floats make of it
    return base + (decoded - base).clamp(-limit, limit)


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


def _fit(base: Tensor, delta: Tensor, jpeg: Jpeg, eps: int) -> tuple[Tensor, Tensor] | None:
    """What to encode, and its change as it is decoded."""
    height, width = base.shape[-2:]
    share = torch.ones(-(-height // _BLOCK), -(-width // _BLOCK))
    for attempt in range(_CORRECTIONS + _SHRINKINGS):
        kept = share.repeat_interleave(_BLOCK, 0).repeat_interleave(_BLOCK, 1)[:height, :width]
        stored = (base + (delta * kept).round()).clamp(0, 255).to(torch.uint8)
        error = jpeg_roundtrip(stored, jpeg).to(torch.int16) - base
        excess = error - error.clamp(-eps, eps)
        if not excess.any():
            return stored, error
        if attempt < _CORRECTIONS:
            delta = delta - excess
        else:
            beyond = excess.any(0, keepdim=True).float()
            blocks = max_pool2d(beyond, _BLOCK, ceil_mode=True)[0]
            share = torch.where(blocks > 0, share * _SHRINK, share)
    return None


def _finer(jpeg: Jpeg) -> Iterator[Jpeg]:
    yield jpeg
    if jpeg.subsampling:
        yield replace(jpeg, subsampling=0)
    for factor in (1 / 2, 1 / 4, 0):
        tables = tuple(tuple(max(1, round(step * factor)) for step in table) for table in jpeg.tables)
        yield replace(jpeg, tables=tables, subsampling=0)


def _differentiable(image: Tensor, jpeg: Jpeg) -> Tensor:
    """What the encoder does besides rounding: it keeps one colour for several pixels, and each pixel's brightness."""
    if not jpeg.subsampling:
        return image
    from kornia.color import rgb_to_ycbcr, ycbcr_to_rgb

    cell = (1 if jpeg.subsampling == 1 else 2, 2)
    stored = rgb_to_ycbcr(unturned(image, jpeg.orientation))
    colour = avg_pool2d(stored[1:], cell, ceil_mode=True)
    colour = colour.repeat_interleave(cell[0], 1).repeat_interleave(cell[1], 2)[:, : stored.shape[1], : stored.shape[2]]
    decoded: Tensor = ycbcr_to_rgb(torch.cat([stored[:1], colour]))
    return turned(decoded, jpeg.orientation)
