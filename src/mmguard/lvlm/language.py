"""A causal language model: how likely a text is, which words may follow it, and what it replies."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.import_utils import is_gguf_available

from mmguard.errors import SurrogateError
from mmguard.lvlm.generation import greedy
from mmguard.lvlm.loading import moved, reading_weights
from mmguard.lvlm.surrogate import admissible_words
from mmguard.runtime.devices import require_usable
from mmguard.runtime.memory import in_parts, is_out_of_memory

_TOKENS_AT_ONCE = 4096
"""Logits of a batch are this number times the vocabulary: 2.4 GB for 150,000 tokens."""


class LanguageModel:
    """A causal language model that judges texts and replies to messages.

    Attributes:
        name: what it was loaded as.
        words: those that are a single token for it: what random words are drawn from.
        tokens: the id of each of these.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any) -> None:
        self.name = name
        self._model = model.eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self._begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        self.tokens = {word: token for token, word in admissible_words(tokenizer, len(tokenizer)).items()}
        self.words = tuple(self.tokens)
        self._most: int = getattr(model.config, "max_position_embeddings", None) or sys.maxsize

    @torch.inference_mode()
    def perplexities(self, texts: Sequence[str], tokens_at_once: int = _TOKENS_AT_ONCE) -> list[float | None]:
        """exp of the mean negative log-likelihood of each text's tokens.

        The first token counts where the model has a token for the beginning of a text.

        Args:
            texts: any number.
            tokens_at_once: texts run together as long as they have no more tokens, padding included, and memory is
                enough. Does not change the result.

        Returns:
            Of each text; None if it has no token to predict, or more than the model takes.

        Raises:
            SurrogateError: memory is not enough for one text.
        """
        ids = [self._ids(text) for text in texts]
        found: list[float | None] = [None] * len(texts)
        usable = [number for number in range(len(texts)) if 2 <= len(ids[number]) <= self._most]
        for batch in _batches(sorted(usable, key=lambda number: len(ids[number])), ids, tokens_at_once):
            with self._memory():
                nlls = in_parts(self._nll, [ids[number] for number in batch], len(batch))
            for number, nll in zip(batch, nlls, strict=True):
                found[number] = math.exp(nll) if nll < 700 else None  # beyond that, no float
        return found

    @torch.inference_mode()
    def next_scores(self, text: str) -> Tensor:
        """How likely each token is to follow a text, as logits. Shape: `(V,)`.

        Of a long text the model sees as much of its end as it takes. Where memory is not enough, the error says so as
        it is: who searches for triggers may go on with less.
        """
        ids = self._ids(text)[-self._most :] or [self._tokenizer.eos_token_id]
        logits = self._model(input_ids=torch.tensor([ids], device=self._model.device), logits_to_keep=1).logits
        return logits[0, -1].float()

    @torch.inference_mode()
    def reply(self, message: str, most_tokens: int) -> str:
        """What the model replies to a user's message, by greedy decoding.

        Args:
            message: the user's turn.
            most_tokens: where the reply is cut off.

        Raises:
            SurrogateError: the model has no chat template, or memory is not enough.
        """
        if not self._tokenizer.chat_template:
            raise SurrogateError(f"{self.name}: has no chat template; give a model tuned to follow instructions")
        prompt = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": message}],
            add_generation_prompt=True,
            enable_thinking=False,  # for templates that know of it
            return_tensors="pt",
            return_dict=True,
        )
        inputs = {name: prompt[name].to(self._model.device) for name in ("input_ids", "attention_mask")}
        with self._memory():
            (said,) = greedy(self._model, self._tokenizer, inputs, most_tokens, [])
        return self._tokenizer.decode(said, skip_special_tokens=True)

    def _ids(self, text: str) -> list[int]:
        return [*self._begin, *self._tokenizer.encode(text, add_special_tokens=False)]

    @contextmanager
    def _memory(self) -> Iterator[None]:
        """Says so where memory is not enough."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise SurrogateError(
                f"{self.name}: the memory of {self._model.device} is not enough for one text: take a smaller model or "
                "another device"
            ) from error

    def _nll(self, ids: Sequence[Sequence[int]]) -> list[float]:
        """Mean over each text's tokens but the first, in nats."""
        longest = max(map(len, ids))
        inputs = torch.tensor([[*row, *[0] * (longest - len(row))] for row in ids], device=self._model.device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids], device=self._model.device)
        logits = self._model(input_ids=inputs, attention_mask=mask, use_cache=False).logits[:, :-1].float()
        labels = inputs[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
        nll = functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        return (nll.sum(1) / mask[:, 1:].sum(1)).tolist()


def _batches(order: Sequence[int], ids: Sequence[Sequence[int]], tokens_at_once: int) -> Iterator[list[int]]:
    """Texts by number, shortest first, in batches that hold so many tokens with their padding, or a single text."""
    batch: list[int] = []
    for number in order:
        if batch and (len(batch) + 1) * len(ids[number]) > tokens_at_once:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def pretrained(name: str) -> dict[str, str]:
    """What `from_pretrained` is to be given for a hub id, a local folder or a GGUF file."""
    path = Path(name)
    if path.suffix == ".gguf" and path.is_file():
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    return {"pretrained_model_name_or_path": name}


def load_language_model(name: str, device: torch.device) -> LanguageModel:
    """Loads a causal language model in float32 on a CPU and bfloat16 elsewhere.

    Args:
        name: a hub id, a local folder or a GGUF file, whose weights are read as plain ones.
        device: where it runs.

    Raises:
        ConfigError: there is no such device.
        SurrogateError: there is no such model, it cannot be fetched or read or is not whole, it is no causal language
            model, or memory is not enough for it.
    """
    require_usable(device)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    source: dict[str, Any] = pretrained(name)
    if "gguf_file" in source and not is_gguf_available():
        raise SurrogateError(f"{name}: to read a GGUF file needs the package gguf: pip install 'mmguard[gguf]'")
    try:
        tokenizer = AutoTokenizer.from_pretrained(**source)
        with reading_weights(name):
            model = AutoModelForCausalLM.from_pretrained(**source, dtype=dtype, use_safetensors=True)
    except OSError as error:
        raise SurrogateError(
            f"{name}: cannot be read or fetched; give a hub id, a folder with tokenizer and safetensors weights, or a "
            f"GGUF file. Cause: {error}"
        ) from error
    except (ValueError, KeyError, ImportError) as error:
        raise SurrogateError(
            f"{name}: transformers {transformers.__version__} finds no causal language model in it; give one, such as "
            f"openai-community/gpt2. Cause: {error}"
        ) from error
    return LanguageModel(name, moved(name, model, device), tokenizer)
