"""Silhouettes and textures of single objects."""

from __future__ import annotations

import math
import random

from PIL import Image, ImageDraw

from mmguard.zoo.drawings.vocabulary import Rgb

_SCALE = 3
"""Silhouettes are drawn this much larger, then averaged."""


def silhouette(rng: random.Random, shape: str, radius: int) -> Image.Image:
    """The mask of a shape, anti-aliased, `(2r+1)²`."""
    side = 2 * radius + 1
    image = Image.new("L", (side * _SCALE, side * _SCALE), 0)
    draw = ImageDraw.Draw(image)
    c, r = side * _SCALE / 2, radius * _SCALE * 0.98
    turn = rng.uniform(-0.35, 0.35)

    def at(*points: tuple[float, float]) -> list[tuple[float, float]]:
        """Pixels of points in a square from -1 to 1."""
        return [(c + r * x, c + r * y) for x, y in points]

    match shape:
        case "circle":
            draw.ellipse(at((-1, -1), (1, 1)), fill=255)
        case "ring":
            draw.ellipse(at((-1, -1), (1, 1)), fill=255)
            draw.ellipse(at((-0.55, -0.55), (0.55, 0.55)), fill=0)
        case "moon":
            draw.ellipse(at((-1, -1), (1, 1)), fill=255)
            draw.ellipse(at((-0.3, -0.9), (1.5, 0.9)), fill=0)
        case "rectangle":
            w, h = rng.choice(((1.0, 0.55), (0.55, 1.0), (0.85, 0.85), (0.95, 0.7)))
            draw.rectangle(at((-w, -h), (w, h)), fill=255)
        case "triangle":
            draw.polygon(_corners(3, turn, c, r), fill=255)
        case "hexagon":
            draw.polygon(_corners(6, turn, c, r), fill=255)
        case "diamond":
            draw.polygon(at((0, -1), (0.65, 0), (0, 1), (-0.65, 0)), fill=255)
        case "star":
            draw.polygon(_corners(10, turn, c, r, dent=0.42), fill=255)
        case "cross":
            draw.rectangle(at((-0.32, -1), (0.32, 1)), fill=255)
            draw.rectangle(at((-1, -0.32), (1, 0.32)), fill=255)
        case "heart":
            draw.ellipse(at((-1, -0.9), (0, 0.15)), fill=255)
            draw.ellipse(at((0, -0.9), (1, 0.15)), fill=255)
            draw.polygon(at((-0.95, -0.15), (0.95, -0.15), (0, 1)), fill=255)
        case "arrow":
            shaft, head = ((-1.0, 0.3), (-1.0, -0.3), (0.0, -0.3)), ((0.0, -0.8), (1.0, 0.0), (0.0, 0.8), (0.0, 0.3))
            draw.polygon(at(*shaft, *head), fill=255)
        case _:
            raise ValueError(f"no such shape: {shape}")
    return image.resize((side, side), Image.Resampling.BOX)


def _corners(count: int, turn: float, center: float, radius: float, dent: float = 1.0) -> list[tuple[float, float]]:
    """Points on a circle, turned clockwise by `turn`, every second one drawn in to `dent` of the radius."""
    corners = []
    for i in range(count):
        angle, reach = turn + 2 * math.pi * i / count, radius * dent if i % 2 else radius
        corners.append((center + math.sin(angle) * reach, center - math.cos(angle) * reach))
    return corners


def textured(color: Rgb, texture: str, side: int) -> Image.Image:
    """A square patch of a color, with a pattern that stands out from it unless the texture is plain."""
    patch = Image.new("RGB", (side, side), color)
    draw = ImageDraw.Draw(patch)
    ink = (250, 250, 250) if sum(color) < 420 else (25, 25, 25)
    step = max(5, side // 6)
    if texture == "striped":
        for x in range(-side, side, step):
            draw.line((x, 0, x + side, side), fill=ink, width=max(1, step // 3))
    elif texture == "dotted":
        r = step // 4
        for x in range(step // 2, side, step):
            for y in range(step // 2, side, step):
                draw.ellipse((x - r, y - r, x + r, y + r), fill=ink)
    elif texture == "checkered":
        for x in range(0, side, step):
            for y in range(0, side, step):
                if (x // step + y // step) % 2:
                    draw.rectangle((x, y, x + step - 1, y + step - 1), fill=ink)
    return patch
