"""Answers that are a model's likeliest, whatever its folder says of how it likes to generate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig


@torch.inference_mode()
def greedy(model: Any, inputs: Mapping[str, Any], max_new_tokens: int, stops: Sequence[int], pad: int) -> Tensor:
    """The tokens that a model says behind a prompt, each the likeliest.

    Args:
        model: that of a `Surrogate`, or one with an adapter of PEFT.
        inputs: of the model, the prompts padded on the left.
        max_new_tokens: at most so many each.
        stops: tokens that end an answer.
        pad: the token that fills up what is shorter.

    Returns:
        `(B, n)`, without the prompts.
    """
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=list(stops), pad_token_id=pad
    )
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    # What is not set is taken from the model's own settings, which may punish repetition.
    own, base.generation_config = base.generation_config, GenerationConfig()
    try:
        output: Tensor = model.generate(**inputs, generation_config=settings)
    finally:
        base.generation_config = own
    return output[:, inputs["input_ids"].shape[1] :]
