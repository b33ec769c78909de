"""Words on signs: the domain `scene_text`."""

from __future__ import annotations

import random

from PIL import ImageDraw

from mmguard.zoo.drawings.canvas import font, jitter, natural
from mmguard.zoo.drawings.questions import Drawing, Question, phrase
from mmguard.zoo.drawings.vocabulary import COLORS, SIGNWORDS


def scene_text(rng: random.Random, size: tuple[int, int]) -> Drawing:
    """A word on a sign in a natural scene (TextVQA)."""
    width, height = size
    image = natural(rng, size)
    draw = ImageDraw.Draw(image)
    word = rng.choice(SIGNWORDS)
    plate, ink = _readable_colors(rng)
    shown = rng.choice((word, word.upper(), word.capitalize()))
    face = font(int(min(size) * rng.uniform(0.2, 0.27)))
    left, top, right, bottom = draw.textbbox((0, 0), shown, font=face)
    w, h = right - left, bottom - top
    x, y = rng.uniform(2, max(3, width - w - 4)), rng.uniform(4, max(5, height - h - 8))
    draw.rectangle((x - 3, y - 4, x + w + 3, y + h + 4), fill=jitter(rng, COLORS[plate]))
    fill, stroke = jitter(rng, COLORS[ink]), rng.choice((0, 0, 1))
    draw.text((x - left, y - top), shown, fill=fill, font=face, stroke_width=stroke)
    return image, _questions(rng, word, plate, ink)


def _readable_colors(rng: random.Random) -> tuple[str, str]:
    """Names of two colors that are far apart."""
    while True:
        plate, ink = rng.sample(list(COLORS), 2)
        if sum(abs(a - b) for a, b in zip(COLORS[plate], COLORS[ink], strict=True)) >= 250:
            return plate, ink


def _questions(rng: random.Random, word: str, plate: str, ink: str) -> list[Question]:
    what_word = phrase(
        rng,
        "what does the sign say?",
        "what word is written?",
        "read the sign.",
        "what is the text on the sign?",
        "which word do you see?",
    )
    plate_color = phrase(
        rng,
        "what color is the sign?",
        "what is the color of the sign?",
        "which color is the plate?",
    )
    ink_color = phrase(rng, "what color is the text?", "which color are the letters?", "what color is the word?")
    initial = phrase(rng, "what letter does the word start with?", "what is the first letter on the sign?")
    return [
        Question(what_word, word),
        Question(plate_color, plate),
        Question(ink_color, ink),
        Question(initial, word[0]),
    ]
