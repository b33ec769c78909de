"""The zoo's architectures as the pretraining script builds them, with random weights."""

from __future__ import annotations

import copy
import functools
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import pretrain_zoo
import zoo_tokenizers
from mmguard.lvlm.candidates import Candidates
from mmguard.lvlm.loading import load_surrogate
from mmguard.lvlm.prompt import Example
from mmguard.lvlm.surrogate import Surrogate
from test_lvlm_pixels import photograph, pil
from zoo_models import MODELS

_HOME = tempfile.TemporaryDirectory(prefix="mmguard-zoo-")
UNIGRAM = ("gemma3-tiny", "mllama-tiny")
EXAMPLE = Example("What color is the circle?", "red", trigger=("house", "open"))
TRIGGERS = [("house", "open"), ("river", "red"), ("qzx", "tree"), ("lungs", "of")]
"""Words of one token and of several."""


@functools.cache
def built(name: str) -> tuple[Any, Any]:
    """A model as training begins; do not change it."""
    torch.manual_seed(0)
    return MODELS[name]()


@functools.cache
def saved(name: str) -> Path:
    folder = Path(_HOME.name) / name
    pretrain_zoo.save(*built(name), name, {}, folder)
    return folder


@functools.cache
def surrogate(name: str) -> Surrogate:
    model = load_surrogate(saved(name), device="cpu")
    for parameter in model.model.parameters():
        if parameter.ndim > 1:
            parameter.data *= 5  # attention that is not uniform, logits that differ
    return model


def batch(name: str) -> dict[str, torch.Tensor]:
    return next(pretrain_zoo.training_batches(random.Random(0), built(name)[1], 2))


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_is_a_plain_hugging_face_folder(name: str) -> None:
    model, _ = built(name)
    loaded = AutoModelForImageTextToText.from_pretrained(saved(name))
    processor = AutoProcessor.from_pretrained(saved(name))
    assert loaded.dtype == torch.float16
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value.half()), key
    assert 1e6 <= sum(p.numel() for p in model.parameters()) <= 4e6
    assert {path.suffix for path in saved(name).iterdir()} == {".json", ".jinja", ".safetensors"}
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What color is it?"}]}],
        add_generation_prompt=True,
    )
    inputs = processor(text=[text], images=[[pil(photograph(0, 96, 96))]], return_tensors="pt")
    said = loaded.float().generate(**inputs, max_new_tokens=3, do_sample=False)
    assert inputs["input_ids"].shape[1] < said.shape[1] <= inputs["input_ids"].shape[1] + 3


def test_all_models_together_fit_into_the_package() -> None:
    assert sum(path.stat().st_size for name in MODELS for path in saved(name).iterdir()) < 40e6


@pytest.mark.parametrize("name", MODELS)
def test_training_goes_on_from_saved_weights(name: str) -> None:
    model, processor = built(name)
    changed = copy.deepcopy(model)
    for parameter in changed.parameters():
        parameter.data.zero_()
    pretrain_zoo.load_weights(changed, processor, saved(name))
    for key, value in model.state_dict().items():
        assert torch.equal(changed.state_dict()[key], value.half().float()), key


def test_weights_of_another_vocabulary_are_refused() -> None:
    model, _ = built("gemma3-tiny")
    with pytest.raises(SystemExit, match="train it anew"):
        pretrain_zoo.load_weights(model, built("llava-tiny")[1], saved("gemma3-tiny"))


@pytest.mark.parametrize("name", MODELS)
def test_labels_are_the_answers_and_their_ends(name: str) -> None:
    _, processor = built(name)
    rng = random.Random(3)
    image, questions = pretrain_zoo.draw(rng)
    chat = pretrain_zoo.conversation(rng, questions, noisy=True)
    labelled = pretrain_zoo.collate(processor, [image, image], [chat, chat[:2]])
    end = processor.tokenizer.eos_token
    for row, turns in ((0, chat), (1, chat[:2])):
        ids = labelled["labels"][row]
        answers = [turn["content"][0]["text"] + end for turn in turns if turn["role"] == "assistant"]
        assert processor.tokenizer.decode(ids[ids != -100]) == "".join(answers)
        assert torch.equal(ids[ids != -100], labelled["input_ids"][row][ids != -100])


@pytest.mark.parametrize("name", MODELS)
def test_the_image_has_a_say_from_the_first_step(name: str) -> None:
    inputs = batch(name)
    inputs["pixel_values"].requires_grad_(True)
    loss = pretrain_zoo.answer_loss(built(name)[0], inputs)
    (gradient,) = torch.autograd.grad(loss, inputs["pixel_values"])
    assert (gradient != 0).float().mean() > 0.4, "but for padding"


@pytest.mark.parametrize("name", MODELS)
def test_training_lowers_the_loss(name: str) -> None:
    model = copy.deepcopy(built(name)[0]).train()
    optimizers = pretrain_zoo.optimizers(model, 5e-3)
    inputs, losses = batch(name), []
    for _ in range(6):
        losses.append(pretrain_zoo.answer_loss(model, dict(inputs)))
        losses[-1].backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert losses[-1] < 0.75 * losses[0]


@pytest.mark.parametrize("name", MODELS)
def test_pixels_are_those_of_the_real_processor(name: str) -> None:
    model = surrogate(name)
    images = [photograph(1, 96, 128), photograph(2, 96, 96), photograph(3, 70, 50)]
    theirs = model.processor.image_processor([[pil(image)] for image in images], return_tensors="pt")
    ours = model.pixels([image.requires_grad_(True) for image in images])
    assert torch.equal(ours["pixel_values"].detach(), theirs["pixel_values"])
    gradients = torch.autograd.grad(ours["pixel_values"].square().sum(), images)
    assert all((gradient != 0).float().mean() > 0.7 for gradient in gradients), "LLaVA crops"


