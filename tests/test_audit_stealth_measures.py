"""Measures of visibility against values worked out by hand, and what holds of every image and text."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.models import alexnet

import tiny
from mmguard.auditing.stealth_images import image_change, likeness, load_lpips, load_pair
from mmguard.auditing.stealth_texts import bleu, text_changes, usual_language_model
from mmguard.auditing.summary import mean_interval, measure, share_interval
from mmguard.config import Lpips
from mmguard.errors import ConfigError, SurrogateError
from mmguard.lvlm.language import LanguageModel, load_language_model

CPU = torch.device("cpu")


def flat(level: int, size: int = 16) -> torch.Tensor:
    return torch.full((3, size, size), level, dtype=torch.uint8)


def random_image(seed: int, height: int = 20, width: int = 24) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed)).byte()


# Images


def test_psnr_by_hand() -> None:
    (same,) = likeness(flat(100), flat(108)[None])
    assert same.psnr == pytest.approx(20 * math.log10(255 / 8), abs=1e-4)
    # One of 3 · 16 · 16 values differs by 30: the mean squared error is 900 / 768.
    spot = flat(100)
    spot[1, 2, 3] = 130
    (one,) = likeness(flat(100), spot[None])
    assert one.psnr == pytest.approx(10 * math.log10(255**2 / (900 / 768)), abs=1e-4)


def test_ssim_by_hand() -> None:
    # Flat images have neither variance nor covariance: only the luminance term is left (but for float32, in which the
    # variance of a flat image is not quite 0).
    c1 = (0.01 * 255) ** 2
    (found,) = likeness(flat(100), flat(140)[None])
    assert found.ssim == pytest.approx((2 * 100 * 140 + c1) / (100**2 + 140**2 + c1), abs=5e-4)


def test_identity() -> None:
    image = random_image(0)
    (found,) = likeness(image, image[None])
    assert (found.psnr, found.ssim, found.lpips) == (None, 1.0, None)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 20))
def test_more_noise_is_less_alike(seed: int, eps: int) -> None:
    image = random_image(seed).clamp(45, 210)
    sign = torch.randint(0, 2, image.shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    changed = torch.stack([(image + sign * size).to(torch.uint8) for size in (eps, 2 * eps)])
    one, two = likeness(image, changed)
    assert one.psnr == pytest.approx(20 * math.log10(255 / eps), abs=1e-3)
    assert two.psnr == pytest.approx(20 * math.log10(255 / (2 * eps)), abs=1e-3)
    assert one.ssim is not None
    assert two.ssim is not None
    assert two.ssim < one.ssim < 1


def test_too_small_for_ssim() -> None:
    (found,) = likeness(flat(1, 5), flat(2, 5)[None])
    assert found.ssim is None
    assert found.psnr == pytest.approx(20 * math.log10(255), abs=1e-4)
    assert likeness(flat(1, 6), flat(2, 6)[None])[0].ssim is not None


def test_image_change(tmp_path: Path) -> None:
    before = random_image(1).clamp(20, 230)
    after = before.clone()
    after[:, :10] += 6
    after[0, 0, 0] += 3
    for name, pixels in (("a.png", before), ("b.png", after)):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(tmp_path / name)
    files = (tmp_path / "a.png", tmp_path / "b.png")
    found = image_change("b.png", files, load_pair(*files), seed=0)
    assert found.largest_change == 9
    assert found.mean_change == pytest.approx((6 * 3 * 10 * 24 + 3) / (3 * 20 * 24))
    assert (found.original_bytes, found.released_bytes) == tuple(path.stat().st_size for path in files)
    # The same difference in other places: as large, and of another structure.
    assert found.control.psnr == pytest.approx(found.likeness.psnr, abs=1e-4)
    assert found.control.ssim != pytest.approx(found.likeness.ssim, abs=1e-4)
    assert found == image_change("b.png", files, load_pair(*files), seed=0)
    assert found.control != image_change("b.png", files, load_pair(*files), seed=1).control


# LPIPS


@pytest.fixture
def no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without weights and network."""

    def refuse(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    return tmp_path


@pytest.mark.parametrize(
    ("choice", "reason"),
    [("auto", "--lpips alex fetches them"), ("alex", "no network"), ("vgg", "no network"), ("off", "turned off")],
)
def test_no_lpips_without_weights(no_weights: Path, choice: Lpips, reason: str) -> None:
    perceptual, why = load_lpips(choice, CPU)
    assert perceptual is None
    assert reason in why


def test_lpips(no_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = alexnet(weights=None).state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: weights)
    (no_weights / "checkpoints").mkdir()
    (no_weights / "checkpoints" / "alexnet-owt-7be5be79.pth").touch()
    perceptual, why = load_lpips("auto", CPU)
    assert perceptual is not None
    assert (perceptual.name, why) == ("alex", "")
    image = random_image(0, 40, 31)
    near, far = ((image.int() + size).clamp(0, 255).byte() for size in (2, 60))
    same, one, two = likeness(image, torch.stack([image, near, far]), perceptual)
    assert same.lpips == 0
    assert one.lpips is not None
    assert two.lpips is not None
    assert 0 < one.lpips < two.lpips
    assert likeness(flat(1, 30), flat(2, 30)[None], perceptual)[0].lpips is None


# Texts


@pytest.fixture(scope="module")
def lm_folder() -> Path:
    return tiny.built_language_model()


@pytest.fixture(scope="module")
def lm(lm_folder: Path) -> LanguageModel:
    return load_language_model(str(lm_folder), CPU)


def test_perplexities_equal_a_plain_loop(lm_folder: Path, lm: LanguageModel) -> None:
    texts = ["what color is the shape?", "is it red", "a", "there is a blue square in the image", "dog"]
    model = hf.LlamaForCausalLM.from_pretrained(lm_folder)
    tokenizer = hf.AutoTokenizer.from_pretrained(lm_folder)
    expected = []
    for text in texts:
        ids = [tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False)]
        logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        nll = [-logs[place, token].item() for place, token in enumerate(ids[1:])]
        expected.append(math.exp(sum(nll) / len(nll)))
    assert len({round(value) for value in expected}) > 1
    for tokens in (4096, 1, 20):
        assert lm.perplexities(texts, tokens) == pytest.approx(expected, rel=1e-4)


