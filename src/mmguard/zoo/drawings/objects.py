"""Objects on a background: the domains `scenes`, and `choices` with options."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from PIL import Image, ImageFilter

from mmguard.zoo.drawings.canvas import background, jitter
from mmguard.zoo.drawings.questions import Drawing, Question, phrase
from mmguard.zoo.drawings.shapes import silhouette, textured
from mmguard.zoo.drawings.vocabulary import COLORS, NUMBERS, PLACES, SHAPES, TEXTURES, WORDS

_FAMILIES: tuple[tuple[str, ...], ...] = (tuple(COLORS), SHAPES, TEXTURES, NUMBERS[1:], PLACES)
"""Wrong options are of the right one's family."""


@dataclass(frozen=True)
class _Thing:
    shape: str
    color: str
    texture: str
    x: int
    y: int
    radius: int

    def place(self, size: tuple[int, int]) -> str:
        """Where in a picture of this size the thing is, one of `PLACES`."""
        dx, dy = self.x / size[0] - 0.5, self.y / size[1] - 0.5
        if max(abs(dx), abs(dy)) < 0.12:
            return "center"
        if abs(dx) > abs(dy):
            return "left" if dx < 0 else "right"
        return "top" if dy < 0 else "bottom"


def scenes(rng: random.Random, size: tuple[int, int]) -> Drawing:
    """Everyday scenes: textured objects on natural backgrounds (RealWorldQA)."""
    image, things = _compose(rng, size, most=4)
    return image, _questions(rng, things, size)


def choices(rng: random.Random, size: tuple[int, int]) -> Drawing:
    """Multiple choice about a scene, and about the words of the question itself (MMStar, ScienceQA)."""
    image, things = _compose(rng, size, most=3)
    ask = []
    for question in _questions(rng, things, size):
        family = next((f for f in _FAMILIES if question.answer in f), None)
        if family is None:
            continue
        wrong = [word for word in family if word != question.answer]
        options = [*rng.sample(wrong, min(len(wrong), rng.randint(1, 3))), question.answer]
        rng.shuffle(options)
        ask.append(Question(question.text, question.answer, tuple(options)))
    return image, ask + _verbal_questions(rng)


def _compose(rng: random.Random, size: tuple[int, int], most: int) -> tuple[Image.Image, list[_Thing]]:
    """A picture of one to `most` things that do not touch, the first of them the largest as a rule."""
    image = background(rng, size)
    things: list[_Thing] = []
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, most))):
        radius = int(min(size) * (rng.uniform(0.1, 0.2) if things else rng.uniform(0.14, 0.4)))
        spot = _free_spot(rng, size, radius, things)
        if spot is None:
            continue
        shape, color, texture = rng.choice(SHAPES), rng.choice(list(COLORS)), rng.choice((*TEXTURES, *("plain",) * 4))
        x, y = spot
        patch = textured(jitter(rng, COLORS[color]), texture, 2 * radius + 1)
        image.paste(patch, (x - radius, y - radius), silhouette(rng, shape, radius))
        things.append(_Thing(shape, color, texture, x, y, radius))
    if rng.random() < 0.25:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.9)))
    return image, things


def _free_spot(
    rng: random.Random, size: tuple[int, int], radius: int, things: list[_Thing], attempts: int = 20
) -> tuple[int, int] | None:
    """The center of a disc that overlaps none of the things, if one is found."""
    for _ in range(attempts):
        x, y = rng.randint(radius, size[0] - radius - 1), rng.randint(radius, size[1] - radius - 1)
        if all(math.hypot(x - t.x, y - t.y) > radius + t.radius for t in things):
            return x, y
    return None


def _questions(rng: random.Random, things: list[_Thing], size: tuple[int, int]) -> list[Question]:
    how_many = phrase(
        rng,
        "how many shapes are there?",
        "how many objects are in the picture?",
        "count the shapes.",
        "what is the number of shapes?",
    )
    ask = [Question(how_many, NUMBERS[len(things)])]
    for thing in things:
        if len(things) == 1:
            ask += _questions_of_the_only(rng, thing, size)
        ask += _questions_of_one(rng, thing, things, size)
    ask += _claims(rng, things)
    if len(things) > 1:
        ask += _questions_of_the_largest(rng, max(things, key=lambda t: t.radius))
    return ask


