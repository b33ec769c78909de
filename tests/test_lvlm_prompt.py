"""Token roles: every family's template, tokenizer and image expansion, with no knowledge of any."""

from __future__ import annotations

import functools
import re

import pytest
import torch
import transformers as hf
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mmguard.data.tasks import user_text
from mmguard.data.text import insert_trigger
from mmguard.errors import SampleError, SurrogateError
from mmguard.lvlm.loading import load_surrogate
from mmguard.lvlm.prompt import Encoded, Example
from mmguard.lvlm.surrogate import Surrogate
from test_lvlm_pixels import photograph
from tiny import FAMILIES, built

# What ends the assistant's turn in each template; nothing does in these two families.
END = {
    "llava": "<|im_end|>",
    "smolvlm": "<end_of_utterance>",
    "idefics3": "<end_of_utterance>",
    "paligemma": "<eos>",
    "gemma3": "<end_of_turn>",
    "mllama": "<|eot_id|>",
    "glm4v": "",
    "llava_next": "",
}
SHAPES = [(40, 60), (64, 64)]


@functools.cache
def surrogate(family: str) -> Surrogate:
    return load_surrogate(built(family))


def encode(family: str, *examples: Example) -> Encoded:
    return surrogate(family).encode(examples, [photograph(0, *SHAPES[n % 2]) for n in range(len(examples))])


