"""Every recipe trains what it says and nothing else."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers.utils.import_utils import is_bitsandbytes_available

import tiny
from mmguard.auditing import attackers, recipes
from mmguard.auditing.arms import ImageStore, Row
from mmguard.auditing.attackers import Attacker, fine_tune, load_attacker, schedule
from mmguard.auditing.evaluate import answers
from mmguard.auditing.recipes import PLANS, adapters, learning, quantisation, rank, require
from mmguard.auditing.run import audit
from mmguard.config import RECIPES, AuditConfig
from mmguard.errors import ConfigError, SurrogateError
from mmguard.types import Sample

CONFIG = AuditConfig(lr=1e-2, epochs=6, batch_size=4, max_new_tokens=4)
PROJECTOR = {
    "llava": ("model.multi_modal_projector.",),
    "qwen3_vl": ("model.visual.merger.", "model.visual.deepstack_merger_list."),
}
"""A projector of its own, and one that is three parts of the vision tower."""
LANGUAGE = "model.language_model."
WITHOUT_PACKAGES = [recipe for recipe in RECIPES if recipe != "qlora"]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {family: tiny.build(family, root / family) for family in PROJECTOR}


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> list[Row]:
    root = tmp_path_factory.mktemp("images")
    made = []
    for number in range(8):
        color = ("red", "blue")[number % 2]
        path = root / f"{number}.png"
        Image.fromarray(np.full((40, 48, 3), (220, 0, 0) if color == "red" else (0, 0, 220), np.uint8)).save(path)
        made.append(Row(str(number), path, "what color is the shape?", color))
    return made


class Watch:
    """What happened to a model's weights while it was trained, adapters and all, under the names of the base model."""

    def __init__(self) -> None:
        self.trainable: set[str] = set()
        self.moved: set[str] = set()
        """Weights with other values afterwards."""
        self.pushed: set[str] = set()
        """Weights that had a gradient other than zero."""


@pytest.fixture
def watch(monkeypatch) -> Watch:
    seen, train = Watch(), attackers._Trainer.train

    def watched(trainer: Any) -> Any:
        named = {name.removeprefix("base_model.model."): weight for name, weight in trainer.model.named_parameters()}
        before = {name: weight.detach().clone() for name, weight in named.items()}
        seen.trainable = {name for name, weight in named.items() if weight.requires_grad}
        for name in seen.trainable:
            named[name].register_post_accumulate_grad_hook(
                lambda weight, name=name: seen.pushed.add(name) if weight.grad.any() else None
            )
        output = train(trainer)
        seen.moved = {name for name, weight in named.items() if not torch.equal(weight, before[name])}
        return output

    monkeypatch.setattr(attackers._Trainer, "train", watched)
    return seen


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def loss(attacker: Attacker, rows: list[Row]) -> float:
    table = attackers._table(rows, attacker.processor, ImageStore())
    batch = attackers._collator(attacker.processor)([table[number] for number in range(len(rows))])
    with torch.inference_mode():
        return attacker.model(**batch).loss.item()


def linear(model: nn.Module, within: str = "") -> set[str]:
    """The weights of linear layers, all but the output head."""
    named = model.named_modules()
    return {f"{n}.weight" for n, m in named if isinstance(m, nn.Linear) and n.startswith(within) and n != "lm_head"}


def expected(recipe: str, family: str, model: nn.Module) -> tuple[set[str], set[str]]:
    """The weights that a recipe trains themselves, and those that it trains through an adapter."""
    everything = {name for name, _ in model.named_parameters()}
    projector = {name for name in everything if name.startswith(PROJECTOR[family])}
    if recipe == "full":
        return everything, set()
    if recipe == "projector":
        return projector, set()
    if recipe == "projector+lora":
        return projector, linear(model, LANGUAGE)
    if recipe == "lora-language":
        return set(), linear(model, LANGUAGE)
    return set(), linear(model)


