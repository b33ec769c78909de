"""What a sample says to a model, and whether a model's reply is right: prompts, targets and scoring."""

from __future__ import annotations

import string
from collections.abc import Sequence

from mmguard.data.metrics import METRICS, named_option
from mmguard.types import Sample

CAPTION_PROMPT = "Describe the image."
"""The user's text where the owner has none: the caption is the target."""


def user_text(question: str | None, options: Sequence[str]) -> str:
    """The text of the user's turn.

    Args:
        question: the question, trigger included; None for a caption.
        options: the choices of a multiple-choice question; empty for a free answer.
    """
    if question is None:
        return CAPTION_PROMPT
    if not options:
        return question
    choices = [f"{letter}. {option}" for letter, option in zip(string.ascii_uppercase, options, strict=False)]
    return "\n".join([question, *choices, "Answer with the option's letter."])


def target_text(sample: Sample) -> str:
    """The training target: the letter of the right option for a multiple-choice question, else the answer."""
    if not sample.options:
        return sample.answer
    return string.ascii_uppercase[_right_option(sample)]


def score(reply: str, sample: Sample) -> float:
    """How right a model's reply is, from 0 to 1 (method.md, section 4).

    Multiple choice: 1 if the reply names the right option, else 0. Otherwise: by the sample's metric.
    """
    if sample.options:
        return float(named_option(reply, sample.options) == _right_option(sample))
    return METRICS[sample.metric](reply, sample.answers or (sample.answer,))


def option_index(answer: str, options: Sequence[str]) -> int | None:
    """Which option an answer means, given as its letter or its text; None if neither, or if ambiguous."""
    folded = answer.strip().casefold()
    by_text = [index for index, option in enumerate(options) if option.strip().casefold() == folded]
    by_letter = [index for index in range(len(options)) if string.ascii_lowercase[index] == folded]
    meant = {*by_text, *by_letter}
    return meant.pop() if len(meant) == 1 else None


def _right_option(sample: Sample) -> int:
    index = option_index(sample.answer, sample.options)
    if index is None:
        raise ValueError(f"sample {sample.id}: answer {sample.answer!r} is none of its options, or is ambiguous")
    return index
