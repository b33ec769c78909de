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
from mmguard.zoo.drawings.vocabulary import HELD_OUT, LESIONS


def diagnoses(rng: random.Random, size: tuple[int, int]) -> Drawing:
    """Scans as in `medical`, asked for the kind of the lesion and the quadrant that it lies in (VQA-RAD)."""
    image, _, lesion = scan(rng, size)
    if lesion is None:
        return image, []
    kind = phrase(rng, "what kind of lesion is this?", "what is the diagnosis?", "name the lesion.")
    ask = [Question(kind, LESIONS[lesion.tone, lesion.extent])]
    if abs(lesion.height) > 0.1:
        quadrant = f"{'upper' if lesion.height > 0 else 'lower'} {lesion.side}"
        ask.append(Question(phrase(rng, "in which quadrant is the lesion?", "which quadrant is abnormal?"), quadrant))
    return image, ask


TASKS: dict[str, Callable[[random.Random, tuple[int, int]], Drawing]] = {
    "scenes": scenes,
    "choices": choices,
    "science": science,
    "medical": diagnoses,
    "scene-text": scene_text,
    "documents": documents,
}
"""What is drawn for each task; `task_sample` keeps the questions with held-out answers."""


def task_sample(rng: random.Random, task: str, size: tuple[int, int]) -> tuple[Image.Image, Question]:
    """A picture of a task, and one question about it whose answer is in `HELD_OUT`."""
    while True:
        image, questions = TASKS[task](rng, size)
        held_out = [q for q in questions if not q.verbal and q.answer in HELD_OUT]
        if held_out:
            return image, rng.choice(held_out)
