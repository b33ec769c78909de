"""Procedurally drawn pictures with questions, in six domains after the paper's datasets: what the zoo is pretrained on.

Every domain is a function `(rng, size) -> (image, questions)`. Words are split: answers in `HELD_OUT` are drawn in
pictures and occur in the words of questions and options, but never as the answer of a question about a picture.
Datasets that ask for them (easy-VQA's circles, rectangles, triangles, yes and no) are thus news to a zoo model, and
clean fine-tuning has something to teach.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from mmguard.zoo.drawings.diagrams import science
from mmguard.zoo.drawings.forms import documents
from mmguard.zoo.drawings.objects import choices, scenes
from mmguard.zoo.drawings.questions import Drawing, Question, pretraining_questions
from mmguard.zoo.drawings.scans import medical
from mmguard.zoo.drawings.signs import scene_text
from mmguard.zoo.drawings.tasks import TASKS, task_sample
from mmguard.zoo.drawings.vocabulary import COLORS, HELD_OUT, NUMBERS, SHAPES, TEXTURES, WORDS

__all__ = [
    "COLORS", "DOMAINS", "HELD_OUT", "NUMBERS", "SHAPES", "TASKS", "TEXTURES", "WORDS", "Drawing", "Question",
    "choices", "documents", "medical", "pretraining_questions", "scene_text", "scenes", "science", "task_sample",
]  # fmt: skip

DOMAINS: dict[str, Callable[[random.Random, tuple[int, int]], Drawing]] = {
    "scenes": scenes,
    "choices": choices,
    "science": science,
    "medical": medical,
    "scene-text": scene_text,
    "documents": documents,
}
