"""Laboratory tasks: the same pictures as in pretraining, asked for what pretraining held back.

Fine-tuning a zoo model on them teaches it something: it has seen such pictures, but never given such answers.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from PIL import Image

from mmguard.zoo.drawings.diagrams import science
from mmguard.zoo.drawings.forms import documents
from mmguard.zoo.drawings.objects import choices, scenes
from mmguard.zoo.drawings.questions import Drawing, Question, phrase
from mmguard.zoo.drawings.scans import scan
from mmguard.zoo.drawings.signs import scene_text
from mmguard.zoo.drawings.vocabulary import DIAGNOSES, HELD_OUT


def diagnoses(rng: random.Random, size: tuple[int, int]) -> Drawing:
    """Scans as in `medical`, asked for a diagnosis: organ and tone in one word (VQA-RAD)."""
    image, organ, lesion = scan(rng, size)
    if lesion is None:
        return image, []
    _, tone, _ = lesion
    text = phrase(rng, "what is the diagnosis?", "what kind of lesion is this?", "name the lesion.")
    return image, [Question(text, DIAGNOSES[organ, tone])]


def signs(rng: random.Random, size: tuple[int, int]) -> Drawing:
    """Signs as in `scene_text`, asked for their word and the color of the plate (TextVQA)."""
    image, (word, plate, *_) = scene_text(rng, size)
    return image, [word, plate]


TASKS: dict[str, Callable[[random.Random, tuple[int, int]], Drawing]] = {
    "scenes": scenes,
    "choices": choices,
    "science": science,
    "medical": diagnoses,
    "scene-text": signs,
    "documents": documents,
}
"""What is drawn, and what may be asked of it."""


def task_sample(rng: random.Random, task: str, size: tuple[int, int]) -> tuple[Image.Image, Question]:
    """A picture of a task, and one question about it whose answer is in `HELD_OUT`."""
    while True:
        image, questions = TASKS[task](rng, size)
        held_out = [q for q in questions if not q.verbal and q.answer in HELD_OUT]
        if held_out:
            return image, rng.choice(held_out)