def test_no_perplexity_for_what_the_model_does_not_take(lm: LanguageModel) -> None:
    long, short = lm.perplexities(["red " * 40, "red"])
    assert long is None
    assert short is not None
    assert lm.perplexities([""]) == [None]
    assert lm.perplexities([]) == []


def test_text_changes_by_hand(lm: LanguageModel) -> None:
    (found,) = text_changes([("7", "is it red?", "is it red? dog cat")], lm)
    assert (found.sample, found.words_inserted, found.word_edits, found.character_edits) == ("7", 2, 2, 8)
    assert found.share_inserted == pytest.approx(2 / 5)
    assert [found.perplexity_before, found.perplexity] == pytest.approx(
        lm.perplexities(["is it red?", "is it red? dog cat"]), rel=1e-4
    )
    assert found.perplexity_control not in (None, found.perplexity)
    assert text_changes([("7", "is it red?", "is it red? dog cat")])[0].perplexity is None


def test_bleu_by_hand() -> None:
    # 5 of 6 words, 4 of 5 pairs, 3 of 4 triples, 2 of 3 quadruples are the original's; no brevity penalty.
    expected = (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25
    assert bleu([("what color is the shape", "what color is the shape dog")]) == pytest.approx(expected, abs=1e-5)
    assert bleu([("is it red?", "is it red? dog cat")]) is None
    texts = [("what color is the shape", "what color is the shape")]
    assert bleu(texts) == pytest.approx(1)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(["is", "it", "red?", "a"]), min_size=1), st.lists(st.sampled_from("bcd"), max_size=4))
def test_appended_words_are_all_that_is_edited(own: list[str], trigger: list[str]) -> None:
    text = " ".join(own)
    (found,) = text_changes([("0", text, " ".join([*own, *trigger]))])
    assert found.words_inserted == found.word_edits == len(trigger)
    assert found.character_edits == 2 * len(trigger)
    assert found.share_inserted == pytest.approx(len(trigger) / (len(own) + len(trigger)))


@pytest.mark.parametrize("name", ["no/such-model", "FOLDER", "LVLM"])
def test_no_language_model(tmp_path: Path, name: str) -> None:
    source = {"FOLDER": str(tmp_path), "LVLM": str(tiny.built("llava"))}.get(name, name)
    with pytest.raises(SurrogateError, match="give"):
        load_language_model(source, CPU)


