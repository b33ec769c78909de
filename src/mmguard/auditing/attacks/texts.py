"""Attacks on texts: what a thief does to released questions to be rid of the words that were inserted.

| name | what happens to a question |
|---|---|
| `punct`, `case`, `space` | punctuation, letters' case or white space change at random: the paper's mild transforms |
| `drop-N` | N random words are dropped |
| `overlap` | words that occur in the answer are dropped, but for stop words |
| `tail` | what follows the last end of a sentence is cut |
| `last-N` | the last N words are cut |
| `vocab` | words that no list of English words has are dropped |
| `template-K` | words that fewer than K of all questions have after the same word are dropped |
| `window-N` | the run of up to N words is cut without which it becomes what the most others become |
| `telling-K` | words and pairs are dropped that K questions or more have, nine in ten of them with one answer |
| `spell` | spelling is corrected (English), and doubled words become one |
| `perplexity:MODEL@N` | up to N words are dropped whose removal lowers the perplexity under MODEL most |
| `paraphrase:MODEL` | MODEL, an instruction-tuned language model, rewords the question |

No attack touches options or answers, adds a question to a caption, or leaves a question without words.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch

from mmguard.auditing.attacks import text_models, text_rules
from mmguard.auditing.attacks.base import Attack, Factory, Rewrite, plain, strong
from mmguard.data.tasks import option_index
from mmguard.errors import ConfigError
from mmguard.lvlm.language import LanguageModel
from mmguard.runtime.devices import device_of
from mmguard.types import Sample

_MOST_WORDS = 100
_MOST_WINDOW = 20
_MOST_QUESTIONS = 1_000_000
_WORD = re.compile(r"\w")


def _filter(made: Callable[[Sequence[Sample]], Callable[[str], str]]) -> dict[str, Any]:
    """An attack that drops words, and sees all samples first; fields of `Attack`."""

    def corpus(samples: Sequence[Sample]) -> Rewrite:
        kept = made([one for one in samples if one.question is not None])
        return _rewrite(lambda question, sample, rng: kept(question))

    return {"corpus": corpus}


def _perplexity(parameter: str | None) -> Attack:
    form = "perplexity:MODEL@N"
    model, _, words = (parameter or "").rpartition("@")
    _model(form, parameter, model)
    most = _number(form, parameter, "N", words, 1, _MOST_WORDS)

    @functools.cache  # the same question is asked of many images
    def filtered(question: str) -> str:
        return text_models.drop_surprising(question, most, _language_model(model).perplexities)

    text = _rewrite(lambda question, sample, rng: filtered(question))
    return Attack(f"perplexity:{model}@{most}", text=text, models=(model,))


def _paraphrase(parameter: str | None) -> Attack:
    model = _model("paraphrase:MODEL", parameter, parameter)

    @functools.cache
    def reworded(question: str) -> str:
        return text_models.paraphrase(question, _language_model(model))

    text = _rewrite(lambda question, sample, rng: reworded(question))
    return Attack(f"paraphrase:{model}", text=text, models=(model,))


def _language_model(name: str) -> LanguageModel:
    return text_models.language_model(name, device_of("auto"))


def _rewrite(change: Callable[[str, Sample, torch.Generator], str]) -> Rewrite:
    """Changes the question of a sample, unless no letter or digit would be left of it."""

    def text(sample: Sample, generator: torch.Generator) -> str | None:
        if sample.question is None:
            return None
        changed = change(sample.question, sample, generator)
        return changed if _WORD.search(changed) else sample.question

    return text


def _answers(sample: Sample) -> list[str]:
    """The answer; of a multiple-choice question the text of the right option, since its letter is no word."""
    index = option_index(sample.answer, sample.options)
    return [sample.answer if index is None else sample.options[index]]


def _number(form: str, parameter: str | None, symbol: str, value: str | None, least: int, most: int) -> int:
    if value is None or not re.fullmatch("[0-9]{1,9}", value) or not least <= int(value) <= most:
        raise ConfigError(f"attack {form}: {symbol} is a whole number from {least} to {most}, not {parameter!r}")
    return int(value)


def _model(form: str, parameter: str | None, name: str | None) -> str:
    if not name:
        raise ConfigError(f"attack {form}: MODEL is a hub id or a local folder, and {parameter!r} names none")
    return name


TEXT_ATTACKS: dict[str, Factory] = {
    "punct": plain("punct", text=_rewrite(lambda question, _, rng: text_rules.change_punctuation(question, rng))),
    "case": plain("case", text=_rewrite(lambda question, _, rng: text_rules.change_case(question, rng))),
    "space": plain("space", text=_rewrite(lambda question, _, rng: text_rules.change_spaces(question, rng))),
    "drop": strong(
        "drop",
        lambda count: {"text": _rewrite(lambda question, _, rng: text_rules.drop_random(question, count, rng))},
        int,
        (1, _MOST_WORDS),
        "drop-5",
    ),
    "overlap": plain(
        "overlap", text=_rewrite(lambda question, sample, _: text_rules.drop_overlap(question, _answers(sample)))
    ),
    "tail": plain("tail", text=_rewrite(lambda question, *_: text_rules.cut_tail(question))),
    "last": strong(
        "last",
        lambda count: {"text": _rewrite(lambda question, *_: text_rules.cut_last(question, count))},
        int,
        (1, _MOST_WORDS),
        "last-5",
    ),
    "vocab": plain("vocab", text=_rewrite(lambda question, *_: text_rules.drop_unknown(question))),
    "template": strong(
        "template",
        lambda least: _filter(lambda some: text_rules.template_filter([str(one.question) for one in some], least)),
        int,
        (2, _MOST_QUESTIONS),
        "template-5",
    ),
    "window": strong(
        "window",
        lambda most: _filter(lambda some: text_rules.window_filter([str(one.question) for one in some], most)),
        int,
        (1, _MOST_WINDOW),
        "window-7",
    ),
    "telling": strong(
        "telling",
        lambda least: _filter(
            lambda some: text_rules.telling_filter([(str(one.question), _answers(one)[0]) for one in some], least)
        ),
        int,
        (2, _MOST_QUESTIONS),
        "telling-5",
    ),
    "spell": plain("spell", text=_rewrite(lambda question, *_: text_rules.correct_spelling(question))),
    "perplexity": _perplexity,
    "paraphrase": _paraphrase,
}
"""A factory by the name of each attack; it takes what follows the name and its dash or colon, or None."""
