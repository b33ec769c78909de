"""Filled forms: the domain `documents`."""

from __future__ import annotations

import random

from PIL import Image, ImageDraw

from mmguard.zoo.drawings.canvas import font, jitter, random_color
from mmguard.zoo.drawings.questions import Drawing, Question, phrase
from mmguard.zoo.drawings.vocabulary import COLORS, NAMES


def documents(rng: random.Random, size: tuple[int, int]) -> Drawing:
    """A small form with a name and a number (DocVQA)."""
    width, height = size
    image = Image.new("RGB", size, random_color(rng, 232, 255))
    draw = ImageDraw.Draw(image)
    name, number, state = rng.choice(NAMES), str(rng.randint(10, 99)), rng.choice(("paid", "due"))
    ink = random_color(rng, 0, 60)
    fields = [("name", name.capitalize()), ("total", number), ("state", state)]
    rng.shuffle(fields)
    face = font(int(min(size) * rng.uniform(0.14, 0.17)))
    for i, (key, value) in enumerate(fields):
        y = height * (0.08 + 0.28 * i)
        draw.text((width * 0.04, y), f"{key.capitalize()}:", fill=ink, font=face)
        draw.text((width * 0.47, y), value, fill=ink, font=face)
        draw.line((2, y + height * 0.22, width - 2, y + height * 0.22), fill=(180, 180, 180))
    stamp = rng.choice(list(COLORS))
    x = rng.uniform(width * 0.1, width * 0.8)
    draw.ellipse((x, height * 0.88, x + width * 0.11, height * 0.99), fill=jitter(rng, COLORS[stamp]))
    who = phrase(rng, "what is the name?", "who is named on the form?", "which name is written?")
    total = phrase(rng, "what is the total?", "how much is the total?", "what number is on the form?")
    return image, [
        Question(who, name),
        Question(total, number),
        Question(phrase(rng, "is it paid or due?", "what is the state of the bill?"), state),
        Question(phrase(rng, "what color is the stamp?", "which color has the stamp?"), stamp),
        Question(phrase(rng, "which field comes first?", "what is on the first line?"), fields[0][0]),
    ]
