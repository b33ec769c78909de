"""What the names of attacks stand for, and what is said of those that stand for nothing."""

from __future__ import annotations

import pytest
import torch

from mmguard.auditing import attacks
from mmguard.auditing.attacks import MILD, SHORTHANDS, SUITE, attack_named, families, resolve
from mmguard.auditing.report import NOT_TESTED, not_tested
from mmguard.errors import ConfigError


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
    assert set(MILD) < set(SUITE)


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
        ("gray+jpeg-50", "join one attack on images and one on texts"),
        ("punct+case", "join one attack on images and one on texts"),
        ("rcp+punct+case", "join one attack on images and one on texts"),
        ("jpeg", "as|such"),
        ("jpeg-500", "95"),
    ],
)
def test_what_is_no_attack(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(["gray", name])


def test_families() -> None:
    assert list(families("jpeg-75+case")) == ["jpeg", "case"]
    assert list(families("vae:some/model-1")) in (["vae"], ["vae:some/model-1"])


def test_what_was_tested_is_not_called_untested() -> None:
    assert not_tested([]) == tuple(NOT_TESTED)
    left = not_tested(["jpeg-50+punct", "gray"])
    gone = [line for line in NOT_TESTED if line not in left]
    assert [line.split(" ")[0] for line in gone] == ["compression", "grayscale,", "changes"]
    assert [line for line in left if line in NOT_TESTED] == list(left)


def test_every_attack_says_what_it_tests() -> None:
    assert sorted(family for families in NOT_TESTED.values() for family in families) == sorted(attacks._FAMILIES)
