"""The zoo as shipped, and the drawings it was pretrained on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedConfig

from mmguard import zoo
from mmguard.data.images import load_image
from mmguard.data.readers import read_dataset
from mmguard.errors import SurrogateError
from mmguard.lvlm.attention import tap
from mmguard.lvlm.loading import load_surrogate
from mmguard.lvlm.prompt import Example
from mmguard.lvlm.surrogate import Surrogate
from mmguard.zoo import drawings


@pytest.fixture(scope="module", params=zoo.NAMES)
def surrogate(request: pytest.FixtureRequest) -> Surrogate:
    return load_surrogate(f"zoo:{request.param}", device="cpu")


def test_every_model_is_a_plain_hugging_face_folder() -> None:
    total = 0
    for name in zoo.NAMES:
        model = zoo.info(name)
        loaded = AutoModelForImageTextToText.from_pretrained(model.path)
        AutoProcessor.from_pretrained(model.path)
        assert loaded.config.model_type == model.family
        assert sum(p.numel() for p in loaded.parameters()) == model.parameters
        assert 1e6 <= model.parameters <= 4e6
        files = [path for path in model.path.iterdir() if path.is_file()]
        assert {path.suffix for path in files} <= {".json", ".jinja", ".safetensors"}
        total += sum(path.stat().st_size for path in files)
    assert total < 40e6


def test_names_are_checked() -> None:
    with pytest.raises(SurrogateError, match="llava-tiny"):
        zoo.path("gpt-tiny")


def samples(count: int = 4) -> tuple[list[Example], list[torch.Tensor]]:
    rows = read_dataset(f"easy-vqa:train:what:{count}").samples
    examples = [Example(str(s.question), s.answer, trigger=("red", "open")) for s in rows]
    return examples, [load_image(s.image) / 255 for s in rows]


def test_parity_with_the_real_processor(surrogate: Surrogate) -> None:
    """What is optimised is to the bit what a thief's processor makes of the saved file."""
    _, images = samples()
    ours = surrogate.pixels([image.clone().requires_grad_(True) for image in images])
    theirs = surrogate.processor.image_processor(
        [[(image * 255).round().to(torch.uint8)] for image in images], return_tensors="pt"
    )
    assert ours["pixel_values"].requires_grad
    assert torch.equal(ours["pixel_values"].detach(), theirs["pixel_values"])


def joined(attentions: Sequence[torch.Tensor], config: PreTrainedConfig) -> list[torch.Tensor]:
    """Attention layer by layer; cross-attention to the image (Mllama) is half of the layer behind it."""
    crossing = getattr(config.get_text_config(), "cross_attention_layers", ())
    own = [one for number, one in enumerate(attentions) if number not in crossing]
    if not crossing:
        return own
    pairs = zip((attentions[number] for number in crossing), own, strict=False)
    return [torch.cat(pair, dim=-1) / 2 for pair in pairs]


def test_mass_from_the_tap_is_mass_from_eager_attention(surrogate: Surrogate) -> None:
    from mmguard import losses

    examples, images = samples()
    encoded, pixels = surrogate.encode(examples, images), surrogate.pixels(images)
    layers = (0, 1)
    groups = {"trigger": encoded.roles.trigger, "answer": encoded.roles.answer}
    with torch.no_grad(), tap(surrogate.model, layers, groups) as rows:
        surrogate.model(**encoded.inputs, **pixels)
    eager = AutoModelForImageTextToText.from_pretrained(
        zoo.path(surrogate.name.removeprefix("zoo:")), attn_implementation="eager", dtype=torch.float32
    )
    with torch.no_grad():
        full = joined(eager(**encoded.inputs, **pixels, output_attentions=True).attentions, eager.config)
    keys = surrogate.key_roles(encoded)
    energy = surrogate.token_energy(encoded, surrogate.pixels([i.flip(2) for i in images]), pixels)
    perturbed = losses.perturbed_tokens(energy, keys.image, 0.1)
    for name, target in (("trigger", perturbed), ("answer", keys.trigger), ("answer", perturbed)):
        weight = groups[name].float() / groups[name].sum(1, keepdim=True)
        expected = torch.stack([torch.einsum("bhqk,bq->bk", full[k], weight) / full[k].shape[1] for k in layers])
        torch.testing.assert_close(losses.mass(rows[name], target), losses.mass(expected, target), atol=1e-5, rtol=0)


@pytest.mark.parametrize("domain", drawings.DOMAINS)
def test_drawings_have_questions_and_keep_held_out_answers_back(domain: str) -> None:
    rng = random.Random(0)
    asked = set()
    for _ in range(40):
        image, questions = drawings.DOMAINS[domain](rng, (96, 112))
        assert image.size == (96, 112)
        assert image.mode == "RGB"
        assert questions
        for question in questions:
            assert not question.options or question.answer in question.options
        kept = drawings.pretraining_questions(questions)
        assert all(q.verbal or q.answer not in drawings.HELD_OUT for q in kept)
        asked |= {q.text.lower() for q in kept}
    assert len(asked) > 5, "many phrasings"


def test_drawings_are_seeded() -> None:
    first, second = (drawings.scenes(random.Random(7), (96, 96)) for _ in range(2))
    assert first[0].tobytes() == second[0].tobytes()
    assert first[1] == second[1]


def test_word_list_is_plain_words() -> None:
    words = (Path(zoo.__file__).parent / "words.txt").read_text().split()
    assert len(set(words)) == len(words) > 900
    assert all(word.isascii() and word.isalpha() for word in words)