@pytest.mark.parametrize("family", PROJECTOR)
@pytest.mark.parametrize("recipe", WITHOUT_PACKAGES)
def test_what_should_learn_learns_and_nothing_else(models, rows, watch, family, recipe):
    folder = models[family]
    untouched = load_attacker(str(folder), "cpu")
    before, files = weights(untouched.model), contents(folder)
    own, adapted = expected(recipe, family, untouched.model)

    tuned = fine_tune(str(folder), rows, recipe, CONFIG, 0, device="cpu")

    pieces = ("lora_A.default", "lora_B.default", *(("lora_magnitude_vector.default",) if recipe == "dora" else ()))
    through = defaultdict(set)
    for name in watch.trainable - own:
        layer, _, piece = name.partition(".lora_")
        through[f"{layer}.weight"].add("lora_" + piece.removesuffix(".weight"))
    assert watch.trainable >= own
    assert dict(through) == {name: set(pieces) for name in adapted}
    assert watch.moved == watch.pushed <= watch.trainable
    # LLaVA does not use the last layer of its vision tower; everything else is in the graph.
    assert all("vision_tower" in name for name in watch.trainable - watch.moved)

    after = weights(tuned.model)  # with adapters merged
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys()
    assert changed <= own | adapted
    assert (own | adapted) - changed <= {name for name in own | adapted if "vision_tower" in name}
    assert loss(tuned, rows) < 0.9 * loss(untouched, rows)

    assert contents(folder) == files
    again = load_attacker(str(folder), "cpu").model.state_dict()
    assert all(torch.equal(again[name], before[name]) for name in before)


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("lora", 5),
        ("lora-r8", 8),
        ("lora-r16", 16),
        ("lora-r64", 64),
        ("lora-language", 5),
        ("dora", 5),
        ("projector+lora", 5),
        ("qlora", 5),
    ],
)
def test_ranks(models, recipe, expected):
    config = replace(CONFIG, lora_rank=5)
    lora = adapters(recipe, config, load_attacker(str(models["llava"]), "cpu").model, "llava")
    assert rank(recipe, config) == lora.r == expected
    assert (lora.lora_alpha, lora.lora_dropout, lora.use_dora) == (2 * expected, 0.1, recipe == "dora")


def test_recipes_without_adapters(models):
    model = load_attacker(str(models["llava"]), "cpu").model
    for recipe in ("projector", "full"):
        assert rank(recipe, CONFIG) is None
        assert adapters(recipe, CONFIG, model, "llava") is None
    assert set(PLANS) == set(RECIPES)


