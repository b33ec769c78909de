"""Images within a page."""

from __future__ import annotations

import base64
from io import BytesIO

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

AMPLIFIED = 16
"""How many times a difference is shown enlarged: 8 levels of 255 then fill half of the range."""
_LONGEST = 384
"""Pixels of the longer side of an image in a page, at most."""


def difference(before: Tensor, after: Tensor) -> Tensor:
    """What changed, `AMPLIFIED` times, around gray, which is no change.

    Shape:
        all uint8 `(3, H, W)`, 0…255.
    """
    return ((after.int() - before.int()) * AMPLIFIED + 128).clamp(0, 255).to(torch.uint8)


def png_uri(image: Tensor) -> str:
    """An image as the `data:` address that a page shows it from; large ones are thinned out to 384 pixels.

    Args:
        image: uint8 `(3, H, W)`, 0…255.
    """
    picture = to_pil_image(image)
    # Pixels are left out, not averaged: averaging would hide a perturbation that alternates from pixel to pixel.
    picture.thumbnail((_LONGEST, _LONGEST), Image.Resampling.NEAREST)
    file = BytesIO()
    picture.save(file, format="PNG", optimize=True)
    return uri("image/png", file.getvalue())


def uri(kind: str, content: bytes) -> str:
    """The `data:` address of a file of a MIME type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
