"""Answers are greedy, whatever a model's folder says."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model

import tiny
from mmguard.lvlm.generation import greedy
from mmguard.lvlm.loading import load_surrogate
from mmguard.lvlm.prompt import Example
from mmguard.lvlm.tuning import lora_config


@pytest.mark.parametrize("family", ["llava", "mllama"])
@pytest.mark.parametrize("adapted", [False, True])
def test_a_models_own_settings_change_no_answer(family: str, adapted: bool) -> None:
    surrogate = load_surrogate(tiny.built(family), device="cpu")
    image = torch.rand(3, 40, 60, generator=torch.Generator().manual_seed(0))
    encoded = surrogate.encode([Example("what color is it?", "red")], [image])
    inputs = encoded.inputs | surrogate.pixels([image])
    model = get_peft_model(surrogate.model, lora_config(4)) if adapted else surrogate.model
    tokenizer = surrogate.tokenizer
    expected = greedy(model, tokenizer, inputs, 6, [])
    assert expected.shape == (1, 6)
    own = surrogate.model.generation_config
    own.repetition_penalty, own.no_repeat_ngram_size, own.do_sample = 50.0, 1, True
    with torch.inference_mode():
        free = model.generate(**inputs, do_sample=False, max_new_tokens=6)[:, encoded.inputs["input_ids"].shape[1] :]
    assert not torch.equal(free, expected), "their settings would"
    assert torch.equal(greedy(model, tokenizer, inputs, 6, []), expected)
    assert surrogate.model.generation_config is own