def said(family: str, encoded: Encoded, role: str, row: int = 0) -> str:
    ids = encoded.inputs["input_ids"][row][getattr(encoded.roles, role)[row]]
    return surrogate(family).tokenizer.decode(ids, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_roles_decode_to_their_texts(family: str) -> None:
    encoded = encode(
        family,
        Example("What color is the circle?", "red", trigger=("dog", "lungs")),
        Example("Which shape is it?", "B", options=("a circle", "a square"), trigger=("tree",)),
        Example(None, "A red circle."),
        Example("Is the user an assistant?", "assistant"),
    )
    end = END.get(family, "<|im_end|>")

    assert said(family, encoded, "trigger", 0) == " dog lungs"
    assert said(family, encoded, "trigger", 1) == " tree"
    assert said(family, encoded, "trigger", 2) == said(family, encoded, "trigger", 3) == ""
    assert said(family, encoded, "text", 0).strip() == "What color is the circle?"
    options = "\nA. a circle\nB. a square\nAnswer with the option's letter."
    assert said(family, encoded, "text", 1).strip() == "Which shape is it?" + options
    assert said(family, encoded, "text", 2).strip() == "Describe the image."
    assert said(family, encoded, "text", 3).strip() == "Is the user an assistant?"
    for row, answer in enumerate(["red", "B", "A red circle.", "assistant"]):
        assert said(family, encoded, "answer", row).strip() == answer + end


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trigger_may_stand_between_words_of_the_question(family: str) -> None:
    encoded = encode(family, Example("What color is the circle?", "red", trigger=("dog", "lungs"), after=2))
    assert said(family, encoded, "trigger") == " dog lungs"
    assert said(family, encoded, "text").strip() == "What color is the circle?"


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_images_and_padding(family: str) -> None:
    encoded = encode(family, Example("Is it red?", "yes"), Example("Is it a dog?", "no it is a large circle of stone"))
    ids, mask, roles = encoded.inputs["input_ids"], encoded.inputs["attention_mask"].bool(), encoded.roles
    model = surrogate(family).model

    assert torch.equal(roles.image, ids == model.config.image_token_id)
    assert torch.equal(encoded.labels != -100, roles.answer)
    assert torch.equal(encoded.labels[roles.answer], ids[roles.answer])
    parts = torch.stack([roles.image, roles.text, roles.trigger, roles.answer]).int().sum(0)
    assert parts.max() == 1
    assert not parts[~mask].any()
    assert (mask.int().diff(dim=1) <= 0).all()  # right padding
    assert not mask.all()
    # The model takes exactly as many image features as there are image tokens: it raises otherwise.
    with torch.no_grad():
        model(**encoded.inputs, **surrogate(family).pixels([photograph(0, *shape) for shape in SHAPES]))


@pytest.mark.parametrize("family", FAMILIES)
def test_token_ids_are_those_of_the_models_own_processor(family: str) -> None:
    from test_lvlm_pixels import pil

    processor = surrogate(family).processor
    image = photograph(0, *SHAPES[0])
    user = user_text(insert_trigger("Which shape is it?", ("tree",)), ("a circle", "a square"))
    encoded = encode(family, Example("Which shape is it?", "A", ("a circle", "a square"), ("tree",)))
    if family == "paligemma":  # it has no chats, but makes the labels itself
        expected = processor(images=pil(image), text="<image>" + user, suffix="A", return_tensors="pt")
        assert torch.equal(encoded.labels, expected.pop("labels"))
    else:
        content = [{"type": "image", "image": pil(image)}, {"type": "text", "text": user}]
        answer = "A" if family == "glm4v" else [{"type": "text", "text": "A"}]  # whose template prints it as it is
        chat = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
        expected = processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt")

    pixels = surrogate(family).pixels([image])
    assert set(encoded.inputs) | set(pixels) == set(expected)
    for key, value in (encoded.inputs | pixels).items():
        assert torch.equal(value, expected[key]), key


@pytest.mark.parametrize("family", ["llava", "smolvlm", "gemma3"])
def test_a_trigger_that_merges_is_found_whole(family: str) -> None:
    # "blu" and "re" are pieces of known words, so their tokens depend on what stands around them.
    for words in [("blu",), ("re", "d"), ("th", "e"), ("qzx",), ("redcircle", "of")]:
        encoded = encode(family, Example("Is it", "no", trigger=words))
        assert said(family, encoded, "trigger") == " " + " ".join(words)
        assert said(family, encoded, "text").strip() == "Is it"


@pytest.mark.parametrize("family", ["llava", "gemma3", "mllama"])
def test_templates_that_strip(family: str) -> None:
    encoded = encode(family, Example("  What is it? ", " red ", trigger=("dog",)))
    assert said(family, encoded, "trigger").strip() == "dog"
    assert said(family, encoded, "text").strip() == "What is it?"
    assert said(family, encoded, "answer").strip().startswith("red")


@given(
    # Readers leave out questions that are blank.
    st.text(st.characters(exclude_categories=["Cs", "Co"], max_codepoint=0x2FFF), max_size=24).filter(str.strip),
    st.lists(st.text("abcdefgxyz", min_size=1, max_size=8), min_size=1, max_size=3),
    st.sampled_from(["qwen3_vl", "smolvlm", "gemma3"]),
)
@settings(max_examples=60, deadline=None)
def test_roles_of_any_question(question: str, words: list[str], family: str) -> None:
    assume(not re.search("<[^>]*>", question))  # which may be a control token, and then is refused
    encoded = encode(family, Example(question, "yes", trigger=tuple(words)))
    trigger = said(family, encoded, "trigger")
    assert trigger.strip().endswith(" ".join(words))
    if question[-1:].isascii() and not question[-1:].isspace():
        assert trigger.strip() == " ".join(words)
    together = encoded.roles.text | encoded.roles.trigger
    ids = encoded.inputs["input_ids"][0][together[0]]
    whole = surrogate(family).tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert whole.strip() == insert_trigger(question, words).strip()


@pytest.mark.parametrize("family", FAMILIES)
def test_control_tokens_in_texts_are_refused(family: str) -> None:
    tokenizer = surrogate(family).tokenizer
    tokens = ["<image>", "<|im_start|>", tokenizer.eos_token, surrogate(family).processor.image_token]
    for token in dict.fromkeys(tokens):
        for text in (f"What is {token} for?", "What is it?"):
            example = Example(text, "red" if token in text else f"red{token}")
            if token in tokenizer.get_vocab():
                with pytest.raises(SampleError, match=rf"{re.escape(token)}.*control token"):
                    encode(family, example)
            else:
                assert said(family, encode(family, example), "text").strip() == text


@pytest.mark.parametrize("family", ["qwen3_vl", "llava"])
def test_words_that_were_added_to_a_vocabulary_are_words(family: str) -> None:
    model = load_surrogate(built(family))
    model.tokenizer.add_tokens(["<b>", "\n\n", "circle"])
    example = Example("Which <b>circle</b>?\n\nIs it red?", "\n\nred circle", trigger=("dog",))
    encoded = model.encode([example], [photograph(0, *SHAPES[0])])
    for role, text in [("text", example.question), ("trigger", "dog")]:
        assert model.tokenizer.decode(encoded.inputs["input_ids"][getattr(encoded.roles, role)]).strip() == text
    more = model.reworded(example, photograph(0, *SHAPES[0])).encode([("dog",)])
    assert torch.equal(more.labels, encoded.labels)


def test_added_tokens_are_listed_once_for_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    original = hf.PreTrainedTokenizerFast.added_tokens_decoder
    texts = surrogate("qwen3_vl").reworded(Example("Is it red?", "no", trigger=("dog",)), photograph(0, *SHAPES[0]))
    monkeypatch.setattr(
        hf.PreTrainedTokenizerFast,
        "added_tokens_decoder",
        property(lambda self: (asked.append(self), original.fget(self))[1]),
    )
    encode("qwen3_vl", *[Example("Is it red?", answer) for answer in ("yes", "no", "red")])
    once = len(asked)
    texts.encode([("dog",), ("cat",), ("tree",)])
    assert once == len(asked) == 1


def test_a_caption_takes_no_trigger() -> None:
    with pytest.raises(SampleError, match="caption"):
        encode("llava", Example(None, "A dog.", trigger=("red",)))


def test_a_template_that_rewrites_texts_is_refused() -> None:
    model = load_surrogate(built("llava"))
    model.processor.chat_template = model.processor.chat_template.replace("part['text']", "part['text'] | upper")
    with pytest.raises(SurrogateError, match="changes the text"):
        model.encode([Example("What is it?", "red")], [photograph(0, 32, 32)])


def test_a_template_without_the_image_is_refused() -> None:
    model = load_surrogate(built("qwen3_vl"))
    model.model.config.image_token_id = len(model.tokenizer)
    with pytest.raises(SurrogateError, match="no image token"):
        model.encode([Example("What is it?", "red")], [photograph(0, 32, 32)])
