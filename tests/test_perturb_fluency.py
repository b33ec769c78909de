"""Words that a language model finds likely: the ones that it does, and no others in a release."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers as hf

import ggufs
import tiny
from mmguard.config import ProtectConfig
from mmguard.data.readers import read_dataset
from mmguard.data.text import inserted_place, inserted_words
from mmguard.errors import ConfigError, SurrogateError
from mmguard.lvlm.language import LanguageModel, load_language_model
from mmguard.lvlm.loading import load_surrogate
from mmguard.lvlm.weights import weights_digest
from mmguard.perturb.fluency import Fluency
from mmguard.protection.run import protect
from mmguard.release.origin import origin

SURROGATES = ("zoo:qwen3vl-micro", "zoo:minicpmv-tiny")
FAST = ProtectConfig(rounds=1, inner_steps=1, pgd_steps=1, top_c=4, trigger_words=3, batch_size=4, fluency_top_k=5)
QUESTIONS = ("What is it?", "What color is the ball on the left?", "Which way does it point?")


@pytest.fixture(scope="module")
def lm_folder() -> Path:
    return tiny.built_language_model()


@pytest.fixture(scope="module")
def lm(lm_folder: Path) -> LanguageModel:
    return load_language_model(str(lm_folder), torch.device("cpu"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    root.mkdir()
    pictures = tiny.pictures_of_noise(root, len(QUESTIONS))
    rows = [row | {"question": question} for row, question in zip(pictures, QUESTIONS, strict=True)]
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def likely(folder: Path, text: str, words: tuple[str, ...], top_k: int) -> set[str]:
    """By a plain forward pass over all of the text."""
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    ids += tokenizer.encode(text, add_special_tokens=False)
    with torch.no_grad():
        scores = hf.LlamaForCausalLM.from_pretrained(folder)(torch.tensor([ids])).logits[0, -1]
    tokens = {word: tokenizer.encode(f" {word}", add_special_tokens=False) for word in words}
    found = {word: float(scores[ids[0]]) for word, ids in tokens.items() if len(ids) == 1}
    return set(sorted(found, key=lambda word: -found[word])[:top_k])


def test_likely_words_are_those_of_a_plain_forward_pass(lm_folder: Path, lm: LanguageModel) -> None:
    words = lm.words[::3]
    found = Fluency(lm, words, 7)
    assert found.likely("What is it?", ["a", "dog"]) == likely(lm_folder, "What is it? a dog", words, 7)
    assert found.likely("What is it?", after=2) == likely(lm_folder, "What is", words, 7)
    assert len(found.likely("What is it?")) == 7
    assert Fluency(lm, words, len(words) + 1).likely("What is it?") == set(words)


def test_a_release_has_likely_words_alone(folder: Path, tmp_path: Path, lm_folder: Path, lm: LanguageModel) -> None:
    words = tuple(word for name in SURROGATES for word in load_surrogate(name, "cpu").admissible_tokens().words)
    fluency = Fluency(lm, words, FAST.fluency_top_k)

    def unlikely(config: ProtectConfig, name: str) -> Iterator[str]:
        protect(folder, SURROGATES, config, tmp_path / name)
        for ours, theirs in zip(read_dataset(folder).samples, read_dataset(tmp_path / name).samples, strict=True):
            assert ours.question is not None
            assert theirs.question is not None
            inserted = inserted_words(ours.question, theirs.question) or ()
            assert len(inserted) == config.trigger_words
            after = inserted_place(ours.question, theirs.question)
            for slot, word in enumerate(inserted):
                if word not in fluency.likely(ours.question, inserted[:slot], after):
                    yield word

    fluent = replace(FAST, fluency=str(lm_folder))
    assert list(unlikely(FAST, "free"))
    assert not list(unlikely(fluent, "end"))
    assert not list(unlikely(replace(fluent, trigger_place="inside", rounds=2), "inside"))


def test_the_language_model_is_part_of_what_a_release_is_made_from(folder: Path, lm_folder: Path) -> None:
    made = origin(read_dataset(folder), replace(FAST, fluency=str(lm_folder)), SURROGATES)
    assert set(made["weights"]) == {*SURROGATES, str(lm_folder)}
    assert None not in made["weights"].values()


@pytest.mark.parametrize("change", [{"variant": "image"}, {"variant": "random-words"}, {"trigger_words": 0}])
def test_fluency_needs_a_search(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="searches for no words"):
        replace(FAST, fluency="some/model", **change)
    with pytest.raises(ConfigError, match="fluency-top-k 0"):
        replace(FAST, fluency_top_k=0)


def test_shared_triggers_cannot_be_fluent() -> None:
    """They stand where the language model was never asked."""
    with pytest.raises(ConfigError, match=r"trigger-scope answer gives questions the words .*: leave one of the two"):
        replace(FAST, fluency="some/model", trigger_scope="answer")


def test_a_gguf_file_does_as_well_as_a_folder(folder: Path, tmp_path: Path) -> None:
    model = tiny.language_model(tmp_path / "lm", ["<|im_start|>", "<|im_end|>"])
    written = ggufs.write(model, tmp_path / "lm.gguf")
    whole, single = (load_language_model(str(one), torch.device("cpu")) for one in (model, written))
    assert single.words == whole.words
    torch.testing.assert_close(single.next_scores("What is it?"), whole.next_scores("What is it?"))
    digest = weights_digest(str(written))
    assert origin(read_dataset(folder), replace(FAST, fluency=str(written)), ())["weights"] == {str(written): digest}
    written.write_bytes(written.read_bytes() + b"\0")
    assert weights_digest(str(written)) not in (digest, None)


def test_a_gguf_file_without_the_package_that_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmguard.lvlm.language.is_gguf_available", lambda: False)
    (tmp_path / "lm.gguf").write_bytes(b"GGUF")
    with pytest.raises(SurrogateError, match=r"lm\.gguf: .*pip install 'mmguard\[gguf\]'"):
        load_language_model(str(tmp_path / "lm.gguf"), torch.device("cpu"))


def test_words_that_the_language_model_does_not_know(lm: LanguageModel) -> None:
    with pytest.raises(ConfigError, match="no word in common"):
        Fluency(lm, ["Qqqqzzzz"], 4)


def test_of_a_long_text_the_end_counts(lm_folder: Path, lm: LanguageModel) -> None:
    tokenizer = hf.AutoTokenizer.from_pretrained(lm_folder)
    most = hf.AutoConfig.from_pretrained(lm_folder).max_position_embeddings
    text = " ".join(lm.words)
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert len(ids) > most
    with torch.no_grad():
        scores = hf.LlamaForCausalLM.from_pretrained(lm_folder)(torch.tensor([ids[-most:]])).logits[0, -1]
    torch.testing.assert_close(lm.next_scores(text), scores)
