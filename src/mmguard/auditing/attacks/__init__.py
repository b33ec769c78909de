"""What a thief does to a release, or to the training on it, to be rid of its protection.

A name is a family, with its parameter behind a dash or colon (`jpeg-50`, `paraphrase:MODEL`); `+` joins an attack on
images with one on texts (`rcp+punct`), or a mixture with a filter (`mix-50+loss-filter-20`).
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable, Iterator
from dataclasses import replace

from mmguard.auditing.attacks.base import Attack, Factory, Selection
from mmguard.auditing.attacks.data import DATA_ATTACKS
from mmguard.auditing.attacks.images import IMAGE_ATTACKS
from mmguard.auditing.attacks.texts import TEXT_ATTACKS
from mmguard.auditing.attacks.training import TRAINING_ATTACKS
from mmguard.errors import ConfigError

_FAMILIES: dict[str, Factory] = {**IMAGE_ATTACKS, **TEXT_ATTACKS, **TRAINING_ATTACKS, **DATA_ATTACKS}

MILD = ("rcp", "jpeg-75", "blur-1", "punct", "case", "space", "rcp+punct", "jpeg-75+case", "blur-1+space")
"""The paper's nine: mild transforms of images, of texts, and of both (method.md, section 4)."""

SUITE = (
    *MILD, "gray", "jpeg-50", "jpeg-10", "median-3", "resize-2", "denoise-10", "ueraser",
    "drop-5", "tail", "vocab", "spell", "jpeg-50+tail",
)  # fmt: skip
"""What a thief can be expected to try without another model: the paper's transforms, those that broke earlier
protections of images, and those that are aimed at inserted words."""

SHORTHANDS = {"mild": MILD, "suite": SUITE}


def resolve(names: Iterable[str]) -> tuple[Attack, ...]:
    """The attacks that names stand for, each once, in order.

    Args:
        names: of attacks, of two joined by `+`, or a shorthand: `mild` (the paper's nine) or `suite` (all that a
            thief can be expected to try).

    Raises:
        ConfigError: an unknown name, a strength that the attack cannot have, a combination of other than one
            attack on images and one on texts, or one mixture and one filter, or a detector without a mixture.
    """
    spelled = (one for name in names for one in SHORTHANDS.get(name, (name,)))
    found = (attack_named(name) for name in spelled)
    return tuple({one.name: one for one in found}.values())


@functools.cache  # an attack may hold a model, which all runs of a process share
def attack_named(name: str) -> Attack:
    """The attack of one name; raises as `resolve` does."""
    if "+" not in name:
        attack = _single(name)
        if attack.selection.judge == "leaked":
            raise ConfigError(f"attack {name}: it looks for protected samples among clean ones: write mix-50+{name}")
        return attack
    parts = [_single(part) for part in name.split("+")]
    if any(one.selection != Selection() for one in parts):
        return _filtered_mixture(name, parts)
    images, texts = [one for one in parts if one.image], [one for one in parts if one.text or one.corpus]
    if len(parts) != 2 or len(images) != 1 or len(texts) != 1:
        raise ConfigError(f"attack {name}: join one attack on images and one on texts, such as rcp+punct")
    (image,), (text,) = images, texts
    return replace(image, name=f"{image.name}+{text.name}", text=text.text, corpus=text.corpus)


def _filtered_mixture(name: str, parts: list[Attack]) -> Attack:
    filters = [one for one in parts if one.selection.judge]
    mixtures = [one for one in parts if one.selection.clean_percent is not None]
    if len(parts) != 2 or len(filters) != 1 or len(mixtures) != 1:
        raise ConfigError(f"attack {name}: join one mixture and one filter, such as mix-50+loss-filter-20")
    (mixture,), (sieve,) = mixtures, filters
    selection = replace(sieve.selection, clean_percent=mixture.selection.clean_percent)
    return Attack(f"{mixture.name}+{sieve.name}", selection=selection)


def families(name: str) -> Iterator[str]:
    """The families that an attack's name is made of: `jpeg` and `case` of `jpeg-75+case`."""
    for part in name.split("+"):
        yield _family(part) or part


def _family(part: str) -> str | None:
    """The family that a name begins with; the longest, should one's name begin another's."""
    known = [family for family in _FAMILIES if part == family or part.startswith((f"{family}-", f"{family}:"))]
    return max(known, key=len, default=None)


@functools.cache  # as above
def _single(name: str) -> Attack:
    family = _family(name)
    if family is None:
        known = sorted([*_FAMILIES, *SHORTHANDS])
        near = difflib.get_close_matches(name.partition("-")[0], known)
        cure = f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(known)}"
        raise ConfigError(f"attack {name!r}: there is none of that name: {cure}")
    return _FAMILIES[family](name[len(family) + 1 :] if name != family else None)
