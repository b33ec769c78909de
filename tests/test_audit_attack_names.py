"""What the names of attacks stand for, and what is said of those that stand for nothing."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from mmguard.auditing import attacks
from mmguard.auditing.attacks import SHORTHANDS, attack_named, families, resolve
from mmguard.auditing.report import NOT_TESTED, not_tested
from mmguard.errors import ConfigError

CODE = "085c924b42baec86dbe6bbcef21f0195248e1b52c6ad74adba5c1e7d3dcbce7f"
"""Of the modules that decide what an attack does."""


def test_results_of_another_attack_do_not_count() -> None:
    package = Path(attacks.__file__).parents[1]
    files = [*package.glob("attacks/*.py"), *(package / f"{name}.py" for name in ("features", "filters", "training"))]
    found = hashlib.sha256("".join(file.read_text(encoding="utf-8") for file in sorted(files)).encode()).hexdigest()
    assert found == CODE, "if an attack does something else now, raise its REVISION (auditing/runs.py); mend CODE"


def test_a_name_and_its_strength() -> None:
    (attack,) = resolve(["jpeg-50"])
    assert attack.name == "jpeg-50"
    assert attack.image is not None
    assert attack.text is None
    assert attack is attack_named("jpeg-50")


def test_a_combination_is_of_images_and_texts_in_either_order() -> None:
    one, *others = resolve(["gray+punct", "punct+gray"])
    assert others == []
    assert one.name == "gray+punct"
    assert one.image is attack_named("gray").image
    assert one.text is attack_named("punct").text


def test_an_augmentation_stays_one_in_combination(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmguard.auditing.attacks import Attack

    flip = Attack("flip", image=lambda image, generator: image, each_epoch=True)
    monkeypatch.setitem(attacks._FAMILIES, "flip", lambda parameter: flip)
    assert resolve(["flip+punct"])[0].each_epoch
    assert not resolve(["gray+punct"])[0].each_epoch


@pytest.mark.parametrize("shorthand", SHORTHANDS)
def test_shorthands(shorthand: str) -> None:
    found = resolve([shorthand])
    assert tuple(one.name for one in found) == SHORTHANDS[shorthand]
    assert resolve([shorthand, found[0].name, "gray", "gray"]) == tuple(dict.fromkeys([*found, *resolve(["gray"])]))


def test_the_mild_ones_are_three_of_each_kind() -> None:
    attacks = resolve(["mild"])
    kinds = [(one.image is not None, one.text is not None) for one in attacks]
    assert kinds == [(True, False)] * 3 + [(False, True)] * 3 + [(True, True)] * 3


def test_the_suite_attacks_everything_that_can_be_attacked() -> None:
    suite = resolve(["suite"])
    assert len(suite) == 12
    assert sum(one.image is not None and (one.text or one.corpus) is not None for one in suite) >= 8
    assert any(one.training.keep_best for one in suite)
    assert [one.name for one in suite if one.selection.judge] == ["loss-filter-20"]
    assert [one.name for one in suite if one.selection.clean_percent] == ["mix-20"]
    assert not any(one.models for one in suite)  # which would have to be downloaded
    # Pictures of every kind of change, words cut, drawn at random, and judged by lists and by statistics.
    hit = {family for one in suite for family in families(one.name)}
    assert {"jpeg", "gray", "ueraser", "denoise", "tail", "drop", "telling", "spell", "window"} <= hit


def test_training_joins_what_changes_the_data() -> None:
    one, *others = resolve(["jpeg-75+tail+early-stop", "early-stop+tail+jpeg-75"])
    assert others == []
    assert one.name == "jpeg-75+tail+early-stop"
    assert (one.image, one.text) == (attack_named("jpeg-75").image, attack_named("tail").text)
    assert one.training == attack_named("early-stop").training
    (late,) = resolve(["epochs-x3+template-2"])
    assert late.corpus is attack_named("template-2").corpus
    assert late.training.epochs == 3


def test_models_of_all_parts_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmguard.auditing.attacks.purify.find_spec", lambda name: object())
    assert attack_named("paraphrase:a/rewriter").models == ("a/rewriter",)
    assert attack_named("vae:a/vae+perplexity:a/judge@3").models == ("a/vae", "a/judge")
    assert attack_named("diffusion:a/unet@0.2+punct").models == ("a/unet",)


def test_a_plus_in_the_name_of_a_model_joins_nothing() -> None:
    for name in ("paraphrase:/models/a+b", "perplexity:a+b/c+d@3"):
        assert attack_named(name).name == name
        assert attack_named(f"gray+{name}+early-stop").models == attack_named(name).models
        assert list(families(f"{name}+early-stop")) == [name.partition(":")[0], "early-stop"]
    assert attack_named("paraphrase:/models/a+b").models == ("/models/a+b",)


@pytest.mark.parametrize("attack", [one for one in resolve(["suite"]) if one.image], ids=lambda one: one.name)
def test_images_of_the_suite_stay_images(attack) -> None:
    image = torch.rand((3, 20, 24), generator=torch.Generator().manual_seed(0))
    before = image.clone()
    after = attack.image(image, torch.Generator().manual_seed(0))
    assert after.ndim == 3
    assert after.shape[0] == 3
    assert after.isfinite().all()
    assert torch.equal(image, before)
    assert not torch.equal(after, image)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("jpge-50", r"attack 'jpge-50': there is none of that name: did you mean jpeg\?"),
        ("gary", "did you mean gray"),
        ("rcp+pnct", "attack 'pnct': there is none of that name: did you mean punct"),
        ("nothing-like-it", "choose from .*gray.*mild"),
        ("", "attack '': there is none"),
        ("gray+jpeg-50", "join at most one attack on images, one on texts and one on the training"),
        ("punct+case", "join at most one attack on images, one on texts"),
        ("rcp+punct+case", "join at most one attack on images, one on texts"),
        ("early-stop+epochs-x2", "one on the training, such as rcp.punct or jpeg-75.tail.early-stop"),
        ("rcp+epochs-x1", "join at most one"),
        ("tail+mix-50", "join one mixture and one filter"),
        ("jpeg", "^attack jpeg: behind jpeg- stands a whole number from 1 to 95, as in jpeg-75$"),
        ("jpeg-500", "^attack jpeg-500: behind jpeg- stands a whole number from 1 to 95, as in jpeg-75$"),
    ],
)
def test_what_is_no_attack(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(["gray", name])


def test_families() -> None:
    assert list(families("jpeg-75+case")) == ["jpeg", "case"]
    assert list(families("vae:some/model-1")) == ["vae"]


def test_what_was_tested_is_not_called_untested() -> None:
    assert not_tested([]) == tuple(NOT_TESTED)
    left = not_tested(["jpeg-50+punct", "gray"])
    gone = [line for line in NOT_TESTED if line not in left]
    assert [line.split(" ")[0] for line in gone] == ["compression", "grayscale", "changes"]
    assert "compression of the images as WebP" in left, "one kind does not stand for another"
    assert [line for line in left if line in NOT_TESTED] == list(left)


@pytest.mark.parametrize("sieve", ["loss-filter-20", "feature-filter-20"])
def test_a_filter_is_tested_only_where_there_is_something_to_tell_apart(sieve: str) -> None:
    assert not_tested([sieve]) == tuple(NOT_TESTED)
    assert not_tested([sieve, "mix-20"]) == not_tested(["mix-20"])
    assert len(not_tested([f"mix-20+{sieve}"])) == len(not_tested(["mix-20"])) - 1


def test_every_attack_says_what_it_tests() -> None:
    assert sorted(family for families in NOT_TESTED.values() for family in families) == sorted(attacks._FAMILIES)
