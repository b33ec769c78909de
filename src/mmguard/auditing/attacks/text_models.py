"""Changes of a question by a language model of the thief's: a perplexity filter, and paraphrase."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch

from mmguard.auditing.attacks.text_rules import without
from mmguard.lvlm.language import LanguageModel, load_language_model

_REQUEST = (
    "Rewrite the following question in other words, as one fluent sentence of the same language and meaning. Leave out "
    "words that do not belong to it. Reply with the rewritten question alone.\n\n"
)
_QUOTES = "\"'“”‘’"


@functools.cache
def language_model(name: str, device: torch.device) -> LanguageModel:
    """A causal language model by hub id or local folder, loaded once for all attacks of a process.

    Raises:
        SurrogateError: it cannot be loaded.
    """
    return load_language_model(name, device)


def drop_surprising(question: str, most: int, perplexities: Callable[[Sequence[str]], Sequence[float | None]]) -> str:
    """Drops word after word, each time that whose removal lowers the perplexity most, until none lowers it.

    Args:
        question: with two words or more; a single one stays.
        most: number of words that may be dropped.
        perplexities: of many texts; None for one that cannot be judged.
    """
    (least,) = perplexities([question])
    for _ in range(most):
        words = len(question.split())
        if least is None or words < 2:
            break
        candidates = [without(question, {place}) for place in range(words)]
        judged = zip(perplexities(candidates), candidates, strict=True)
        lower = [(perplexity, text) for perplexity, text in judged if perplexity is not None and perplexity < least]
        if not lower:
            break
        least, question = min(lower)
    return question


def paraphrase(question: str, model: LanguageModel) -> str:
    """The question in the model's words, by greedy decoding; empty if the model says nothing.

    Raises:
        SurrogateError: the model has no chat template.
    """
    # Room for about twice the length; a model that rambles is cut off.
    reply = model.reply(_REQUEST + question, most_tokens=32 + 4 * len(question.split()))
    return reply.strip().strip(_QUOTES).strip()
