"""Evidence survives being written and read, and says the same afterwards."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mmguard.auditing.evidence import Evidence
from mmguard.auditing.report import Failure, Filtered
from mmguard.auditing.stats import Scores

ITEMS = 45  # no multiple of 8: the last byte of packed scores is not full
RNG = np.random.default_rng(0)


def scores(recipe: str, attack: str | None = None, release: float = 0.3, **more: float) -> Scores:
    shares = {"clean": 0.8, "control": 0.8, "release": release, **more}
    by_arm = {arm: (RNG.random((3, ITEMS)) < share).astype(float) for arm, share in shares.items()}
    return Scores("a", recipe, by_arm, np.zeros(ITEMS), "control", attack)


def evidence(*every: Scores, **more) -> Evidence:
    return Evidence(every, tuple(range(ITEMS)), ("gray", "early-stop", "mix-20"), resamples=200, seed=0, **more)


@pytest.mark.parametrize("soft", [False, True])
def test_it_says_the_same_after_being_written(soft: bool) -> None:
    every = [scores("lora"), scores("lora", "gray"), scores("lora", "early-stop")]
    every.append(scores("lora", "mix-20", **{"clean-part": 0.4}))
    if soft:
        every[0].by_arm["release"][1, 3] = 1 / 3
    filtered = (Filtered("a", "lora", "mix-20", "release", 0.1, None),)
    one = evidence(
        *every, sifted=filtered, failures=(Failure("b", "broke"),), warnings=("w",), provenance={"seeds": [0, 1, 2]}
    )
    again = Evidence.from_dict(json.loads(json.dumps(one.to_dict(), allow_nan=False)))
    assert again.report() == one.report()
    report = one.report()
    assert [finding.attack for finding in report.under_attack] == ["gray", "early-stop"]
    assert report.mixtures
    assert report.worst_case


def test_recipes_alone_make_a_worst_case() -> None:
    report = evidence(scores("lora"), scores("full", release=0.7)).report()
    assert report.worst_case is not None
    assert report.worst_case.choices[0]["release"] == "full"
    worst, mean = report.worst_case.headline.beyond_control, report.headline.beyond_control
    assert worst is not None
    assert mean is not None
    assert worst.value < mean.value
    assert "In the mean over recipes they lose" in report.verdict
    assert "## Where attackers choose the recipe" in report.to_markdown()
    assert evidence(scores("lora")).report().worst_case is None
