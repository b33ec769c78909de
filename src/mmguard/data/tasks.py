"""What a sample says to a model, and whether a model's reply is right: prompts, targets and scoring."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Sequence

from mmguard.types import Sample

CAPTION_PROMPT = "Describe the image."
"""The user's text where the owner has none: the caption is the target."""

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d)")
# A point between digits and a sign in front of a number belong to the number.
_PUNCTUATION = re.compile(r"(?!(?<=\d)\.(?=\d))(?!(?<!\S)-(?=\d))[^\w\s]|_")
_LEADING_LETTER = re.compile(r"\W*([A-Za-z])\s*[.):]")
_STATED_LETTER = re.compile(r"\b[Aa]nswer\s*(?:[Ii]s|:)?:?\s*\(?([A-Z])\b(?!')")


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


def score(prediction: str, sample: Sample) -> bool:
    """Whether a model's reply is right (method.md, section 4).

    Multiple choice: the option letter that the reply names ("B", "(b)", "B. a dog", "The answer is B"), or
    the option whose text it is. Otherwise: equal to one of `sample.answers` after `normalise`.
    """
    if sample.options:
        return _named_option(prediction, sample.options) == _right_option(sample)
    return normalise(prediction) in {normalise(answer) for answer in sample.answers or (sample.answer,)}


def normalise(text: str) -> str:
    """Text as VQA evaluation compares it.

    Lower case; articles, punctuation and thousands separators removed, white space collapsed. Numbers stay as
    they
    are: words are not turned into digits, and a decimal point or a sign is kept.
    """
    lower = unicodedata.normalize("NFKC", text).lower().strip()
    bare = _THOUSANDS.sub("", lower).replace("'", "").replace("\u2019", "")
    bare = " ".join(_PUNCTUATION.sub(" ", bare).split())
    # An answer that is nothing but an article or a sign ("A", "?") is compared as it stands.
    return " ".join(_ARTICLES.sub(" ", bare).split()) or bare or lower


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


def _named_option(prediction: str, options: Sequence[str]) -> int | None:
    bare = prediction.strip(string.whitespace + string.punctuation)
    letters = string.ascii_uppercase[: len(options)]
    if len(bare) == 1 and bare.upper() in letters:
        return letters.index(bare.upper())
    texts = [normalise(option) for option in options]
    if texts.count(normalise(prediction)) == 1:
        return texts.index(normalise(prediction))
    for found in (_LEADING_LETTER.match(prediction), _STATED_LETTER.search(prediction)):
        if found and found[1].upper() in letters:
            return letters.index(found[1].upper())
    return None
