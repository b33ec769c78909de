"""Fluent triggers: only words that a causal language model finds likely where they are to stand."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mmguard.data.text import trigger_start
from mmguard.errors import ConfigError
from mmguard.lvlm.language import LanguageModel


class Fluency:
    """Which words a language model finds likely to follow a text.

    What stands behind them is not looked at: behind a trigger at the end of a question there is nothing.

    Args:
        model: the language model.
        words: those to choose from (Eq. 16). What is several tokens for the language model is never likely.
        top_k: how many words are likely.

    Raises:
        ConfigError: none of the words is a token of the language model.
    """

    def __init__(self, model: LanguageModel, words: Sequence[str], top_k: int) -> None:
        self._words = [word for word in dict.fromkeys(words) if word in model.tokens]
        if not self._words:
            raise ConfigError(f"fluency {model.name}: it has no word in common with the surrogates: take another model")
        self._model = model
        self._tokens = torch.tensor([model.tokens[word] for word in self._words])
        self._top_k = min(top_k, len(self._words))

    def likely(self, question: str, words: Sequence[str] = (), after: int | None = None) -> set[str]:
        """The words that may follow those that are inserted into a question already.

        Args:
            question: the owner's.
            words: inserted before this one.
            after: how many of the question's words stand before them; None if all do.
        """
        text = " ".join([question[: trigger_start(question, after)], *words])
        scores = self._model.next_scores(text).cpu()[self._tokens]
        return {self._words[place] for place in scores.topk(self._top_k).indices.tolist()}