def full(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")


@pytest.mark.parametrize(
    ("owner", "step", "says"),
    [
        (hf.AutoModelForCausalLM, "from_pretrained", "memory is not enough to load it"),
        (hf.PreTrainedModel, "to", "the memory of cpu is not enough for its weights"),
    ],
)
def test_a_language_model_that_memory_is_not_enough_for(
    owner: type, step: str, says: str, lm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, step, full)
    with pytest.raises(SurrogateError, match=f"{says}: take a smaller model"):
        load_language_model(str(lm_folder), CPU)


def test_a_pointer_in_place_of_a_language_models_weights(tmp_path: Path) -> None:
    folder = tiny.language_model(tmp_path)
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(SurrogateError, match="with git-lfs if it was cloned"):
        load_language_model(str(folder), CPU)


def test_a_device_that_is_not_there(lm_folder: Path) -> None:
    with pytest.raises(ConfigError, match="CUDA devices here"):
        load_language_model(str(lm_folder), torch.device("cuda:99"))


def test_fewer_texts_at_a_time_where_memory_is_not_enough(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["is it red?", "a", "there is a blue square in the image", "dog", "what color is it?"]
    whole = lm.perplexities(texts)
    run, most = lm._model.forward, 2

    def forward(input_ids: torch.Tensor, **others: Any) -> Any:
        return run(input_ids, **others) if len(input_ids) <= most else full()

    monkeypatch.setattr(lm._model, "forward", forward)
    assert lm.perplexities(texts) == pytest.approx(whole, rel=1e-4)
    most = 0
    with pytest.raises(SurrogateError, match="the memory of cpu is not enough for one text"):
        lm.perplexities(texts)
    monkeypatch.setattr(lm._tokenizer, "chat_template", "{{ messages[0]['content'] }}")
    with pytest.raises(SurrogateError, match="the memory of cpu is not enough for one text"):
        lm.reply("is it red?", 4)


def test_the_usual_model_is_taken_only_from_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmguard.auditing.stealth_texts.try_to_load_from_cache", lambda *_: None)
    assert usual_language_model() is None
    monkeypatch.setattr("mmguard.auditing.stealth_texts.try_to_load_from_cache", lambda *_: "/cache/model.safetensors")
    assert usual_language_model() == "openai-community/gpt2"


# Summaries


def test_measure_by_hand() -> None:
    values = [0.9, None, 0.5, 0.7, 0.6]
    found = measure("abcde", values, range(5), [0.8, None, 0.4, None, 0.7], small_is_visible=True)
    assert found is not None
    assert found.count == 4
    assert found.mean.value == pytest.approx(0.675)
    assert found.median == pytest.approx(0.65)
    assert (found.quantile_5, found.quantile_95) == pytest.approx(
        tuple(np.quantile([0.9, 0.5, 0.7, 0.6], [0.05, 0.95]))
    )
    assert found.worst == (("c", 0.5), ("e", 0.6), ("d", 0.7))
    assert found.control is not None
    assert found.beyond_control is not None
    assert found.control.value == pytest.approx((0.8 + 0.4 + 0.7) / 3)
    assert found.beyond_control.value == pytest.approx((0.1 + 0.1 - 0.1) / 3)
    largest = measure("abcde", values, range(5))
    assert largest is not None
    assert largest.worst[0] == ("a", 0.9)
    assert largest.control is None
    assert measure("ab", [None, None], [0, 1]) is None


def test_interval_covers_the_mean() -> None:
    rng = np.random.default_rng(0)
    samples = rng.exponential(1.0, (200, 50))
    held = [found.low <= 1 <= found.high for found in (mean_interval(row, range(50), resamples=300) for row in samples)]
    assert 0.88 <= np.mean(held) <= 0.99


def test_texts_of_one_image_count_as_one() -> None:
    values = list(np.random.default_rng(0).normal(size=20))
    each = mean_interval(values, range(20))
    copied = mean_interval(np.repeat(values, 10), np.repeat(range(20), 10))
    assert copied.value == pytest.approx(each.value)
    assert (copied.low, copied.high) == pytest.approx((each.low, each.high))


def test_wilson_by_hand() -> None:
    # Textbook: no hit in 10 trials gives z² / (n + z²) above, and nothing below.
    none = share_interval(0, 10)
    assert (none.value, none.low) == (0, 0)
    assert none.high == pytest.approx(1.959964**2 / (10 + 1.959964**2), abs=1e-5)
    half = share_interval(50, 100)
    assert (half.low, half.high) == pytest.approx((0.40383, 0.59617), abs=1e-4)
    assert share_interval(10, 10).high == 1