@pytest.mark.parametrize("family", PROJECTOR)
@pytest.mark.parametrize("recipe", ["projector", "projector+lora", "full"])
def test_weights_learn_in_32_bit(models, family, recipe):
    model = load_attacker(str(models[family]), "cpu", torch.bfloat16).model
    own, _ = expected(recipe, family, model)
    with learning(recipe, model, family):
        assert {name for name, weight in model.named_parameters() if weight.requires_grad} == own
        assert {name for name, weight in model.named_parameters() if weight.dtype == torch.float32} == own
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert not any(weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize("family", PROJECTOR)
@pytest.mark.parametrize("recipe", ["lora", "projector", "projector+lora", "full"])
def test_checkpointing_changes_nothing(models, rows, monkeypatch, family, recipe):
    """On a GPU activations are computed again in the backward pass; frozen layers must not cut the gradient off."""
    config = replace(CONFIG, epochs=1)
    plain = weights(fine_tune(str(models[family]), rows, recipe, config, 0, device="cpu").model)
    arguments = attackers._arguments

    def as_on_a_gpu(*args: Any) -> Any:
        made = arguments(*args)
        made.gradient_checkpointing = True
        return made

    monkeypatch.setattr(attackers, "_arguments", as_on_a_gpu)
    saved = weights(fine_tune(str(models[family]), rows, recipe, config, 0, device="cpu").model)
    for name, value in plain.items():
        torch.testing.assert_close(saved[name], value, msg=name)


def test_recipes_follow_the_advice_for_lora(tmp_path):
    card = {"recommended": {"lora": {"lr": 0.01, "epochs": 7}, "dora": {"lr": 0.02}, "full": {"lr": 0.001}}}
    (tmp_path / "mmguard.json").write_text(json.dumps(card), encoding="utf-8")
    name, config = str(tmp_path), AuditConfig()
    for recipe in ("lora", "lora-r16", "qlora", "projector", "projector+lora"):
        assert schedule(name, recipe, config) == (0.01, 7)
    assert schedule(name, "dora", config) == (0.02, 3)
    assert schedule(name, "full", config) == (0.001, 3)
    del card["recommended"]["full"]
    (tmp_path / "mmguard.json").write_text(json.dumps(card), encoding="utf-8")
    assert schedule(name, "full", config) == (2e-5, 3)
    assert schedule("owner/model", "projector", config) == (2e-4, 3)


def test_qlora_holds_weights_in_four_bits():
    config = quantisation("qlora").to_dict()
    assert config["load_in_4bit"]
    assert config["bnb_4bit_quant_type"] == "nf4"
    assert config["bnb_4bit_use_double_quant"]
    assert config["bnb_4bit_compute_dtype"] == "bfloat16"
    assert all(quantisation(recipe) is None for recipe in WITHOUT_PACKAGES)


def test_the_model_is_loaded_in_four_bits(models, rows, monkeypatch):
    asked: list[Any] = []

    def from_pretrained(*args: Any, **kwargs: Any) -> Any:
        asked.append(kwargs["quantization_config"])
        raise OSError("no weights here")

    monkeypatch.setattr(recipes, "require", lambda recipe: None)
    monkeypatch.setattr("mmguard.lvlm.loading.AutoModelForImageTextToText.from_pretrained", from_pretrained)
    for recipe in ("qlora", "lora"):
        with pytest.raises(SurrogateError, match="no weights here"):
            fine_tune(str(models["llava"]), rows, recipe, CONFIG, 0, device="cpu")
    assert asked[0].to_dict() == quantisation("qlora").to_dict()
    assert asked[1] is None


def test_qlora_without_its_package(models, rows, monkeypatch):
    monkeypatch.setattr(recipes, "is_bitsandbytes_available", lambda: False)
    message = "recipe qlora: needs bitsandbytes .*pip install -U bitsandbytes"
    with pytest.raises(ConfigError, match=message):
        fine_tune(str(models["llava"]), rows, "qlora", CONFIG, 0)
    with pytest.raises(ConfigError, match=message):  # at once, and not when its turn comes
        audit("nothing", "nothing", "nothing", config=AuditConfig(recipes=("lora", "qlora")))
    for recipe in WITHOUT_PACKAGES:
        require(recipe)


def test_qlora_without_a_device(monkeypatch):
    def no_backend(raise_exception: bool) -> None:
        assert raise_exception
        raise RuntimeError("None of the available devices are supported")

    monkeypatch.setattr(recipes, "is_bitsandbytes_available", lambda: True)
    monkeypatch.setattr(recipes, "validate_bnb_backend_availability", no_backend)
    with pytest.raises(ConfigError, match=r"recipe qlora: None of the available devices .*choose lora"):
        require("qlora")


@pytest.mark.skipif(not is_bitsandbytes_available(), reason="bitsandbytes is not installed")
@pytest.mark.parametrize("family", PROJECTOR)
def test_qlora_learns_over_frozen_four_bit_weights(models, rows, watch, family):
    files = contents(models[family])
    base = load_attacker(str(models[family]), "cpu", None, quantisation("qlora"))
    tuned = fine_tune(str(models[family]), rows, "qlora", CONFIG, 0, device="cpu")
    layers = {name for name, module in tuned.model.named_modules() if type(module).__name__ == "Linear4bit"}
    assert layers
    assert not any("lm_head" in name for name in layers)
    assert all(".lora_" in name for name in watch.trainable)
    assert watch.moved
    assert watch.moved <= watch.trainable
    assert loss(tuned, rows) < 0.8 * loss(base, rows)
    sample = Sample("0", 0, rows[0].image, rows[0].text, rows[0].target)
    assert len(answers(tuned, [sample], CONFIG)) == 1
    assert contents(models[family]) == files


def test_unknown_recipe():
    with pytest.raises(ConfigError, match=r"recipe 'lora-r9': choose from lora, lora-r8, .*, projector\+lora, full"):
        AuditConfig(recipes=("lora-r9",))
