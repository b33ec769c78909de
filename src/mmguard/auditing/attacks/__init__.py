"""What a thief does to a release, or to the training on it, to be rid of its protection.

A name is a family, with its parameter behind a dash or colon (`jpeg-50`, `paraphrase:MODEL`); `+` joins attacks on
images, on texts and on the training (`rcp+punct`, `jpeg-75+tail+early-stop`), or a mixture and a filter
(`mix-50+loss-filter-20`).
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable, Iterator
from dataclasses import replace

from mmguard.auditing.attacks.base import Attack, Factory, Selection, Training
from mmguard.auditing.attacks.data import DATA_ATTACKS
from mmguard.auditing.attacks.images import IMAGE_ATTACKS
from mmguard.auditing.attacks.texts import TEXT_ATTACKS
from mmguard.auditing.attacks.training import TRAINING_ATTACKS
from mmguard.errors import ConfigError

_FAMILIES: dict[str, Factory] = {**IMAGE_ATTACKS, **TEXT_ATTACKS, **TRAINING_ATTACKS, **DATA_ATTACKS}

MILD = ("rcp", "jpeg-75", "blur-1", "punct", "case", "space", "rcp+punct", "jpeg-75+case", "blur-1+space")
"""The paper's nine: mild transforms of images, of texts, and of both (method.md, section 4)."""

SUITE = (
    "tail", "jpeg-50+tail", "gray+tail", "ueraser+tail",
    "jpeg-75+drop-5", "denoise-10+window-7", "resize-2+telling-5", "median-3+spell", "rcp+punct",
    "loss-filter-20", "jpeg-75+tail+early-stop", "mix-20",
)  # fmt: skip
"""What a thief can be expected to try without another model; docs/attacks.md says why these twelve.

Nearly all change images and questions together: a protection that stands on both falls only with both. `mix-20` is
judged by marginal value, and is no part of the worst case.
"""

SHORTHANDS = {"mild": MILD, "suite": SUITE}


def resolve(names: Iterable[str]) -> tuple[Attack, ...]:
    """The attacks that names stand for, each once, in order.

    Args:
        names: of attacks, of several joined by `+`, or a shorthand: `mild` (the paper's nine) or `suite` (what a
            thief can be expected to try).

    Raises:
        ConfigError: an unknown name, a strength that the attack cannot have, two attacks of one kind joined, a
            mixture or filter joined with anything but the other, or a detector without a mixture.
    """
    spelled = (one for name in names for one in SHORTHANDS.get(name, (name,)))
    found = (attack_named(name) for name in spelled)
    return tuple({one.name: one for one in found}.values())


@functools.cache  # an attack may hold a model, which all runs of a process share
def attack_named(name: str) -> Attack:
    """The attack of one name; raises as `resolve` does."""
    joined = _parts(name)
    if len(joined) == 1:
        attack = _single(name)
        if attack.selection.judge == "leaked":
            raise ConfigError(f"attack {name}: it looks for protected samples among clean ones: write mix-50+{name}")
        return attack
    parts = [_single(part) for part in joined]
    if any(one.selection != Selection() for one in parts):
        return _filtered_mixture(name, parts)
    images = [one for one in parts if one.image]
    texts = [one for one in parts if one.text or one.corpus]
    trainings = [one for one in parts if one.training != Training()]
    kinds = (images, texts, trainings)
    if max(map(len, kinds)) > 1 or sum(map(len, kinds)) < len(parts):  # epochs-x1 and lr-x1 are of no kind
        raise ConfigError(
            f"attack {name}: join at most one attack on images, one on texts and one on the training, such as "
            "rcp+punct or jpeg-75+tail+early-stop"
        )
    return functools.reduce(_joined, (*images, *texts, *trainings))


def _joined(first: Attack, then: Attack) -> Attack:
    """Two attacks of different kinds."""
    return Attack(
        name=f"{first.name}+{then.name}",
        image=first.image or then.image,
        text=first.text or then.text,
        corpus=first.corpus or then.corpus,
        each_epoch=first.each_epoch or then.each_epoch,
        training=then.training,  # which comes last
        models=first.models + then.models,
    )


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
    for part in _parts(name):
        yield _family(part) or part


def _parts(name: str) -> list[str]:
    """The names that `+` joins. One in the name of a model joins nothing, unless that of an attack follows."""
    parts: list[str] = []
    for piece in name.split("+"):
        if parts and ":" in parts[-1] and _family(piece) is None:
            parts[-1] += f"+{piece}"
        else:
            parts.append(piece)
    return parts


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
