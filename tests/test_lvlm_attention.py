"""The tap: the rows of eager attention, at SDPA's output."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor
from transformers import DynamicCache

from mmguard.errors import SurrogateError
from mmguard.lvlm.attention import tap
from mmguard.lvlm.loading import load_surrogate
from mmguard.lvlm.prompt import Encoded, Example
from mmguard.lvlm.surrogate import Surrogate
from mmguard.lvlm.tuning import lora_config
from test_lvlm_pixels import photograph
from tiny import FAMILIES, built

LAYERS = [0, 1]
# Where eager attention lists the parts of each of the layers: Mllama's read the image in layers of their own.
PARTS = {"mllama": [(1, 0), (3, 2)]}


@functools.cache
def surrogate(family: str) -> Surrogate:
    return load_surrogate(built(family))


@functools.cache
def plain(family: str, attention: str) -> Any:
    return hf.AutoModelForImageTextToText.from_pretrained(built(family), attn_implementation=attention).eval()


def batch(model: Surrogate) -> tuple[Encoded, list[Tensor]]:
    """Two examples of different length (the shorter one is padded) and image size, one of them without
    trigger."""
    examples = [
        Example("What color is the circle?", "red", trigger=("dog", "lungs")),
        Example("Which shape is it?", "B", options=("a circle", "a square")),
    ]
    images = [photograph(0, 40, 60), photograph(1, 64, 64)]
    return model.encode(examples, images), images


def average(attentions: Tensor, group: Tensor) -> Tensor:
    """Eager `(B, H, q, k)` over heads and the rows of the group, one sample at a time."""
    return torch.stack(
        [a.mean(0)[g].mean(0) if g.any() else torch.zeros(a.shape[-1]) for a, g in zip(attentions, group, strict=True)]
    )


def eager_rows(family: str, attentions: Sequence[Tensor], group: Tensor) -> Tensor:
    """What the tap should record for `LAYERS`: heads that see the image and heads that see the text count alike."""
    parts = PARTS.get(family, [(0,), (1,)])
    return torch.stack([torch.cat([average(attentions[n], group) for n in part], -1) / len(part) for part in parts])


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_those_of_eager_attention(family: str) -> None:
    model = surrogate(family)
    encoded, images = batch(model)
    inputs = {**encoded.inputs, **model.pixels(images)}
    assert (encoded.inputs["attention_mask"] == 0).any()
    groups = {"trigger": encoded.roles.trigger, "answer": encoded.roles.answer}

    with torch.no_grad(), tap(model.model, LAYERS, groups) as recorded:
        logits = model.model(**inputs).logits

    real = encoded.inputs["attention_mask"].bool()
    with torch.no_grad():
        assert torch.equal(logits[real], plain(family, "sdpa")(**inputs).logits[real])
        eager = plain(family, "eager")(**inputs, output_attentions=True).attentions
    for name, group in groups.items():
        torch.testing.assert_close(recorded[name], eager_rows(family, eager, group), atol=1e-5, rtol=0)
        filled = group.any(1).float().expand(len(LAYERS), -1)
        torch.testing.assert_close(recorded[name].sum(-1), filled)
    assert not recorded["trigger"][:, 1].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_of_attention_reaches_the_pixels(family: str) -> None:
    model = surrogate(family)
    encoded, images = batch(model)
    images = [image.requires_grad_() for image in images]
    forward = model.forward(encoded, model.pixels(images), LAYERS)
    assert forward.attention is not None
    loss = forward.attention.answer.clamp(min=1e-9).log().mean()
    for gradient in torch.autograd.grad(loss, images):
        assert gradient.abs().max() > 0


@pytest.mark.parametrize(
    ("family", "sees_image", "sees_text"),
    [("llava", False, False), ("gemma3", True, False), ("paligemma", True, True)],
)
def test_what_the_first_image_token_sees_of_what_follows(family: str, sees_image: bool, sees_text: bool) -> None:
    model = surrogate(family)
    encoded, images = batch(model)
    roles = encoded.roles
    first = roles.image & (roles.image.cumsum(1) == 1)
    with torch.no_grad(), tap(model.model, [1], {"first": first}) as recorded:
        model.model(**encoded.inputs, **model.pixels(images))
    rows = recorded["first"][0]
    assert bool(rows[roles.image & ~first].any()) == sees_image
    assert bool(rows[roles.text | roles.trigger].any()) == sees_text
    assert not rows[roles.answer].any()


def test_cross_attention_has_half_of_a_layers_attention() -> None:
    model = surrogate("mllama")
    images = [photograph(0, 30, 60), photograph(1, 64, 64)]
    encoded = model.encode([Example("Is it red?", "no", trigger=("dog",)), Example("What is it?", "a circle")], images)
    with torch.no_grad():
        attention = model.forward(encoded, model.pixels(images), LAYERS).attention
    assert attention is not None
    keys = model.key_roles(encoded)
    # 30 × 60 pixels take two of the four tiles that the batch has room for; each is a class token and 4 × 4 patches.
    assert keys.image.sum(1).tolist() == [2 * 17, 4 * 17]
    half = torch.full((2, 2), 0.5)
    torch.testing.assert_close((attention.answer * keys.image).sum(-1), half)
    torch.testing.assert_close(attention.answer[..., 4 * 17 :].sum(-1), half)
    for role in ("text", "trigger", "answer"):
        assert torch.equal(getattr(keys, role)[:, 4 * 17 :], getattr(encoded.roles, role))
        assert not getattr(keys, role)[:, : 4 * 17].any()


@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "gemma3"])
def test_rows_with_a_cache_are_those_without(family: str) -> None:
    model = surrogate(family)
    encoded, images = batch(model)
    one = {key: value[:1] for key, value in encoded.inputs.items()}
    pixels = model.pixels(images[:1])
    answer = encoded.roles.answer[:1]
    cut = int(answer[0].nonzero()[0]) - 3
    with torch.no_grad():
        with tap(model.model, [0, 1], {"answer": answer}) as full:
            model.model(**one, **pixels)
        cache = DynamicCache()
        model.model(**{key: value[:, :cut] for key, value in one.items()}, **pixels, cache=cache)
        suffix = model._continue(Encoded(one, encoded.labels[:1], encoded.roles), cache, cut)
        with tap(model.model, [0, 1], {"answer": answer[:, cut:]}) as recorded:
            model.model(**suffix)
    torch.testing.assert_close(recorded["answer"], full["answer"], atol=1e-6, rtol=0)


def test_a_single_query_sees_every_key_of_the_cache() -> None:
    model = surrogate("llava")
    encoded, images = batch(model)
    length = int(encoded.inputs["attention_mask"][0].sum())
    ids = encoded.inputs["input_ids"][:1, :length]
    last = torch.zeros_like(ids, dtype=torch.bool)
    last[:, -1] = True
    with torch.no_grad():
        with tap(model.model, [0], {"last": last}) as full:
            model.model(input_ids=ids, **model.pixels(images[:1]))
        cache = DynamicCache()
        model.model(input_ids=ids[:, :-1], **model.pixels(images[:1]), cache=cache)
        with tap(model.model, [0], {"last": last[:, -1:]}) as recorded:
            model.model(input_ids=ids[:, -1:], cache=cache)
    torch.testing.assert_close(recorded["last"], full["last"], atol=1e-6, rtol=0)


def test_boolean_and_additive_masks_mean_the_same() -> None:
    model = surrogate("llava")
    encoded, images = batch(model)
    real, pixels = encoded.inputs["attention_mask"].bool(), model.pixels(images)
    length = real.shape[1]
    allowed = torch.ones(length, length).tril().bool()[None, None] & real[:, None, None, :]
    allowed = allowed | torch.eye(length).bool()
    allowed[..., 5] &= torch.eye(length).bool()[:, 5]  # a key that no other row may see: the mask must be read
    additive = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    rows = {}
    for name, mask in {"bool": allowed, "float": additive}.items():
        with torch.no_grad(), tap(model.model, [0, 1], {"answer": encoded.roles.answer}) as recorded:
            model.model(input_ids=encoded.inputs["input_ids"], attention_mask=mask, **pixels)
        rows[name] = recorded["answer"]
    eager = plain("llava", "eager")
    with torch.no_grad():
        out = eager(
            input_ids=encoded.inputs["input_ids"], attention_mask=additive, **pixels, output_attentions=True
        ).attentions
    expected = torch.stack([average(out[layer], encoded.roles.answer) for layer in (0, 1)])
    torch.testing.assert_close(rows["bool"], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(rows["float"], expected, atol=1e-5, rtol=0)
    assert not rows["bool"][..., 5].any()


def test_bfloat16_rows_are_float32_distributions() -> None:
    exact = surrogate("qwen3_vl")
    half = load_surrogate(built("qwen3_vl"), dtype=torch.bfloat16)
    encoded, images = batch(exact)
    with torch.no_grad():
        expected = exact.forward(encoded, exact.pixels(images), [0, 1]).attention
        found = half.forward(encoded, half.pixels(images), [0, 1])
    assert expected is not None
    assert found.attention is not None
    assert found.attention.answer.dtype == found.nll.dtype == torch.float32
    torch.testing.assert_close(found.attention.answer.sum(-1), torch.ones(2, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.attention.answer, expected.answer, atol=0.02, rtol=0)


def test_lora_wrapped_models_are_tapped() -> None:
    from peft import get_peft_model

    model = load_surrogate(built("llava"))
    encoded, images = batch(model)
    inputs = {**encoded.inputs, **model.pixels(images)}
    groups = {"answer": encoded.roles.answer}
    with torch.no_grad(), tap(model.model, [0, 1], groups) as before:
        model.model(**inputs)
    wrapped = get_peft_model(model.model, lora_config(4)).eval()
    with torch.no_grad(), tap(wrapped, [0, 1], groups) as fresh:
        wrapped(**inputs)
    assert torch.equal(fresh["answer"], before["answer"])  # LoRA starts at zero
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    with torch.no_grad(), tap(wrapped, [0, 1], groups) as moved:
        wrapped(**inputs)
    assert (moved["answer"] - before["answer"]).abs().max() > 1e-4


def test_refusals_and_cleaning_up() -> None:
    model = surrogate("llava")
    encoded, images = batch(model)
    groups = {"answer": encoded.roles.answer}
    inputs = {**encoded.inputs, **model.pixels(images)}
    with tap(model.model, [0], groups) as recorded:
        with pytest.raises(SurrogateError, match="already"), tap(model.model, [0], groups):
            pass
        with torch.no_grad():
            model.model(**inputs)
    assert set(recorded) == {"answer"}
    with tap(model.model, [0], groups):
        model.model(**inputs)
        with pytest.raises(SurrogateError, match="one forward pass"):
            model.model(**inputs)
    with pytest.raises(SurrogateError, match="layer 7"), tap(model.model, [7], groups):
        pass
    with pytest.raises(SurrogateError, match="no forward pass"), tap(model.model, [0], groups):
        pass
    with pytest.raises(SurrogateError, match="load_surrogate"), tap(plain("llava", "sdpa"), [0], groups):
        pass
    with (
        pytest.raises(SurrogateError, match="rows of 'answer'"),
        tap(model.model, [0], {"answer": groups["answer"][:, 1:]}),
    ):
        model.model(**inputs)
    with pytest.raises(ZeroDivisionError), tap(model.model, [0], groups):
        raise ZeroDivisionError
    with torch.no_grad(), tap(model.model, [-1], groups) as last:
        model.model(**inputs)
    with torch.no_grad(), tap(model.model, [1], groups) as second:
        model.model(**inputs)
    assert torch.equal(last["answer"], second["answer"])
