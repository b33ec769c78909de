"""How good an attacker's answers are on clean test data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mmguard.auditing.arms import ImageStore, Row
from mmguard.auditing.attackers import Attacker, render
from mmguard.auditing.stats import FloatArray
from mmguard.config import AuditConfig
from mmguard.data.tasks import score, target_text, user_text
from mmguard.lvlm.generation import greedy
from mmguard.runtime.memory import in_parts
from mmguard.types import Sample


def evaluate(
    attacker: Attacker, samples: Sequence[Sample], config: AuditConfig, store: ImageStore | None = None
) -> FloatArray:
    """How right the attacker's answers are.

    Returns:
        Scores from 0 to 1, each by its sample's metric, in the order of `samples`. Shape: `(N,)`.
    """
    given = answers(attacker, samples, config, store)
    return np.array([score(text, sample) for text, sample in zip(given, samples, strict=True)], dtype=np.float64)


def answers(
    attacker: Attacker, samples: Sequence[Sample], config: AuditConfig, store: ImageStore | None = None
) -> list[str]:
    """The attacker's greedy answers, `config.eval_batch_size` samples at a time, half as many where memory is not
    enough, a quarter…; each ended at the end of its turn."""
    store = store if store is not None else ImageStore()
    rows = [
        Row(
            sample.id, sample.image, user_text(sample.question, sample.options), target_text(sample),
            max_pixels=config.max_pixels,
        )
        for sample in samples
    ]  # fmt: skip
    return in_parts(lambda part: _answer(attacker, part, config.max_new_tokens, store), rows, config.eval_batch_size)


@torch.inference_mode()
def _answer(attacker: Attacker, rows: Sequence[Row], max_new_tokens: int, store: ImageStore) -> list[str]:
    processor, tokenizer = attacker.processor, attacker.processor.tokenizer
    # The answer only serves to find where a prompt ends; it is never shown to the model.
    inputs = processor(
        images=[[row.load(store)] for row in rows],
        text=[render(processor, row.text, "x")[0] for row in rows],
        padding=True,
        padding_side="left",
        return_tensors="pt",
        add_special_tokens=False,  # the template has written them
    ).to(attacker.device, dtype=attacker.model.dtype)
    # The token that training ended turns with.
    end = tokenizer.convert_tokens_to_ids(render(processor, "x", "x")[1].lstrip().removeprefix("x"))
    said = greedy(attacker.model, tokenizer, inputs, max_new_tokens, [end])
    return [text.strip() for text in tokenizer.batch_decode(said, skip_special_tokens=True)]
