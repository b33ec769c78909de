"""Questions about drawings, in many phrasings."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from mmguard.zoo.drawings.vocabulary import HELD_OUT


@dataclass(frozen=True)
class Question:
    """A question about a drawing. `answer` is the answer's text, also where there are `options`."""

    text: str
    answer: str
    options: tuple[str, ...] = ()
    verbal: bool = False
    """Whether the answer stands in the question: no picture is needed."""


Drawing = tuple[Image.Image, list[Question]]


def phrase(rng: random.Random, *phrasings: str, **words: str) -> str:
    """One of the phrasings with the words filled in, sometimes capitalized."""
    text = rng.choice(phrasings).format(**words)
    return text if rng.random() < 0.6 else text.capitalize()


def pretraining_questions(questions: Sequence[Question]) -> list[Question]:
    """Those whose answer may be taught in pretraining: purely verbal ones, and those with answers not in `HELD_OUT`."""
    return [q for q in questions if q.verbal or q.answer not in HELD_OUT]
