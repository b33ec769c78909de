"""The surrogate as a whole: losses, candidates over one cache, energies, vocabulary, loading."""

from __future__ import annotations

import functools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from transformers.models.mllama.modeling_mllama import MllamaVisionEncoderLayer

from mmguard.errors import ConfigError, SurrogateError
from mmguard.lvlm.loading import load_surrogate
from mmguard.lvlm.pixels import _call, shrunk, to_uint8
from mmguard.lvlm.prompt import Example
from mmguard.lvlm.surrogate import Forward, Surrogate
from mmguard.perturb.budget import ImageBudget
from mmguard.perturb.image import descend
from test_lvlm_pixels import photograph
from tiny import FAMILIES, built

LAYERS = [0, 1]
EXAMPLES = [
    Example("What color is the circle?", "red", trigger=("dog", "lungs")),
    Example("Which shape is it?", "B", options=("a circle", "a square")),
    Example("Is it red?", "no it is not", trigger=("of",)),
]


@functools.cache
def surrogate(family: str) -> Surrogate:
    return load_surrogate(built(family))


def images() -> list[Tensor]:
    shared = photograph(0, 40, 60)
    return [shared, photograph(1, 64, 64), shared]


def close(found: Forward, expected: Forward, tolerance: float) -> None:
    torch.testing.assert_close(found.nll, expected.nll, atol=tolerance, rtol=0)
    assert (found.attention is None) == (expected.attention is None)
    if found.attention is not None and expected.attention is not None:
        torch.testing.assert_close(found.attention.trigger, expected.attention.trigger, atol=tolerance, rtol=0)
        torch.testing.assert_close(found.attention.answer, expected.attention.answer, atol=tolerance, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_nll_is_the_mean_over_labels_of_the_plain_model(family: str) -> None:
    model = surrogate(family)
    plain = hf.AutoModelForImageTextToText.from_pretrained(built(family)).eval()
    encoded, pixels = model.encode(EXAMPLES, images()), model.pixels(images())
    with torch.no_grad():
        found = model.forward(encoded, pixels).nll
        logits = plain(**encoded.inputs, **pixels).logits
    for row in range(len(EXAMPLES)):
        expected = functional.cross_entropy(logits[row, :-1], encoded.labels[row, 1:], ignore_index=-100)
        torch.testing.assert_close(found[row], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_computed_for_labels_alone(family: str) -> None:
    model = surrogate(family)
    encoded, pixels = model.encode(EXAMPLES, images()), model.pixels(images())
    rows: list[int] = []
    head = model.model.get_output_embeddings()
    handle = head.register_forward_hook(lambda _m, _i, logits: rows.append(logits.numel() // logits.shape[-1]))
    model.forward(encoded, pixels)
    handle.remove()
    assert rows == [int(encoded.roles.answer.sum())]
    assert not head._forward_pre_hooks


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_is_its_samples(family: str) -> None:
    model = surrogate(family)
    with torch.no_grad():
        together = model.forward(model.encode(EXAMPLES, images()), model.pixels(images()), LAYERS)
        for row, (example, image) in enumerate(zip(EXAMPLES, images(), strict=True)):
            alone = model.forward(model.encode([example], [image]), model.pixels([image]), LAYERS)
            torch.testing.assert_close(together.nll[row], alone.nll[0], atol=1e-4, rtol=0)
            assert together.attention is not None
            assert alone.attention is not None
            length = alone.attention.answer.shape[-1]
            torch.testing.assert_close(
                together.attention.answer[:, row, :length], alone.attention.answer[:, 0], atol=1e-5, rtol=0
            )
            assert not together.attention.answer[:, row, length:].any()


@pytest.mark.parametrize("family", ["qwen3_vl", "glm4v", "smolvlm"])
def test_a_picture_above_the_limit_becomes_fewer_tokens(family: str) -> None:
    full = load_surrogate(built(family))
    model, image = full.limited(1024), photograph(2, 96, 128)
    small = full.encode(EXAMPLES[:1], [shrunk(image, 1024)])
    encoded = model.encode(EXAMPLES[:1], [image])
    assert torch.equal(encoded.inputs["input_ids"], small.inputs["input_ids"])
    if family != "smolvlm":  # it makes all pictures equally large
        assert encoded.roles.image.sum() < full.encode(EXAMPLES[:1], [image]).roles.image.sum()
    assert torch.equal(model.reworded(EXAMPLES[0], image).base.labels, small.labels)
    pixels = model.pixels([image, image])
    for key, value in full.pixels([shrunk(image, 1024)] * 2).items():
        assert torch.equal(pixels[key], value), key
    assert model.token_energy(encoded, model.pixels([image]), model.pixels([image * 0])).any()


def test_below_the_limit_nothing_changes() -> None:
    full = load_surrogate(built("qwen3_vl"))
    unit = [image.clone().requires_grad_() for image in images()[:2]]
    found = []
    for model in (full, full.limited(64 * 64)):
        forward = model.forward(model.encode(EXAMPLES[:2], unit), model.pixels(unit))
        found.append([forward.nll, *torch.autograd.grad(forward.nll.sum(), unit)])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_descent_works_on_a_picture_above_the_limit(family: str) -> None:
    model = load_surrogate(built(family)).limited(1024)
    original = to_uint8(photograph(3, 96, 128))
    delta, budget, losses = torch.zeros(3, 96, 128, dtype=torch.int8), ImageBudget(8), []

    def backward(seen: list[Tensor]) -> None:
        loss = model.forward(model.encode(EXAMPLES[:1], seen), model.pixels(seen)).nll.sum()
        losses.append(float(loss.detach()))
        loss.backward()

    for _ in range(6):
        (delta,) = descend(backward, [original], [delta], [budget])
    assert losses[-1] < losses[0]
    assert (delta != 0).float().mean() > 0.7  # LLaVA crops to the square in the middle


def test_the_gradient_is_found_on_the_models_device(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_surrogate(built("qwen3_vl"))
    model.pixels([photograph(2, 40, 60)])
    floats: list[str] = []
    original = type(model.processor.image_processor).process_image

    def spy(self: Any, image: Tensor, **kwargs: Any) -> Tensor:
        if image.is_floating_point():
            floats.append(image.device.type)
        return original(self, image, **kwargs)

    monkeypatch.setattr(type(model.processor.image_processor), "process_image", spy)
    model.device = torch.device("cuda")
    with FakeTensorMode(allow_non_fake_inputs=True):  # a GPU that is not there: shapes and devices without numbers
        image = torch.empty(3, 40, 60, requires_grad=True)
        found = model.pixels([image, image])
    assert floats == ["cuda"]
    assert {value.device.type for value in found.values()} == {"cuda"}
    assert found["pixel_values"].requires_grad


@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "smolvlm", "mllama"])
def test_steps_over_one_size_lay_it_out_once(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_surrogate(built(family))
    image, blanks = photograph(2, 40, 60).requires_grad_(), []

    def spy(image_processor: Any, images: list[Tensor], kwargs: dict[str, Any]) -> dict[str, Any]:
        if not any(image.any() for image in images):
            blanks.append(len(images))
        return _call(image_processor, images, kwargs)

    model.pixels([image])  # which of the inputs come from the image is found out with a blank one of its own
    monkeypatch.setattr("mmguard.lvlm.pixels._call", spy)
    for _ in range(3):
        model.forward(model.encode(EXAMPLES[:2], [image] * 2), model.pixels([image] * 2)).nll.sum().backward()
    assert blanks == [1, 2]  # one, and two of them, to see how they are put together


@pytest.mark.parametrize("family", FAMILIES)
def test_embedding_gradient_is_the_slope_of_the_loss(family: str) -> None:
    model = surrogate(family)
    encoded, pixels = model.encode(EXAMPLES[:1], images()[:1]), model.pixels(images()[:1])
    forward = model.forward(encoded, pixels)
    (gradient,) = torch.autograd.grad(forward.nll.sum(), forward.embeddings)
    assert gradient.shape == (*encoded.labels.shape, model.model.config.get_text_config().hidden_size)
    position = int(encoded.roles.trigger[0].nonzero()[0])
    torch.testing.assert_close(forward.embeddings, model.embed(encoded.inputs["input_ids"]))

    direction = functional.normalize(torch.randn(gradient.shape[-1], generator=torch.Generator().manual_seed(0)), dim=0)
    losses = []
    for step in (0.02, -0.02):

        def moved(_module: Any, _inputs: Any, output: Tensor, step: float = step) -> Tensor:
            output = output.clone()
            output[0, position] += step * direction
            return output

        handle = model.model.get_input_embeddings().register_forward_hook(moved)
        with torch.no_grad():
            losses.append(model.forward(encoded, pixels).nll.double().sum())
        handle.remove()
    slope = (losses[0] - losses[1]) / 0.04
    torch.testing.assert_close((gradient[0, position] @ direction).double(), slope, rtol=0.05, atol=2e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_admissible_tokens_are_words_behind_a_space(family: str) -> None:
    model = surrogate(family)
    vocabulary = model.admissible_tokens()
    assert len(vocabulary.words) == len(vocabulary.ids) > 50
    for token, word in zip(vocabulary.ids.tolist(), vocabulary.words, strict=True):
        assert re.fullmatch("[A-Za-z]{2,12}", word)
        assert model.tokenizer.convert_ids_to_tokens(token) == "Ġ" + word
    every = {t for t in model.tokenizer.get_vocab() if re.fullmatch("Ġ[A-Za-z]{2,12}", t)}
    assert {"Ġ" + word for word in vocabulary.words} == every


def test_the_model_is_frozen_and_in_evaluation_mode() -> None:
    model = surrogate("llava").model
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in model.modules())


class TestLoading:
    def test_zoo_names_are_listed(self) -> None:
        with pytest.raises(SurrogateError, match=r"zoo:nope.*llava-tiny"):
            load_surrogate("zoo:nope")

    def test_zoo_folders_are_loaded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("mmguard.zoo.path", lambda name: built(name))
        assert load_surrogate("zoo:smolvlm").name == "zoo:smolvlm"

    def test_what_cannot_be_fetched(self) -> None:
        with pytest.raises(SurrogateError, match=r"nobody/nothing.*hub id.*zoo:NAME"):
            load_surrogate("nobody/nothing")

    def test_pickles(self, tmp_path: Path) -> None:
        folder = shutil.copytree(built("llava"), tmp_path / "llava")
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        with pytest.raises(SurrogateError, match=r"no file named model\.safetensors"):
            load_surrogate(folder)

    def test_weights_that_lack_or_do_not_fit(self, tmp_path: Path) -> None:
        folder = shutil.copytree(built("llava"), tmp_path / "llava")
        whole = load_file(folder / "model.safetensors")
        save_file({f"wrapped.{name}": weight for name, weight in whole.items()}, folder / "model.safetensors")
        with pytest.raises(SurrogateError, match=r"its files lack .* of the weights .*, which would be random"):
            load_surrogate(folder)
        save_file({name: weight[..., :1].contiguous() for name, weight in whole.items()}, folder / "model.safetensors")
        with pytest.raises(SurrogateError, match=r"are not of the shapes that its config\.json says"):
            load_surrogate(folder)

    def test_a_pointer_in_place_of_weights(self, tmp_path: Path) -> None:
        folder = shutil.copytree(built("llava"), tmp_path / "llava")
        (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
        with pytest.raises(SurrogateError, match="fetch it again, with git-lfs if it was cloned"):
            load_surrogate(folder)

    @pytest.mark.parametrize(("device", "cure"), [("gpu", "no kind of that name"), ("cuda:99", "CUDA devices here")])
    def test_a_device_that_is_not_there(self, device: str, cure: str) -> None:
        with pytest.raises(ConfigError, match=cure):
            load_surrogate(built("llava"), device=device)

    def test_memory_that_is_not_enough(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

        monkeypatch.setattr(hf.PreTrainedModel, "to", full)
        with pytest.raises(SurrogateError, match="the memory of cpu is not enough for its weights"):
            load_surrogate(built("llava"), device="cpu")

    def test_code_of_a_model_on_the_hub(self) -> None:
        with pytest.raises(SurrogateError, match="run from a folder alone"):
            load_surrogate("nobody/nothing", trust_remote_code=True)
        assert load_surrogate(built("llava"), trust_remote_code=True).name == str(built("llava"))

    def test_a_text_model(self, tmp_path: Path) -> None:
        config = hf.LlamaConfig(
            vocab_size=600, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
        )
        hf.LlamaForCausalLM(config).save_pretrained(tmp_path)
        hf.AutoTokenizer.from_pretrained(built("llava")).save_pretrained(tmp_path)
        with pytest.raises(SurrogateError, match="not an image-text model"):
            load_surrogate(tmp_path)

    def test_no_chat_template(self, tmp_path: Path) -> None:
        processor = hf.AutoProcessor.from_pretrained(built("llava"))
        processor.chat_template = processor.tokenizer.chat_template = None
        processor.save_pretrained(tmp_path)
        hf.AutoConfig.from_pretrained(built("llava")).save_pretrained(tmp_path)
        with pytest.raises(SurrogateError, match="no chat template"):
            load_surrogate(tmp_path)

    def test_a_slow_tokenizer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hf.PreTrainedTokenizerFast, "is_fast", False)
        with pytest.raises(SurrogateError, match="slow tokenizer"):
            load_surrogate(built("llava"))

    def test_dtype_and_device(self) -> None:
        model = load_surrogate(built("llava"), device="cpu", dtype=torch.bfloat16)
        assert model.model.dtype == torch.bfloat16
        assert load_surrogate(built("llava"), device="cpu").model.dtype == torch.float32
        assert model.device.type == "cpu"


@pytest.mark.parametrize("family", FAMILIES)
def test_recomputing_saves_memory_and_changes_nothing(family: str) -> None:
    model = load_surrogate(built(family))
    saved: dict[bool, int] = {}
    found: dict[bool, tuple[Forward, Tensor]] = {}
    model.forward(model.encode(EXAMPLES[:1], images()[:1]), model.pixels(images()[:1]))
    before = traces(model.model)
    for recompute in (False, True):
        model.recompute = recompute
        kept: list[int] = []
        unit = [image.clone().requires_grad_(True) for image in images()[:1]]
        encoded = model.encode(EXAMPLES[:1], unit)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t):  # noqa: B023 (used up in this turn)
            forward = model.forward(encoded, model.pixels(unit), LAYERS[:1])
        assert forward.attention is not None
        (forward.nll.sum() + forward.attention.answer.square().sum()).backward()
        assert unit[0].grad is not None
        saved[recompute], found[recompute] = sum(kept), (forward, unit[0].grad)
    close(found[True][0], found[False][0], 1e-6)
    torch.testing.assert_close(found[True][1], found[False][1], atol=1e-6, rtol=1e-4)
    assert saved[True] < saved[False]
    assert traces(model.model) == before


def test_the_vision_tower_of_llama_is_recomputed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its layers are not among those that transformers means for it."""
    calls: list[int] = []
    plain = MllamaVisionEncoderLayer.forward

    def counted(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(MllamaVisionEncoderLayer, "forward", counted)
    model = load_surrogate(built("mllama"))
    model.recompute = True
    unit = [image.clone().requires_grad_(True) for image in images()[:1]]
    loss = model.forward(model.encode(EXAMPLES[:1], unit), model.pixels(unit)).nll.sum()
    once = len(calls)
    loss.backward()
    assert len(calls) == 2 * once > 0


def test_attention_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """PaliGemma 2 has Gemma 2 for a language model, which caps the scores of its attention."""
    folder = shutil.copytree(built("paligemma"), tmp_path / "paligemma2")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["attn_logit_softcapping"] = 50.0
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SurrogateError, match=r"caps the scores of its attention.*take another model"):
        load_surrogate(folder)


def traces(model: nn.Module) -> list[Any]:
    """What checkpointing could leave behind in a model."""
    return [
        (module.training, sorted(vars(module)), len(module._forward_hooks), len(module._forward_pre_hooks))
        for module in model.modules()
    ]