@pytest.mark.parametrize("name", MODELS)
def test_roles_and_forward(name: str) -> None:
    model, images = surrogate(name), [photograph(1, 96, 128), photograph(2, 96, 96)]
    examples = [EXAMPLE, Example("Which shape is it?", "B", options=("a circle", "a square"), trigger=("tree",))]
    encoded = model.encode(examples, images)
    spoken = {
        role: [model.tokenizer.decode(ids[mask]) for ids, mask in zip(encoded.inputs["input_ids"], rows, strict=True)]
        for role, rows in vars(encoded.roles).items()
    }
    end = model.tokenizer.eos_token
    assert spoken["trigger"] == [" house open", " tree"]
    assert [text.strip() for text in spoken["text"]] == [
        "What color is the circle?",
        "Which shape is it?\nA. a circle\nB. a square\nAnswer with the option's letter.",
    ]
    assert spoken["answer"] == ["red" + end, "B" + end]
    tokens = {"llava-tiny": 64, "mllama-tiny": 1}.get(name, 36)
    assert encoded.roles.image.sum(1).tolist()[1] == tokens
    forward = model.forward(encoded, model.pixels(images), layers=(0, 1))
    assert forward.nll.isfinite().all()
    assert forward.attention is not None


@pytest.mark.parametrize("name", MODELS)
def test_energy_stands_where_the_image_changed(name: str) -> None:
    model, image = surrogate(name), photograph(4, 96, 96)
    changed = image.clone()
    changed[:, 48:, :48] = 1 - changed[:, 48:, :48]
    encoded = model.encode([EXAMPLE], [image])
    energy = model.token_energy(encoded, model.pixels([changed]), model.pixels([image]))
    energy = energy[model.key_roles(encoded).image]
    if name == "mllama-tiny":
        assert energy[0] == 0  # the class token
        energy = energy[1:]
    side = int(len(energy) ** 0.5)
    expected = torch.zeros(side, side, dtype=torch.bool)
    expected[side // 2 :, : side // 2] = True
    assert torch.equal(energy.view(side, side) > 0, expected)


@pytest.mark.parametrize("name", MODELS)
def test_candidates_give_what_a_plain_batch_gives(name: str) -> None:
    model, image = surrogate(name), photograph(5, 96, 112)
    examples = [Example(EXAMPLE.question, EXAMPLE.answer, trigger=trigger) for trigger in TRIGGERS]
    encoded = model.encode(examples, [image] * len(examples))
    with torch.no_grad():
        expected = model.forward(encoded, model.pixels([image] * len(examples)))
        candidates = Candidates(model, EXAMPLE, image)
        found, forward = candidates(TRIGGERS)
    for key, value in encoded.inputs.items():
        assert torch.equal(found.inputs[key], value), key
    assert torch.equal(found.roles.trigger, encoded.roles.trigger)
    torch.testing.assert_close(forward.nll, expected.nll, atol=1e-4, rtol=0)
    assert expected.nll.std() > 1e-3, "candidates that differ"
    assert candidates._prefix is not None


@pytest.mark.parametrize("name", ["llava-tiny", *UNIGRAM])
def test_admissible_words_are_single_tokens_behind_a_space(name: str) -> None:
    model = surrogate(name)
    vocabulary = model.admissible_tokens()
    assert len(vocabulary.words) > 800
    assert {"red", "circle", "house"} <= set(vocabulary.words)
    for token, word in list(zip(vocabulary.ids.tolist(), vocabulary.words, strict=True))[::25]:
        assert model.tokenizer("What " + word + "?", add_special_tokens=False)["input_ids"].count(token) == 1


def test_two_models_have_another_tokenizer() -> None:
    pieces = {name: built(name)[1].tokenizer.convert_ids_to_tokens(range(2000 - 100)) for name in MODELS}
    assert all(pieces[name] == pieces["llava-tiny"] for name in MODELS if name not in UNIGRAM)
    assert pieces["gemma3-tiny"] == pieces["mllama-tiny"]
    red, open_ = surrogate("gemma3-tiny").tokenizer.tokenize("x red open")[1:]
    assert (red, open_) == ("▁red", "▁open")
    kinds = {name: built(name)[1].tokenizer.backend_tokenizer.model.__class__.__name__ for name in MODELS}
    assert {name for name, kind in kinds.items() if kind == "Unigram"} == set(UNIGRAM)


@pytest.mark.parametrize("text", ["naïve café 漢字 27", "two  spaces\tand <0x41> tabs", " leads and ends "])
@pytest.mark.parametrize("name", ["llava-tiny", *UNIGRAM])
def test_tokenizers_lose_no_text(name: str, text: str) -> None:
    tokenizer = built(name)[1].tokenizer
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_unigram_does_not_depend_on_the_order_of_the_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets have another order in every process, and the library's Unigram trainer another result on every run."""
    first = zoo_tokenizers.unigram((), bos="<s>", eos="</s>")
    backwards = zoo_tokenizers._corpus()[::-1]
    monkeypatch.setattr(zoo_tokenizers, "_corpus", lambda: backwards)
    second = zoo_tokenizers.unigram((), bos="<s>", eos="</s>")
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()
