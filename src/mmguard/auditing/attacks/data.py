"""Attacks by choice of data: what a thief trains on, not what is done to a sample.

| name | what the attacker trains on |
|---|---|
| `mix-P` | P percent of the samples are clean ones of the owner, the others are released |
| `loss-filter-F` | not the F percent whose loss after a short warm-up is the most unusual, low or high |
| `feature-filter-F` | not the F percent whose features are the farthest from their nearest neighbours |
| `dedup` | one of all samples with nearly the same image and question, and the same answer |
| `leaked-detector-N` | what a classifier takes for clean that learned from N clean samples and their released forms |

A filter may clean a mixture, `mix-50+loss-filter-20`: only there is something to be told apart, and the detector works
nowhere else. By loss and features the released samples are compared with the clean ones then, which the thief knows
for its own and keeps, and F is the percentage of the released ones. Every attacker takes as many steps as without an
attack: what is left is repeated.
"""

from __future__ import annotations

from typing import Any

from mmguard.auditing.attacks.base import Factory, Selection, plain, strong


def _on(**selection: Any) -> dict[str, Any]:
    return {"selection": Selection(**selection)}


DATA_ATTACKS: dict[str, Factory] = {
    "mix": strong("mix", lambda percent: _on(clean_percent=percent), int, (1, 99), "mix-20"),
    "loss-filter": strong(
        "loss-filter", lambda percent: _on(judge="loss", drop_percent=percent), int, (1, 90), "loss-filter-20"
    ),
    "feature-filter": strong(
        "feature-filter", lambda percent: _on(judge="features", drop_percent=percent), int, (1, 90), "feature-filter-20"
    ),
    "dedup": plain("dedup", **_on(judge="duplicates")),
    "leaked-detector": strong(
        "leaked-detector",
        lambda count: _on(judge="leaked", leaked=count),
        int,
        (1, 10_000),
        "mix-50+leaked-detector-20",
    ),
}
"""The attacks by choice of data, by family."""
