"""Perturbations that have to go through a JPEG encoder: seen as they survive it, and kept within the budget behind it.

The encoder rounds coefficients of whole blocks, so what is read back is not what was optimised. While it is
optimised, the model therefore sees the decoded file; what is released is shrunk, block by block, until the decoded file
is within ε.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from mmguard.data.carrier import Jpeg, jpeg_roundtrip, turned, unturned
from mmguard.perturb.budget import to_unit

_BLOCK = 16
"""Pixels that are encoded together, with colour at half resolution."""
_ROUNDS, _SHRINK = 10, 0.7
"""After all rounds nothing is left of 8 levels: 8 · 0.7⁹ < 0.5."""


def seen(image: Tensor, jpeg: Jpeg) -> Tensor:
    """What a reader of the JPEG file sees, differentiable with respect to the image.

    Straight-through: the value is that of the real encoder and decoder, the gradient that of kornia's differentiable
    JPEG (Reich et al., 2024) with the same tables.

    Args:
        image: `[0,1]` float `(3, H, W)`, on the uint8 grid, upright.
        jpeg: settings.
    """
    real = to_unit(jpeg_roundtrip((image.detach() * 255).round().to(torch.uint8).cpu(), jpeg)).to(image.device)
    if not (torch.is_grad_enabled() and image.requires_grad):
        return real
    from kornia.enhance import jpeg_codec_differentiable

    light, colour = (torch.tensor(t, dtype=image.dtype, device=image.device) for t in (jpeg.tables[0], jpeg.tables[-1]))
    # Quality 50 is where the codec takes tables as they are.
    quality = torch.tensor([50.0], dtype=image.dtype, device=image.device)
    stored = unturned(image, jpeg.orientation)[None]
    soft = turned(jpeg_codec_differentiable(stored, quality, light.view(8, 8), colour.view(8, 8))[0], jpeg.orientation)
    return real + (soft - soft.detach())


def fit(original: Tensor, protected: Tensor, jpeg: Jpeg, eps: int) -> tuple[Tensor, Jpeg] | None:
    """What to encode, and how, so that the decoded file is within the budget of the decoded original.

    Where a block is read back beyond ε, its perturbation is shrunk; if that does not help, as where the encoder alone
    errs by more, with finer settings: colour at full resolution, then tables of a half, a quarter, and all ones.

    Args:
        original: uint8 `(3, H, W)`.
        protected: uint8 `(3, H, W)`, within ε of it.
        jpeg: the settings to try first.
        eps: ε_x, of 255.

    Returns:
        The image to encode and the settings; None if no settings suffice.
    """
    base = unturned(original, jpeg.orientation).to(torch.int16)
    delta = unturned(protected, jpeg.orientation).to(torch.int16) - base
    height, width = base.shape[-2:]
    for settings in _finer(jpeg):
        share = torch.ones(-(-height // _BLOCK), -(-width // _BLOCK))
        for _ in range(_ROUNDS):
            part = share.repeat_interleave(_BLOCK, 0).repeat_interleave(_BLOCK, 1)[:height, :width]
            stored = (base + (delta * part).round().to(torch.int16)).to(torch.uint8)
            image = turned(stored, jpeg.orientation).contiguous()
            error = jpeg_roundtrip(image, settings).to(torch.int16) - original.to(torch.int16)
            beyond = unturned(error.abs().amax(0, keepdim=True), jpeg.orientation) > eps
            if not beyond.any():
                return image, settings
            blocks = torch.nn.functional.max_pool2d(beyond.float(), _BLOCK, ceil_mode=True)[0]
            share = torch.where(blocks > 0, share * _SHRINK, share)
    return None


def _finer(jpeg: Jpeg) -> Iterator[Jpeg]:
    yield jpeg
    if jpeg.subsampling:
        yield replace(jpeg, subsampling=0)
    for factor in (1 / 2, 1 / 4, 0):
        tables = tuple(tuple(max(1, round(step * factor)) for step in table) for table in jpeg.tables)
        yield replace(jpeg, tables=tables, subsampling=0)
