"""Bar charts and chains: the domain `science`."""

from __future__ import annotations

import random
from itertools import pairwise

from PIL import Image, ImageDraw

from mmguard.zoo.drawings.canvas import jitter, random_color
from mmguard.zoo.drawings.questions import Drawing, Question, phrase
from mmguard.zoo.drawings.vocabulary import COLORS, NUMBERS, Rgb


def science(rng: random.Random, size: tuple[int, int]) -> Drawing:
    """Diagrams: bar charts and chains of arrows (ScienceQA)."""
    image = Image.new("RGB", size, random_color(rng, 225, 255))
    ink = random_color(rng, 0, 70)
    return image, _bar_chart(rng, image, ink) if rng.random() < 0.6 else _chain(rng, image, ink)


def _bar_chart(rng: random.Random, image: Image.Image, ink: Rgb) -> list[Question]:
    """Draw two to five bars of different colors and heights."""
    width, height = image.size
    draw = ImageDraw.Draw(image)
    count = rng.randint(2, 5)
    values = rng.sample(range(2, 10), count)
    colors = rng.sample(list(COLORS), count)
    slot, foot = width * 0.86 / count, height * 0.92
    for i, (value, color) in enumerate(zip(values, colors, strict=True)):
        x = width * 0.1 + i * slot
        bar = (x, foot - height * 0.85 * value / 10, x + slot * 0.72, foot)
        draw.rectangle(bar, fill=jitter(rng, COLORS[color], 8), outline=ink)
    draw.line((width * 0.06, foot, width * 0.98, foot), fill=ink, width=1)
    draw.line((width * 0.06, height * 0.04, width * 0.06, foot), fill=ink, width=1)
    how_many = phrase(rng, "how many bars are in the chart?", "count the bars.", "what is the number of bars?")
    tallest = phrase(
        rng,
        "what color is the tallest bar?",
        "which bar is the highest?",
        "which color has the largest value?",
    )
    shortest = phrase(
        rng,
        "what color is the shortest bar?",
        "which bar is the lowest?",
        "which color has the smallest value?",
    )
    return [
        Question(how_many, NUMBERS[count]),
        Question(tallest, colors[values.index(max(values))]),
        Question(shortest, colors[values.index(min(values))]),
        Question(phrase(rng, "what color is the first bar?", "which color is the bar on the left?"), colors[0]),
        Question(phrase(rng, "what color is the last bar?", "which color is the bar on the right?"), colors[-1]),
        Question(_what_kind(rng), "chart"),
    ]


def _chain(rng: random.Random, image: Image.Image, ink: Rgb) -> list[Question]:
    """Draw two to four discs of different colors, with arrows from each to the next, all rightward or all leftward."""
    width, height = image.size
    draw = ImageDraw.Draw(image)
    count = rng.randint(2, 4)
    colors = rng.sample(list(COLORS), count)
    y, r = height * rng.uniform(0.35, 0.65), width * 0.09
    xs = [width * (0.14 + 0.72 * i / (count - 1)) for i in range(count)]
    order = list(range(count))
    rightward = rng.random() < 0.5
    if not rightward:
        order.reverse()
    for a, b in pairwise(order):
        sign = 1 if rightward else -1
        tip = xs[b] - sign * r
        draw.line((xs[a] + sign * r, y, tip, y), fill=ink, width=2)
        draw.polygon([(tip, y), (tip - sign * 6, y - 4), (tip - sign * 6, y + 4)], fill=ink)
    for x, color in zip(xs, colors, strict=True):
        draw.ellipse((x - r, y - r, x + r, y + r), fill=jitter(rng, COLORS[color], 8), outline=ink)
    chain = [colors[i] for i in order]
    k = rng.randrange(count - 1)
    start = phrase(rng, "where does the chain start?", "which color comes first in the chain?")
    end = phrase(rng, "where does the chain end?", "which color comes last in the chain?")
    following = phrase(
        rng,
        "what follows {color}?",
        "which color does {color} point to?",
        "what comes after {color}?",
        color=chain[k],
    )
    how_many = phrase(rng, "how many steps does the chain have?", "how many nodes are in the chain?")
    kind = _what_kind(rng)
    direction = phrase(rng, "in which direction do the arrows point?", "where do the arrows point to?")
    return [
        Question(start, chain[0]),
        Question(end, chain[-1]),
        Question(following, chain[k + 1]),
        Question(how_many, NUMBERS[count]),
        Question(kind, "chain"),
        Question(direction, "right" if rightward else "left"),
    ]


def _what_kind(rng: random.Random) -> str:
    return phrase(rng, "what kind of diagram is this?", "is this a chart or a chain?")
