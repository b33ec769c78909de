"""Many triggers for one sample: a shared prefix and short encodings must change no number."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import pytest
import torch

from mmguard.lvlm.candidates import Candidates
from mmguard.lvlm.loading import load_surrogate
from mmguard.lvlm.prefix import Prefix
from mmguard.lvlm.prompt import Encoded, Example
from mmguard.lvlm.surrogate import Forward, Surrogate
from test_lvlm_pixels import photograph
from tiny import FAMILIES, built

LAYERS = [0, 1]
TRIGGERS = [("dog", "the"), ("lungs", "red"), ("teal", "of"), ("qzx", "the"), ("of", "dog")]
"""Words of one token and of several."""


@functools.cache
def surrogate(family: str) -> Surrogate:
    return load_surrogate(built(family))


def example(options: tuple[str, ...]) -> Example:
    return Example("What is it?", "B" if options else "blue it is", options, ("the", "red"))


def batch(model: Surrogate, family: str, options: tuple[str, ...]) -> tuple[Encoded, Forward]:
    """The same triggers as a plain batch."""
    one = example(options)
    image = photograph(2, 40, 60)
    examples = [Example(one.question, one.answer, one.options, trigger) for trigger in TRIGGERS]
    encoded = model.encode(examples, [image] * len(examples))
    with torch.no_grad():
        return encoded, model.forward(encoded, model.pixels([image] * len(examples)), LAYERS)


def same(found: Encoded, expected: Encoded) -> None:
    assert found.inputs.keys() == expected.inputs.keys()
    for name, value in expected.inputs.items():
        assert torch.equal(found.inputs[name], value), name
    assert torch.equal(found.labels, expected.labels)
    for name, role in vars(expected.roles).items():
        assert torch.equal(getattr(found.roles, name), role), name


def close(found: Forward, expected: Forward) -> None:
    torch.testing.assert_close(found.nll, expected.nll, atol=1e-4, rtol=0)
    assert found.attention is not None
    assert expected.attention is not None
    torch.testing.assert_close(found.attention.trigger, expected.attention.trigger, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.attention.answer, expected.attention.answer, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", [(), ("a circle", "a square")])
def test_candidates_are_a_plain_batch(family: str, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    model = surrogate(family)
    monkeypatch.setattr(model, "candidates_at_once", 2)
    expected_encoded, expected = batch(model, family, options)
    Candidates(model, example(options), photograph(2, 40, 60))(TRIGGERS[:1])  # tries the model's prefix, once
    candidates = Candidates(model, example(options), photograph(2, 40, 60), LAYERS)
    calls: list[int] = []
    handle = model.model.register_forward_pre_hook(
        lambda _m, _a, kwargs: calls.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        encoded, forward = candidates(TRIGGERS)
        again = candidates(TRIGGERS[:1])[1]
    finally:
        handle.remove()
    same(encoded, expected_encoded)
    close(forward, expected)
    torch.testing.assert_close(again.nll, expected.nll[:1], atol=1e-4, rtol=0)
    if family == "paligemma":  # a prefix language model, whose image tokens see the trigger
        assert len(calls) == 3 + 1
        assert calls[:3] == [encoded.labels.shape[1]] * 3
        return
    # The image ran once for both calls, and what followed was shorter than it.
    assert len(calls) == 1 + 3 + 1
    assert calls[0] > int(encoded.roles.image[0].nonzero()[-1])
    assert all(calls[0] + suffix == encoded.labels.shape[1] for suffix in calls[1:4])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", [(), ("a circle", "a square")])
def test_only_the_tail_is_tokenised_again(
    family: str, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = surrogate(family)
    texts = model.reworded(example(options), photograph(2, 40, 60))
    expected = batch(model, family, options)[0]
    # Mllama's mask says for each token which tiles it sees, and PaliGemma's types where the answer begins: only the
    # processor can make these.
    assert texts._short == (family not in ("mllama", "paligemma"))
    if texts._short:
        monkeypatch.setattr(type(model.processor), "__call__", None)
    same(texts.encode(TRIGGERS), expected)


def test_a_tokenizer_that_does_not_split_there_goes_through_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    model = surrogate("llava")
    texts = model.reworded(example(()), photograph(2, 40, 60))
    tokenizer = type(model.tokenizer)
    plain = tokenizer.__call__

    def contextual(self: object, text: object, **kwargs: object) -> object:
        """As tokenizers do that put a space before whatever a text begins with."""
        if isinstance(text, list) and not any("<image>" in one for one in text):
            text = [" x" + one for one in text]
        return plain(self, text, **kwargs)

    monkeypatch.setattr(tokenizer, "__call__", contextual)
    wary = model.reworded(example(()), photograph(2, 40, 60))
    assert texts._short
    assert not wary._short
    same(wary.encode(TRIGGERS), batch(model, "llava", ())[0])


def test_candidates_that_differ_before_the_image_run_in_full() -> None:
    model, image = load_surrogate(built("qwen3_vl")), photograph(2, 40, 60)
    template = model.processor.chat_template
    part = "{% for part in message['content'] %}"
    model.processor.chat_template = template.replace(part, "{% for part in message['content'] | reverse %}")
    expected_encoded, expected = batch(model, "qwen3_vl", ())
    first = expected_encoded.roles.trigger[0].int().argmax(), expected_encoded.roles.image[0].int().argmax()
    assert first[0] < first[1]
    model.candidates_at_once = 2
    encoded, forward = Candidates(model, example(()), image, LAYERS)(TRIGGERS)
    same(encoded, expected_encoded)
    close(forward, expected)


@pytest.mark.parametrize("error", [TypeError, RuntimeError, IndexError, ValueError])
def test_a_model_that_takes_no_cache_runs_in_full(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_surrogate(built("llava"))
    expected = batch(model, "llava", ())[1]

    def older(*_: object, **__: object) -> None:
        raise error("unexpected keyword argument 'cache'")

    monkeypatch.setattr(model.model, "prepare_inputs_for_generation", older)
    with pytest.warns(UserWarning, match="every candidate is run in full"):
        forward = Candidates(model, example(()), photograph(2, 40, 60), LAYERS)(TRIGGERS)[1]
    close(forward, expected)


def test_running_out_of_memory_is_no_missing_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_surrogate(built("llava"))

    def short(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(model.model, "prepare_inputs_for_generation", short)
    with pytest.raises(torch.OutOfMemoryError):
        Candidates(model, example(()), photograph(2, 40, 60))(TRIGGERS)


@pytest.mark.parametrize("family", FAMILIES)
def test_searches_do_not_disturb_one_another(family: str) -> None:
    model = surrogate(family)
    sizes = [photograph(2, 40, 60), photograph(3, 64, 64)]
    alone = [Candidates(model, example(()), image)(TRIGGERS)[1].nll for image in sizes]
    mixed = [Candidates(model, example(()), image) for image in sizes]
    for one in mixed:
        one(TRIGGERS[:1])
    with torch.no_grad():
        model.forward(model.encode([example(())] * 2, sizes), model.pixels(sizes))
    for one, expected in zip(mixed, alone, strict=True):
        torch.testing.assert_close(one(TRIGGERS)[1].nll, expected, atol=1e-5, rtol=0)


def test_candidates_that_do_not_fit_run_in_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    model = surrogate("llava")
    expected = Candidates(model, example(()), photograph(2, 40, 60))(TRIGGERS)[1].nll
    sizes: list[int] = []
    plain = Surrogate.forward_from

    def tight(self: Surrogate, prefix: Prefix, part: Encoded, layers: Sequence[int] = ()) -> Forward:
        sizes.append(len(part.labels))
        if len(part.labels) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return plain(self, prefix, part, layers)

    monkeypatch.setattr(Surrogate, "forward_from", tight)
    monkeypatch.setattr(model, "candidates_at_once", 64)
    for _ in range(2):
        found = Candidates(model, example(()), photograph(2, 40, 60))(TRIGGERS)[1].nll
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert sizes == [5, 3, 2, 2, 1, 2, 2, 1], (
        "no number twice, and the next sample begins with what was enough for the last"
    )


def test_a_model_whose_beginning_depends_on_the_rest_runs_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a prefix language model, whose text attends both ways."""
    model = load_surrogate(built("llava"))
    plain = Surrogate.forward_from

    def wrong(self: Surrogate, prefix: Prefix, part: Encoded, layers: Sequence[int] = ()) -> Forward:
        forward = plain(self, prefix, part, layers)
        return Forward(forward.nll + 1, forward.embeddings, forward.attention)

    monkeypatch.setattr(Surrogate, "forward_from", wrong)
    with pytest.warns(UserWarning, match="every candidate is run in full, .* gives other losses"):
        found = Candidates(model, example(()), photograph(2, 40, 60), LAYERS)(TRIGGERS)
    close(found[1], batch(model, "llava", ())[1])
