"""The script that builds a larger model for experiments, around a tiny language model with random weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file

import ggufs
import laboratory
import tiny
from mmguard.auditing.attackers import vocabulary
from mmguard.lvlm.loading import load_surrogate
from mmguard.lvlm.prompt import Example


@pytest.fixture(scope="module", autouse=True)
def small_tower() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(laboratory, "VISION", {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2})
        yield


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.language_model(tmp_path_factory.mktemp("language"), ["<|im_start|>", "<|im_end|>"], positions=512)


@pytest.fixture(scope="module")
def built(language: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("built") / "model", "--lm", language, "--steps", 3, "--tune-steps", 1)


def build(out: Path, *options: object) -> Path:
    arguments = ["--out", out, "--batch-size", 2, *options]
    laboratory.main([str(argument) for argument in arguments])
    return out


def decoder(folder: Path) -> dict[str, torch.Tensor]:
    weights = load_file(folder / "model.safetensors")
    return {k.split("language_model.")[-1].removeprefix("model."): v.float() for k, v in weights.items()}


def test_the_result_is_a_surrogate_and_an_attacker(built: Path) -> None:
    assert {path.suffix for path in built.iterdir()} == {".json", ".jinja", ".safetensors"}
    surrogate, image = load_surrogate(built, device="cpu"), torch.rand(3, 96, 112).mul(255).round().div(255)
    encoded = surrogate.encode([Example("What color is it?", "red", trigger=("house", "open"))], [image])
    assert surrogate.forward(encoded, surrogate.pixels([image]), layers=(0, 1)).nll.isfinite().all()
    assert vocabulary(str(built)) == surrogate.admissible_tokens().words != ()
    assert surrogate.tokenizer.eos_token == "<|im_end|>"
    assert surrogate.model.generation_config.eos_token_id == surrogate.tokenizer.eos_token_id


def test_the_card_says_what_was_reached(built: Path, language: Path) -> None:
    card = json.loads((built / "mmguard.json").read_text())
    assert (card["name"], card["family"]) == (str(language), "llava")
    assert card["held_out"]["loss"] > 0
    assert 0 <= card["held_out"]["accuracy"] <= 1


@pytest.mark.parametrize(("steps", "tune_steps"), [(2, 0), (0, 2)])
def test_the_language_model_learns_in_the_second_stage_only(
    language: Path, tmp_path: Path, steps: int, tune_steps: int
) -> None:
    before, tokens = decoder(language), len(hf.AutoTokenizer.from_pretrained(language))
    after = decoder(build(tmp_path / "model", "--lm", language, "--steps", steps, "--tune-steps", tune_steps))
    after["embed_tokens.weight"] = after["embed_tokens.weight"][:tokens]
    name = "layers.0.self_attn.q_proj.weight"
    assert torch.equal(after[name], before[name].half().float()) == (tune_steps == 0)
    frozen = all(torch.equal(after[key], before[key].half().float()) for key in before if key != "lm_head.weight")
    assert frozen == (tune_steps == 0)


def test_training_lowers_the_loss(language: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = build(tmp_path / "model", "--lm", language, "--steps", 0, "--tune-steps", 12, "--tune-lr", 1e-2)
    first = float(capsys.readouterr().out.partition("'loss': ")[2].partition(",")[0])
    assert json.loads((folder / "mmguard.json").read_text())["held_out"]["loss"] < 0.9 * first


def test_a_gguf_file_gives_the_same_language_model(language: Path, tmp_path: Path) -> None:
    written = ggufs.write(language, tmp_path / "language.gguf")
    (read, tokenizer), (model, original) = (laboratory.language_model(str(language), file) for file in (written, None))
    for key, value in model.state_dict().items():
        torch.testing.assert_close(read.state_dict()[key], value, msg=key)
    text = "What color is the circle?<|im_end|>"
    assert tokenizer(text)["input_ids"] == original(text)["input_ids"]
    folder = build(tmp_path / "model", "--gguf", written, "--steps", 1, "--tune-steps", 0)
    assert hf.AutoModelForImageTextToText.from_pretrained(folder).num_parameters() > model.num_parameters()


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--lm", "x", "--gguf", "y"], "not allowed with"), (["--steps", "0", "--tune-steps", "0"], "no steps")],
)
def test_commands_are_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: Sequence[str], message: str
) -> None:
    with pytest.raises(SystemExit):
        build(tmp_path / "new", *options)
    assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        build(tmp_path)
    assert "is there already" in capsys.readouterr().err


def test_a_language_model_without_chatml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no <\|im_end\|> and no <\|im_start\|>: choose one that speaks ChatML"):
        build(tmp_path / "model", "--lm", tiny.language_model(tmp_path / "language"))