def _questions_of_the_only(rng: random.Random, thing: _Thing, size: tuple[int, int]) -> list[Question]:
    what_color = phrase(
        rng,
        "what color is the shape?",
        "what is the color of the shape?",
        "which color does the object have?",
        "name the color of the shape.",
        "what color is it?",
        "the shape is what color?",
    )
    what_shape = phrase(
        rng,
        "what shape is in the image?",
        "what shape is present?",
        "what shape does the image contain?",
        "which shape do you see?",
        "name the shape.",
        "what is drawn here?",
    )
    where = phrase(
        rng,
        "where is the shape?",
        "in which part of the image is the object?",
        "what is the position of the shape?",
    )
    what_texture = phrase(
        rng,
        "what texture does the shape have?",
        "what is the pattern of the shape?",
        "how is the shape filled?",
    )
    return [
        Question(what_color, thing.color),
        Question(what_shape, thing.shape),
        Question(where, thing.place(size)),
        Question(what_texture, thing.texture),
    ]


def _questions_of_one(rng: random.Random, thing: _Thing, things: list[_Thing], size: tuple[int, int]) -> list[Question]:
    """About a thing that its shape, or its color, tells from the others."""
    ask = []
    if sum(t.shape == thing.shape for t in things) == 1:
        what_color = phrase(
            rng,
            "what color is the {shape}?",
            "what is the color of the {shape}?",
            "which color does the {shape} have?",
            "name the color of the {shape}.",
            shape=thing.shape,
        )
        where = phrase(
            rng,
            "where is the {shape}?",
            "in which part of the image is the {shape}?",
            shape=thing.shape,
        )
        ask += [Question(what_color, thing.color), Question(where, thing.place(size))]
    if sum(t.color == thing.color for t in things) == 1:
        what_shape = phrase(
            rng,
            "what is the {color} shape?",
            "what shape is {color}?",
            "which shape has the color {color}?",
            "name the {color} shape.",
            color=thing.color,
        )
        ask.append(Question(what_shape, thing.shape))
    return ask


def _claims(rng: random.Random, things: list[_Thing]) -> list[Question]:
    """Two claims, true or false, that something is in the picture."""
    absent_shape = rng.choice([s for s in SHAPES if all(t.shape != s for t in things)])
    absent_color = rng.choice([c for c in COLORS if all(t.color != c for t in things)])
    claims = [
        (rng.choice(things).shape, "true"),
        (absent_shape, "false"),
        (f"{rng.choice(things).color} shape", "true"),
        (f"{absent_color} shape", "false"),
    ]
    ask = []
    for what, truth in rng.sample(claims, 2):
        text = phrase(
            rng,
            "true or false: there is a {what}.",
            "true or false: the image contains a {what}.",
            "is it true or false that a {what} is present?",
            what=what,
        )
        ask.append(Question(text, truth))
    return ask


def _questions_of_the_largest(rng: random.Random, thing: _Thing) -> list[Question]:
    what_color = phrase(rng, "what color is the largest shape?", "which color has the biggest object?")
    what_shape = phrase(rng, "what is the largest shape?", "which shape is the biggest?")
    return [Question(what_color, thing.color), Question(what_shape, thing.shape)]


def _verbal_questions(rng: random.Random) -> list[Question]:
    """About words in the question: the first or last of a list, and one to be repeated."""
    words = rng.sample(WORDS, rng.randint(2, 4))
    which = rng.choice(("first", "last"))
    which_word = phrase(
        rng,
        "which word comes {which}: {words}?",
        "read the list {words}. what is the {which} word?",
        "say the {which} word of: {words}.",
        which=which,
        words=", ".join(words),
    )
    word = rng.choice(WORDS)
    repeat = phrase(
        rng,
        "the answer is {word}. what is the answer?",
        "say the word {word}.",
        "repeat after me: {word}.",
        "please write {word}.",
        word=word,
    )
    return [
        Question(which_word, words[0] if which == "first" else words[-1], verbal=True),
        Question(repeat, word, verbal=True),
    ]
