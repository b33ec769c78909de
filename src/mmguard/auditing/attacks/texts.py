"""Attacks on texts."""

from __future__ import annotations

import string
from collections.abc import Callable

import torch

from mmguard.auditing.attacks.base import Attack, Factory
from mmguard.errors import ConfigError
from mmguard.types import Sample


def _on_question(name: str, change: Callable[[str], str]) -> Attack:
    def text(sample: Sample, generator: torch.Generator) -> str | None:
        return None if sample.question is None else change(sample.question)

    return Attack(name, text=text)


def _drop(parameter: str | None) -> Attack:
    if parameter is None or not parameter.isdecimal() or int(parameter) < 1:
        raise ConfigError(f"attack drop-{parameter}: give the number of words to drop, such as drop-5")
    count = int(parameter)
    return _on_question(f"drop-{count}", lambda question: " ".join(question.split()[:-count]))


def _punct(parameter: str | None) -> Attack:
    return _on_question("punct", lambda question: question.translate(str.maketrans("", "", string.punctuation)))


def _case(parameter: str | None) -> Attack:
    return _on_question("case", str.swapcase)


def _space(parameter: str | None) -> Attack:
    return _on_question("space", lambda question: question.replace(" ", "  "))


TEXT_ATTACKS: dict[str, Factory] = {"drop": _drop, "punct": _punct, "case": _case, "space": _space}
