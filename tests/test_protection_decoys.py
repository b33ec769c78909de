"""What pictures are to be mistaken for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmguard.config import ProtectConfig
from mmguard.errors import ConfigError
from mmguard.protection.batch import Item
from mmguard.protection.decoys import assign, decoys
from mmguard.protection.prepare import require_something_to_do
from mmguard.types import Dataset, Sample

Asked = tuple[str | None, str, tuple[str, ...]]
"""Question, answer and options."""


def dataset(*pictures: list[Asked]) -> list[Sample]:
    """The samples of some pictures."""
    return [
        Sample(f"{k}.{n}", 0, Path(f"{k}.png"), question, answer, (answer,), options)
        for k, asked in enumerate(pictures)
        for n, (question, answer, options) in enumerate(asked)
    ]


def item(samples: list[Sample]) -> Item:
    return Item(samples[0].image, samples, torch.zeros(3, 1, 1), [()] * len(samples), [None] * len(samples))


def test_a_decoy_answers_the_same_question() -> None:
    color, size = "what color?", "is it big?"
    samples = dataset(
        [(color, "blue", ()), (size, "yes", ())], [(color, "red", ()), (size, "no", ())], [(color, "green", ())]
    )
    assert list(decoys(samples).values()) == ["green", "no", "blue", "yes", "red"]


def test_a_question_with_one_answer_takes_that_of_another() -> None:
    samples = dataset([("who?", "a cat", ())], [(None, "a dog", ())], [(None, "a hen", ())])
    assert list(decoys(samples).values()) == ["a dog", "a hen", "a dog"]


def test_what_is_right_is_no_decoy() -> None:
    cased = dataset([("is it?", "Yes", ())], [("is it?", "yes", ())], [("is it?", "no.", ())])
    assert list(decoys(cased).values()) == ["no.", "no.", "yes"]
    captions = dataset([(None, "a cat", ()), (None, "a cat sits", ())], [(None, "a dog", ())])
    assert list(decoys(captions).values()) == ["a dog", "a dog", "a cat"]
    first, *others = dataset([("who?", "coke", ())], [("who?", "cola", ())], [("who?", "tea", ())])
    assert decoys([replace(first, answers=("coke", "Cola")), *others])["0.0"] == "tea"


def test_the_decoy_of_an_option_is_the_next() -> None:
    three = ("one", "two", "three")
    samples = dataset([("how many?", "three", three), ("how many?", "B", three)])
    one = item(samples)
    assign([one], samples)
    assert [example.answer for example in one.examples] == ["C", "B"]
    assert [example.answer for example in one.aims] == ["A", "C"]
    assert [replace(aim, answer="") for aim in one.aims] == [replace(own, answer="") for own in one.examples]


def test_a_picture_without_a_decoy_is_lost() -> None:
    two = ("one", "two")
    samples = dataset([("who?", "cat", ())], [("how many?", "one", two)], [("how many?", "one", two[:1])])
    items = [item([sample]) for sample in samples]
    assign(items, samples)
    assert [item.decoys for item in items] == [[], ["B"], []], "a single option is right"
    assert [item.lost is None for item in items] == [False, True, False]
    assert all("no other answer" in str(item.lost) for item in items if item.lost is not None)


def test_a_dataset_with_one_answer_is_refused() -> None:
    config = ProtectConfig(variant="mislead")
    same = dataset([("is it?", "yes", ())], [("was it?", "Yes", ())])
    with pytest.raises(ConfigError, match=r"the answer is always 'yes'.* take more samples or another variant"):
        require_something_to_do(Dataset(Path(), [], same), config)
    require_something_to_do(Dataset(Path(), [], same), ProtectConfig(variant="image"))
    for other in (("is it?", "no", ()), ("is it?", "yes", ("yes", "no")), (None, "", ())):
        (more,) = dataset([other])
        require_something_to_do(Dataset(Path(), [], [*same, replace(more, image=Path("9.png"))]), config)
