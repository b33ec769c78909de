"""Attacks by choice of data: what a thief trains on, not what is done to a sample.

| name | what the attacker trains on |
|---|---|
| `mix-P` | P percent of the samples are clean ones of the owner, the others are released |
| `loss-filter-F` | not the F percent of the samples whose loss is the most unusual, low or high; 20 if not given |
| `feature-filter-F` | not the F percent that are farthest from their nearest neighbours; 20 if not given |
| `dedup` | one of all samples with nearly the same image, question and answer |
| `leaked-detector-N` | what a classifier passes that learned from N samples in both versions; half the data is clean |

A filter may clean a mixture: `mix-50+loss-filter-20`. Every attacker takes as many steps as without an attack; where
fewer samples are left they are repeated. `selection` does what the names here ask for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from mmguard.auditing.attacks.base import Attack, Factory, Selection
from mmguard.errors import ConfigError


def _numbered(name: str, selection: Callable[[int], Selection], most: int, symbol: str, usual: int) -> Factory:
    """A factory of an attack with a whole number from 1."""

    def factory(parameter: str | None) -> Attack:
        if parameter is None or not parameter.isdecimal() or not 1 <= int(parameter) <= most:
            given = f"{name}-{parameter}" if parameter else name
            raise ConfigError(
                f"attack {given}: {symbol} of {name}-{symbol} is a whole number from 1 to {most}, as in {name}-{usual}"
            )
        return Attack(f"{name}-{int(parameter)}", selection=selection(int(parameter)))

    return factory


def _filter(name: str, judge: Literal["loss", "features"]) -> Factory:
    """A factory of a filter that drops 20 % if nobody says how much."""
    numbered = _numbered(name, lambda percent: Selection(judge=judge, drop_percent=percent), 90, "F", 20)
    return lambda parameter: numbered("20" if parameter is None else parameter)


def _dedup(parameter: str | None) -> Attack:
    if parameter is not None:
        raise ConfigError(f"attack dedup-{parameter}: dedup has no strength, write dedup alone")
    return Attack("dedup", selection=Selection(judge="duplicates"))


DATA_ATTACKS: dict[str, Factory] = {
    "mix": _numbered("mix", lambda percent: Selection(clean_percent=percent), 99, "P", 20),
    "loss-filter": _filter("loss-filter", "loss"),
    "feature-filter": _filter("feature-filter", "features"),
    "dedup": _dedup,
    "leaked-detector": _numbered(
        "leaked-detector", lambda count: Selection(clean_percent=50, judge="leaked", leaked=count), 100_000, "N", 50
    ),
}
"""The attacks by choice of data, by family."""
