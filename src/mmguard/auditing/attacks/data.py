"""Attacks by choice of data: what a thief trains on, not what is done to a sample.

| name | what the attacker trains on |
|---|---|
| `mix-P` | P percent of the samples are clean ones of the owner, the others are released |
| `loss-filter-F` | not the F percent whose loss after a short warm-up is the most unusual, low or high |
| `feature-filter-F` | not the F percent whose features are the farthest from their nearest neighbours' |
| `dedup` | one of all samples with nearly the same image and question, and the same answer |
| `leaked-detector-N` | what a classifier takes for clean that learned from N clean samples and their released forms |

A filter may clean a mixture, `mix-50+loss-filter-20`: only there is something to be told apart, and the detector works
nowhere else. Every attacker takes as many steps as without an attack: what is left is repeated.
"""

from __future__ import annotations

from collections.abc import Callable

from mmguard.auditing.attacks.base import Attack, Factory, Selection
from mmguard.errors import ConfigError


def _numbered(name: str, selection: Callable[[int], Selection], most: int, example: str) -> Factory:
    """A factory of an attack with a whole number from 1."""

    def factory(parameter: str | None) -> Attack:
        if parameter is None or not parameter.isdecimal() or not 1 <= int(parameter) <= most:
            given = f"{name}-{parameter}" if parameter else name
            raise ConfigError(f"attack {given}: behind {name}- stands a whole number from 1 to {most}, as in {example}")
        return Attack(f"{name}-{int(parameter)}", selection=selection(int(parameter)))

    return factory


def _dedup(parameter: str | None) -> Attack:
    if parameter is not None:
        raise ConfigError(f"attack dedup-{parameter}: dedup has no strength, write dedup alone")
    return Attack("dedup", selection=Selection(judge="duplicates"))


DATA_ATTACKS: dict[str, Factory] = {
    "mix": _numbered("mix", lambda percent: Selection(clean_percent=percent), 99, "mix-20"),
    "loss-filter": _numbered(
        "loss-filter", lambda percent: Selection(judge="loss", drop_percent=percent), 90, "loss-filter-20"
    ),
    "feature-filter": _numbered(
        "feature-filter", lambda percent: Selection(judge="features", drop_percent=percent), 90, "feature-filter-20"
    ),
    "dedup": _dedup,
    "leaked-detector": _numbered(
        "leaked-detector", lambda count: Selection(judge="leaked", leaked=count), 10_000, "mix-50+leaked-detector-20"
    ),
}
"""The attacks by choice of data, by family."""
