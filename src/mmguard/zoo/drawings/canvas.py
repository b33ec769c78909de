"""Colors, backgrounds and fonts, shared by the domains."""

from __future__ import annotations

import colorsys
import random

import numpy as np
from PIL import Image, ImageFont

from mmguard.zoo.drawings.vocabulary import COLORS, Rgb


def random_color(rng: random.Random, low: int, high: int) -> Rgb:
    """A color with every channel in `[low, high]`."""
    return rng.randint(low, high), rng.randint(low, high), rng.randint(low, high)


def jitter(rng: random.Random, color: Rgb, amount: int = 14) -> Rgb:
    """The color with every channel moved by up to `amount`."""

    def moved(channel: int) -> int:
        return min(255, max(0, channel + rng.randint(-amount, amount)))

    red, green, blue = color
    return moved(red), moved(green), moved(blue)


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font that comes with Pillow."""
    return ImageFont.load_default(size=size)


def natural(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    """Noise with the 1/f spectrum of photographs, tinted."""
    width, height = size
    gen = np.random.default_rng(rng.getrandbits(32))
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    spectrum = gen.normal(size=(3, height, fx.shape[1])) + 1j * gen.normal(size=(3, height, fx.shape[1]))
    spectrum /= np.maximum(np.hypot(fx, fy), 1 / max(width, height)) ** rng.uniform(0.8, 1.4)
    field = np.fft.irfft2(spectrum, s=(height, width))
    field = 0.7 * field.mean(0, keepdims=True) + 0.3 * field
    field /= field.std() + 1e-9
    hsv = rng.random(), rng.uniform(0, 0.5), rng.uniform(0.3, 0.9)
    tint = np.array([int(255 * channel) for channel in colorsys.hsv_to_rgb(*hsv)])
    pixels = tint + field.transpose(1, 2, 0) * rng.uniform(5, 28)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def gradient(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    """A blend from one color to another, across or down; always across where the size is square."""
    width, height = size
    start, end = (np.array(jitter(rng, rng.choice(list(COLORS.values())), 40)) for _ in range(2))
    across = rng.random() < 0.5 or width == height
    ramp = np.linspace(0, 1, width)[None, :, None] if across else np.linspace(0, 1, height)[:, None, None]
    blend = (ramp * start + (1 - ramp) * end).astype(np.uint8)
    return Image.fromarray(np.broadcast_to(blend, (height, width, 3)))


def background(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    """Natural noise, a gradient, or one color, which is a light one half of the time."""
    kind = rng.random()
    if kind < 0.35:
        return natural(rng, size)
    if kind < 0.6:
        return gradient(rng, size)
    return Image.new("RGB", size, random_color(rng, 200 if kind < 0.8 else 0, 255))
