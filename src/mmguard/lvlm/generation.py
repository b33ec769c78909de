"""Answers that are a model's likeliest, whatever its folder says of how it likes to generate."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig


@torch.inference_mode()
def greedy(
    model: Any, tokenizer: Any, inputs: Mapping[str, Any], max_new_tokens: int, ends: Collection[int | None]
) -> Tensor:
    """The tokens that a model says behind a prompt, each the likeliest.

    Args:
        model: that of a `Surrogate`, or one with an adapter of PEFT.
        tokenizer: of the model.
        inputs: of the model, the prompts padded on the left.
        max_new_tokens: at most so many each.
        ends: tokens that end an answer, besides those of model and tokenizer; None is none.

    Returns:
        `(B, n)`, without the prompts.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    own, eos, pad = base.generation_config, tokenizer.eos_token_id, tokenizer.pad_token_id
    known = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(token for token in {*known, eos, *ends} if token is not None),
        pad_token_id=eos if pad is None else pad,
    )
    # What is not set is taken from the model's own settings, which may punish repetition.
    base.generation_config = GenerationConfig()
    try:
        output: Tensor = model.generate(**inputs, generation_config=settings)
    finally:
        base.generation_config = own
    return output[:, inputs["input_ids"].shape[1] :]
