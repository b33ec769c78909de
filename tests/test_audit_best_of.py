"""The worst case: who may choose gains what the best option is worth, and nothing by luck."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mmguard.auditing.best_of import choosing_half, worst_case
from mmguard.auditing.stats import Scores

ITEMS, SEEDS = 400, 3
GROUPS = list(range(ITEMS))


def _right(share: float) -> np.ndarray:
    """Right on that share of the items of either half."""
    right = np.zeros((SEEDS, ITEMS))
    for half in (choosing_half(GROUPS), ~choosing_half(GROUPS)):
        right[:, np.flatnonzero(half)[: round(share * ITEMS / 2)]] = 1
    return right


def _option(attack, clean, control, release, *, attacker="a", recipe="lora", status="valid") -> Scores:
    by_arm = {"clean": _right(clean), "control": _right(control), "release": _right(release)}
    return Scores(attacker, recipe, by_arm, _right(0.2)[0], "control", attack, status)


def test_every_arm_gets_what_is_best_for_it():
    options = [
        _option(None, 0.8, 0.8, 0.3),
        _option("jpeg-50", 0.7, 0.75, 0.6),
        _option("gray", 0.6, 0.6, 0.5),
        _option("gray", 0.6, 0.6, 0.55, recipe="full"),
    ]
    worst = worst_case(options, GROUPS)
    (finding,), (choice,) = worst.findings, worst.choices
    assert choice == {"clean": "lora", "control": "lora", "release": "lora under jpeg-50"}
    assert finding.recipe == "best of 4"
    assert finding.accuracy == pytest.approx({"clean": 0.8, "control": 0.8, "release": 0.6})
    assert finding.beyond_control.value == pytest.approx(0.2)
    assert finding.gain_removed.value == pytest.approx(0.2 / 0.6)
    assert finding.beyond_control.low < 0.2 < finding.beyond_control.high
    assert worst.headline.beyond_control == finding.beyond_control
    assert worst.headline.strongest == "a (best of 4)"
    assert worst.headline.claim


def test_without_a_better_option_nothing_is_attacked():
    worst = worst_case([_option(None, 0.8, 0.8, 0.3), _option("gray", 0.8, 0.8, 0.3)], GROUPS)
    assert set(worst.choices[0].values()) == {"lora"}


def test_who_judges_did_not_choose():
    """Chosen by its luck on one half, an option is worth what it is on the other."""
    choosing = choosing_half(GROUPS)
    lucky = _option("jpeg-50", 0.5, 0.5, 0.0)
    lucky.by_arm["release"][:, choosing] = 1
    worst = worst_case([_option(None, 0.8, 0.8, 0.5), lucky], GROUPS)
    assert worst.choices[0]["release"] == "lora under jpeg-50"
    assert worst.findings[0].accuracy["release"] == 0
    # And what is best on the judging half only is never seen.
    unseen = _option("gray", 0.5, 0.5, 0.0)
    unseen.by_arm["release"][:, ~choosing] = 1
    worst = worst_case([_option(None, 0.8, 0.8, 0.5), unseen], GROUPS)
    assert worst.choices[0]["release"] == "lora"
    assert worst.findings[0].accuracy["release"] == pytest.approx(0.5)


def test_choosing_among_equals_gains_nothing():
    """Thirty options that are all worth a half: the best of them looks better, and is judged no better."""
    rng = np.random.default_rng(0)
    best, judged = [], []
    for _ in range(40):
        options = []
        for number in range(30):
            by_arm = {
                arm: np.tile(rng.random(100) < 0.5, (SEEDS, 1)).astype(float) for arm in ("clean", "control", "release")
            }
            options.append(Scores("a", "lora", by_arm, np.zeros(100), "control", str(number), "valid"))
        best.append(max(one.by_arm["release"].mean() for one in options))
        judged.append(worst_case(options, list(range(100)), resamples=100).findings[0].accuracy["release"])
    assert np.mean(best) > 0.58
    assert np.mean(judged) == pytest.approx(0.5, abs=0.025)


def test_questions_of_one_image_stay_in_one_half():
    groups = [number // 5 for number in range(60)]
    half = choosing_half(groups)
    assert half.sum() == 30
    assert all(len(set(half[start : start + 5])) == 1 for start in range(0, 60, 5))
    assert choosing_half(groups).tolist() == half.tolist()


@pytest.mark.parametrize("groups", [[0], [0, 0, 0]])
def test_one_image_cannot_be_split(groups):
    ones = np.ones((SEEDS, len(groups)))
    by_arm = {"clean": ones, "control": ones, "release": ones}
    assert worst_case([Scores("a", "lora", by_arm, ones[0], "control", "gray", "valid")], groups) is None


def test_nothing_to_choose_from():
    assert worst_case([], GROUPS) is None


def test_mean_over_attackers_that_are_not_brittle():
    strong = [_option(None, 0.8, 0.8, 0.5), _option("gray", 0.8, 0.8, 0.7)]
    weak = [_option(None, 0.8, 0.8, 0.3, attacker="b"), _option("gray", 0.8, 0.8, 0.4, attacker="b")]
    brittle = [replace(one, attacker="c", status="brittle") for one in strong]
    # Where one recipe is not brittle, the attacker is not: it may take that one.
    mixed = replace(weak[0], recipe="full", status="brittle")
    worst = worst_case([*strong, *weak, mixed, *brittle], GROUPS)
    assert [one.status for one in worst.findings] == ["valid", "valid", "brittle"]
    assert (worst.headline.counted, worst.headline.brittle) == (2, 1)
    assert worst.headline.beyond_control.value == pytest.approx((0.1 + 0.4) / 2)
    assert worst.headline.strongest == "a (best of 2)"
