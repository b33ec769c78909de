"""What pictures are to be mistaken for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmguard.config import ProtectConfig
from mmguard.errors import ConfigError
from mmguard.lvlm.prompt import Example
from mmguard.protection.batch import Item
from mmguard.protection.decoys import assign
from mmguard.protection.prepare import require_something_to_do
from mmguard.types import Dataset, Sample


def item(*asked: tuple[str | None, str, tuple[str, ...]]) -> Item:
    """One picture with samples of a question, an answer and options."""
    samples = [
        Sample(str(n), n, Path("a.png"), question, answer, (answer,), options)
        for n, (question, answer, options) in enumerate(asked)
    ]
    return Item(Path("a.png"), samples, torch.zeros(3, 1, 1), [()] * len(samples), [None] * len(samples))


def test_a_decoy_answers_the_same_question() -> None:
    items = [
        item(("what color?", "blue", ()), ("is it big?", "yes", ())),
        item(("what color?", "red", ()), ("is it big?", "no", ())),
        item(("what color?", "green", ())),
    ]
    assign(items)
    assert [one.decoys for one in items] == [["green", "no"], ["blue", "yes"], ["red"]]


def test_a_question_with_one_answer_takes_that_of_another() -> None:
    items = [item(("who?", "a cat", ())), item((None, "a dog", ())), item((None, "a hen", ()))]
    assign(items)
    assert [one.decoys for one in items] == [["a dog"], ["a hen"], ["a dog"]]


def test_the_decoy_of_an_option_is_the_next() -> None:
    three = ("one", "two", "three")
    items = [item(("how many?", "three", three), ("how many?", "B", three))]
    assign(items)
    assert items[0].decoys == ["A", "C"]
    assert [one.answer for one in items[0].examples] == ["C", "B"]
    assert [one.answer for one in items[0].aims] == ["A", "C"]
    assert all(isinstance(one, Example) and one.options == three for one in items[0].aims)


def test_a_dataset_with_one_answer_is_refused() -> None:
    config = ProtectConfig(variant="mislead")

    def data(*samples: Sample) -> Dataset:
        return Dataset(Path(), [], list(samples))

    same = item(("is it?", "yes", ()), ("was it?", "yes", ())).samples
    with pytest.raises(ConfigError, match=r"the answer is always 'yes'.* take more samples or another variant"):
        require_something_to_do(data(*same), config)
    require_something_to_do(data(*same), ProtectConfig(variant="image"))
    for other in (("is it?", "no", ()), ("is it?", "yes", ("yes", "no")), (None, "", ())):
        require_something_to_do(data(*same, *item(other).samples), config)
