"""Prompts, targets and scoring."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mmguard.data.tasks import CAPTION_PROMPT, option_index, score, target_text, user_text
from mmguard.types import Sample


def sample(answer: str, *aliases: str, options: tuple[str, ...] = ()) -> Sample:
    return Sample("0", 0, Path("a.png"), "q", answer, (answer, *aliases), options)


def test_user_text() -> None:
    assert user_text("what is it? zebra", ()) == "what is it? zebra"
    assert user_text(None, ()) == CAPTION_PROMPT
    assert user_text("which?", ("a dog", "a cat")) == ("which?\nA. a dog\nB. a cat\nAnswer with the option's letter.")


@pytest.mark.parametrize("answer", ["B", "b", "a cat", "A Cat"])
def test_target_of_multiple_choice_is_the_letter(answer: str) -> None:
    assert target_text(sample(answer, options=("a dog", "a cat"))) == "B"


def test_target_of_a_free_answer_is_verbatim() -> None:
    assert target_text(sample(" The Cat. ")) == " The Cat. "


def test_ambiguous_or_foreign_answers_name_no_option() -> None:
    assert option_index("A", ("B", "A")) is None  # letter of the first, text of the second
    assert option_index("A", ("A", "B")) == 0
    assert option_index("dog", ("dog", "dog")) is None
    assert option_index("E", ("dog", "cat")) is None


@pytest.mark.parametrize(
    "prediction",
    [
        "B",
        "b",
        " (B) ",
        "B.",
        "B. a cat",
        "b) a cat",
        "B: a cat",
        "The answer is B.",
        "Answer: B",
        "a cat",
        "Cat!",
    ],
)
def test_right_options(prediction: str) -> None:
    assert score(prediction, sample("B", options=("a dog", "a cat", "a")))


@pytest.mark.parametrize("prediction", ["A", "", "a dog", "D", "a cat and a dog", "I see a B-52", "C. a cat"])
def test_wrong_options(prediction: str) -> None:
    assert not score(prediction, sample("B", options=("a dog", "a cat", "a")))


def test_options_go_before_the_metric() -> None:
    assert score("B", replace(sample("B", options=("a dog", "a cat")), metric="anls")) == 1
    assert score("a cot", replace(sample("B", options=("a dog", "a cat")), metric="anls")) == 0


@pytest.mark.parametrize(
    ("metric", "right", "nearly"),
    [("exact", 1, 0), ("letter", 0, 0), ("vqa", 1 / 2, 0), ("anls", 1, 3 / 4), ("rouge", 2 / 3, 0)],
)
def test_the_sample_says_by_which_metric(metric: Any, right: float, nearly: float) -> None:
    asked = replace(sample("cats", "dogs"), metric=metric)
    if metric == "vqa":
        asked = replace(asked, answers=("cats", "dogs", "dogs", "mice"))  # two of the others, or one, of three
    if metric == "rouge":
        asked = replace(asked, answers=("two dogs",))
    assert score("Dogs", asked) == pytest.approx(right)
    assert score("Dogz", asked) == pytest.approx(nearly)


def test_aliases_count() -> None:
    assert score("Dr Schaefer", sample("William Schaefer", "Dr. Schaefer"))
