"""Brains and chests: the domain `medical`."""

from __future__ import annotations

import random

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from mmguard.zoo.drawings.questions import Drawing, Question, phrase


def medical(rng: random.Random, size: tuple[int, int]) -> Drawing:
    """Grayscale scans: an organ with or without a lesion, bright or dark, large or small (VQA-RAD)."""
    image, organ, lesion = scan(rng, size)
    return image, _questions(rng, organ, lesion)


def scan(rng: random.Random, size: tuple[int, int]) -> tuple[Image.Image, str, tuple[str, str, str] | None]:
    """A scan, its organ, and the organ's lesion, if there is one: side, tone and extent."""
    width, height = size
    organ = rng.choice(("brain", "chest"))
    image = Image.new("L", size, rng.randint(0, 25))
    draw = ImageDraw.Draw(image)
    tissue = rng.randint(70, 130)
    cx, cy = width / 2 + rng.uniform(-3, 3), height / 2 + rng.uniform(-3, 3)
    offset, reach = (_brain if organ == "brain" else _chest)(rng, draw, size, (cx, cy), tissue)
    diseased = rng.random() < 0.7
    side, tone, extent = rng.choice(("left", "right")), rng.choice(("bright", "dark")), rng.choice(("small", "large"))
    if diseased:
        r = min(size) * (0.045 if extent == "small" else 0.1)
        x, y = cx + (-offset if side == "left" else offset), cy + rng.uniform(-0.5, 0.5) * reach
        draw.ellipse((x - r, y - r * rng.uniform(0.8, 1.2), x + r, y + r), fill=235 if tone == "bright" else 8)
    lesion = (side, tone, extent) if diseased else None
    return _exposed(rng, image), organ, lesion


def _brain(
    rng: random.Random, draw: ImageDraw.ImageDraw, size: tuple[int, int], center: tuple[float, float], tissue: int
) -> tuple[float, float]:
    """Draw a skull with two halves.

    Returns:
        How far a lesion lies to the side of the center, and how far above or below it may reach.
    """
    cx, cy = center
    a, b = size[0] * rng.uniform(0.32, 0.4), size[1] * rng.uniform(0.38, 0.45)
    draw.ellipse((cx - a, cy - b, cx + a, cy + b), fill=tissue, outline=220, width=3)
    draw.line((cx, cy - b, cx, cy + b), fill=tissue - 30, width=1)
    return a * 0.5, b


def _chest(
    rng: random.Random, draw: ImageDraw.ImageDraw, size: tuple[int, int], center: tuple[float, float], tissue: int
) -> tuple[float, float]:
    """Draw two lungs behind ribs.

    Returns:
        What `_brain` returns.
    """
    (width, height), (cx, cy) = size, center
    a, b = width * rng.uniform(0.15, 0.19), height * rng.uniform(0.3, 0.38)
    offset = width * 0.22
    draw.ellipse((cx - width * 0.46, cy - height * 0.46, cx + width * 0.46, cy + height * 0.46), fill=tissue + 70)
    for sign in (-1, 1):
        draw.ellipse((cx + sign * offset - a, cy - b, cx + sign * offset + a, cy + b), fill=tissue - 35)
    for i in range(-3, 4):
        y = cy + i * height * 0.11
        draw.arc((cx - width * 0.42, y - 6, cx + width * 0.42, y + 14), 200, 340, fill=tissue + 40)
    return offset, b


def _exposed(rng: random.Random, image: Image.Image) -> Image.Image:
    """The scan as a detector sees it: blurred and noisy."""
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.1))), dtype=np.float32)
    pixels += np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(2, 10), pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).convert("RGB")


def _questions(rng: random.Random, organ: str, lesion: tuple[str, str, str] | None) -> list[Question]:
    """About the organ and its lesion: side, tone and extent, or None."""
    which_organ = phrase(
        rng,
        "which organ is shown?",
        "what part of the body is this?",
        "is this a scan of the brain or the chest?",
    )
    normal = phrase(rng, "is the scan normal or abnormal?", "is this normal or abnormal?", "how does the scan look?")
    claim = phrase(rng, "true or false: there is a lesion.", "true or false: a mass is present.")
    ask = [
        Question(which_organ, organ),
        Question(normal, "abnormal" if lesion else "normal"),
        Question(claim, "true" if lesion else "false"),
    ]
    if lesion:
        side, tone, extent = lesion
        which_side = phrase(rng, "on which side is the lesion?", "where is the mass?", "which side is abnormal?")
        ask += [
            Question(which_side, side),
            Question(phrase(rng, "is the lesion bright or dark?", "how does the mass appear?"), tone),
            Question(phrase(rng, "is the lesion small or large?", "what is the size of the mass?"), extent),
        ]
    return ask
