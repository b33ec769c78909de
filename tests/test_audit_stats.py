"""Audit statistics: hand-computed values, coverage of the intervals, and what has no number."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmguard.auditing.stats import Estimate, Scores, analyse, mean_of_independent

ARMS = {"clean": 0.42, "control": 0.41, "release": 0.36}


def _arm(*accuracies: float, items: int = 100) -> np.ndarray:
    """One row a seed; the first so many of 100 items are right."""
    return np.array([[float(number < round(share * items)) for number in range(items)] for share in accuracies])


def _scores(clean, release, control=None, zero=0.2, name="a", matched="control", items=100) -> Scores:
    by_arm = {"clean": _arm(*clean, items=items), "release": _arm(*release, items=items)}
    if control is not None:
        by_arm[matched] = _arm(*control, items=items)
    return Scores(name, "lora", by_arm, _arm(zero, items=items)[0], matched)


def test_point_estimates_by_hand():
    scores = _scores(clean=(0.80, 0.84, 0.82), release=(0.50, 0.55, 0.60), control=(0.80, 0.80, 0.80))
    (finding,), headline = analyse([scores])
    assert finding.zero_shot == pytest.approx(0.2)
    assert finding.accuracy == pytest.approx({"clean": 0.82, "release": 0.55, "control": 0.80})
    assert finding.gain.value == pytest.approx(0.62)
    assert finding.drop.value == pytest.approx(0.27)
    assert finding.control_cost.value == pytest.approx(0.02)
    assert finding.beyond_control.value == pytest.approx(0.25)
    assert finding.gain_removed.value == pytest.approx(0.25 / 0.60)
    assert finding.status == "valid"
    for estimate in (finding.drop, finding.control_cost, finding.beyond_control, finding.gain_removed):
        assert estimate.low < estimate.value < estimate.high
    assert headline.claim
    assert headline.counted == 1
    assert headline.beyond_control.value == pytest.approx(0.25)
    assert headline.gain_removed.value == pytest.approx(0.25 / 0.60)


def test_soft_scores_by_hand():
    """Two items at half their worth are as much as one: VQA accuracy and ANLS give such scores."""
    by_arm = {
        "clean": np.array([[1.0, 0.9, 0.6, 0.5], [1.0, 1.0, 0.5, 0.5], [1.0, 0.8, 0.7, 0.5]]),
        "release": np.array([[0.5, 0.3, 0.0, 0.0], [0.6, 0.3, 0.0, 0.0], [0.7, 0.0, 0.0, 0.0]]),
    }
    by_arm["control"] = by_arm["clean"] - 0.01
    (finding,), _ = analyse([Scores("a", "lora", by_arm, np.array([0.2, 0.0, 0.0, 0.0]), "control")])
    assert finding.zero_shot == pytest.approx(0.05)
    assert finding.accuracy == pytest.approx({"clean": 0.75, "release": 0.2, "control": 0.74})
    assert finding.drop.value == pytest.approx(0.55)
    assert finding.beyond_control.value == pytest.approx(0.54)
    assert finding.gain_removed.value == pytest.approx(0.54 / 0.69)
    assert 0.3 < finding.drop.low < 0.55 < finding.drop.high < 0.8


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 1))
def test_scores_at_a_share_of_their_worth_give_that_share_of_every_number(seed, share):
    rng = np.random.default_rng(seed)
    hard = {arm: (rng.random((3, 20)) < p).astype(float) for arm, p in (("clean", 0.9), ("release", 0.4))}
    zero = (rng.random(20) < 0.1).astype(float)
    (whole,), _ = analyse([Scores("a", "lora", hard, zero, "control")], resamples=100)
    soft = {arm: share * scores for arm, scores in hard.items()}
    (part,), _ = analyse([Scores("a", "lora", soft, share * zero, "control")], resamples=100)
    for one, other in ((part.drop, whole.drop), (part.gain, whole.gain)):
        assert (one.value, one.low, one.high) == pytest.approx(
            (share * other.value, share * other.low, share * other.high)
        )


@pytest.mark.parametrize("wrong", [-0.1, 1.1, float("nan")])
def test_scores_are_shares(wrong):
    scores = _scores((0.8,), (0.5,))
    scores.zero_shot[3] = wrong
    with pytest.raises(ValueError, match=r"a: scores from .* which should be 0 to 1"):
        analyse([scores])


def test_items_are_paired_across_arms():
    # Whatever items are drawn, an arm that is right wherever the other is differs from it by nothing.
    (finding,), _ = analyse([_scores((0.6, 0.6, 0.6), (0.6, 0.6, 0.6), (0.6, 0.6, 0.6))])
    assert (finding.drop.low, finding.drop.high) == (0, 0)


def test_seeds_are_paired_by_index():
    # Seeds differ wildly, the arms of one seed always by ten points: only the items make the interval wide.
    (paired,), _ = analyse([_scores((0.9, 0.5, 0.2), (0.8, 0.4, 0.1))])
    (crossed,), _ = analyse([_scores((0.9, 0.5, 0.2), (0.1, 0.8, 0.4))])
    assert paired.drop.value == pytest.approx(crossed.drop.value)
    assert paired.drop.high - paired.drop.low < 0.15
    assert crossed.drop.high - crossed.drop.low > 0.5


def test_variance_between_seeds_is_not_understated():
    """With many items only seeds vary: the resamples' variance must be s²/S, not s²/S · (S − 1)/S."""
    from mmguard.auditing.stats import _draw

    accuracies = (0.2, 0.5, 0.6, 0.9)
    draws = _draw(_scores(accuracies, accuracies, items=2000), None, 4000, 0, 0)["clean"].draws
    assert draws.var() == pytest.approx(np.var(accuracies, ddof=1) / 4, rel=0.1)


def test_few_seeds_widen_an_interval_as_student_says():
    # Items all alike leave the seeds alone: two degrees of freedom.
    (finding,), _ = analyse([_scores((0.8, 0.8, 0.8), (0.7, 0.6, 0.5), items=1000)], resamples=20_000)
    reach = 4.303 * 0.1 / 3**0.5
    noise = 1.96 * (0.2 * 0.8 / 1000) ** 0.5  # of items, which count besides
    assert reach * 0.95 < finding.drop.high - 0.2 < 1.05 * np.hypot(reach, 4.303 / 1.96 * noise)


@pytest.mark.parametrize(
    ("attackers", "seeds", "spread", "items"),
    [(1, 3, 0.02, 150), (1, 6, 0.04, 150), (1, 3, 0.1, 400), (4, 3, 0.1, 400)],
)
def test_intervals_cover_the_truth(attackers: int, seeds: int, spread: float, items: int):
    """Of 200 simulated audits, about 95% of the intervals hold the true effect; the bound allows for chance."""
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        difficulty = rng.normal(0, 0.1, size=items)  # shared by all, as by any two models
        entries = []
        for name in "abcd"[:attackers]:
            by_arm = {}
            for arm, mean in (("clean", 0.6), ("control", 0.6), ("release", 0.5)):
                chance = mean + difficulty + rng.normal(0, spread, size=(seeds, 1))
                by_arm[arm] = (rng.random((seeds, items)) < chance).astype(float)
            entries.append(Scores(name, "lora", by_arm, np.zeros(items), "control"))
        _, headline = analyse(entries, resamples=300, seed=trial)
        found = headline.all_beyond_control
        covered += found.low <= 0.1 <= found.high
    assert covered / 200 >= 0.91


def test_items_of_one_image_are_drawn_together():
    # Ten images of ten questions each, all right or all wrong: ten observations, not a hundred.
    entry = _scores((0.5,) * 3, (0.5,) * 3)
    images = [number // 10 for number in range(100)]
    (alone,), _ = analyse([entry])
    (grouped,), _ = analyse([entry], groups=images)
    width = [finding.gain.high - finding.gain.low for finding in (alone, grouped)]
    assert width[1] > 2 * width[0]


def test_group_sizes_weigh_by_items():
    groups = [0] * 90 + [1] * 10
    (finding,), _ = analyse([_scores((0.9,) * 3, (0.9,) * 3, zero=0.0)], groups=groups)
    assert finding.gain.value == pytest.approx(0.9)
    assert (finding.gain.low, finding.gain.high) == (0, 1)


@pytest.mark.parametrize(
    ("control", "zero"),
    [
        ((0.20, 0.20, 0.20), 0.20),  # fine-tuning gains nothing
        ((0.15, 0.15, 0.15), 0.20),  # it loses
        ((0.21, 0.21, 0.21), 0.20),  # one item: far from clear
    ],
)
def test_an_attacker_that_gains_next_to_nothing_is_in_no_mean(control, zero):
    untaught = _scores(control, (0.1, 0.1, 0.1), control, zero, name="untaught")
    taught = _scores((0.8,) * 3, (0.5,) * 3, (0.8,) * 3, zero)
    (_, finding), headline = analyse([taught, untaught])
    assert finding.gain_removed is None
    assert finding.status == "untaught"
    assert (headline.counted, headline.brittle) == (1, 0)
    assert headline == replace(analyse([taught])[1], untaught=1), "as if it had not been there"
    assert analyse([untaught])[1].beyond_control is None
    # Too few seeds say neither.
    (finding,), _ = analyse([replace(untaught, by_arm={arm: one[:2] for arm, one in untaught.by_arm.items()})])
    assert finding.status == "unjudged"


def test_one_seed_that_learned_nothing_makes_an_attacker_doubtful():
    (finding,), headline = analyse([_scores((0.05, 0.20, 0.60), (0.1,) * 3, (0.05, 0.20, 0.60))])
    assert finding.status == "doubtful"
    assert finding.gain_removed is None
    assert headline.counted == 1


def test_who_lost_least_goes_by_points_where_not_all_have_a_share():
    unclear = _scores((0.05, 0.20, 0.60), (0.3,) * 3, (0.05, 0.20, 0.60), name="unclear")  # and loses nothing
    clear = _scores((0.8,) * 3, (0.5,) * 3, (0.8,) * 3, name="clear")
    assert analyse([unclear, clear])[1].strongest == "unclear (lora)"


def test_who_lost_least_is_who_kept_most_of_its_gain():
    weak = _scores((0.3,) * 3, (0.1,) * 3, (0.3,) * 3, zero=0.0, name="weak")
    strong = _scores((0.9,) * 3, (0.6,) * 3, (0.9,) * 3, zero=0.0, name="strong")
    assert analyse([weak, strong])[1].strongest == "strong (lora)", "which lost more points"


def test_share_above_one_is_allowed():
    (finding,), _ = analyse([_scores((0.8,) * 3, (0.1,) * 3, (0.8,) * 3, zero=0.3)])
    assert finding.gain_removed.value == pytest.approx(0.7 / 0.5)


@pytest.mark.parametrize(
    ("cost", "status"),
    [
        (0.0, "valid"),
        (-0.1, "valid"),
        (0.03, "valid"),
        (0.04, "doubtful"),
        (0.05, "doubtful"),
        (0.06, "brittle"),
    ],
)
def test_status_by_control_cost(cost: float, status: str):
    (finding,), headline = analyse([_scores((0.8,) * 3, (0.4,) * 3, (0.8 - cost,) * 3)])
    assert finding.status == status
    assert headline.brittle == (status == "brittle")
    assert headline.counted == (status != "brittle")


def test_brittle_by_the_mean_over_seeds_and_not_by_one():
    (finding,), _ = analyse([_scores((0.8,) * 3, (0.4,) * 3, (0.70, 0.80, 0.80))])
    assert finding.status == "doubtful"


def test_brittle_attackers_do_not_enter_the_mean():
    sturdy = _scores((0.8,) * 3, (0.6,) * 3, (0.8,) * 3, name="sturdy")
    brittle = _scores((0.8,) * 3, (0.1,) * 3, (0.5,) * 3, name="brittle")
    findings, headline = analyse([brittle, sturdy])
    assert [finding.status for finding in findings] == ["brittle", "valid"]
    assert headline.beyond_control.value == pytest.approx(0.2)
    assert headline.strongest == "sturdy (lora)"
    assert (headline.counted, headline.brittle) == (1, 1)


def test_mean_over_attackers_and_the_strongest():
    strong = _scores((0.8,) * 3, (0.75,) * 3, (0.8,) * 3, name="strong")
    weak = _scores((0.8,) * 3, (0.45,) * 3, (0.8,) * 3, name="weak")
    _, headline = analyse([weak, strong])
    assert headline.beyond_control.value == pytest.approx(0.2)
    assert headline.beyond_control.low < 0.2 < headline.beyond_control.high
    assert headline.strongest == "strong (lora)"


def test_a_mean_whose_ends_no_number_tells_is_none():
    """Each of several marginal attackers may lack a gain in few resamples, and the mean of all in too many."""
    rng = np.random.default_rng(2)

    def seeds(accuracy: float) -> np.ndarray:
        each = np.clip(accuracy + rng.normal(0, 0.05, 3), 0, 1)
        return (rng.random((3, 200)) < each[:, None]).astype(float)

    marginal = [
        Scores(str(number), "lora", {arm: seeds(at) for arm, at in ARMS.items()}, _arm(0.3, items=200)[0], "control")
        for number in range(40)
    ]
    findings, headline = analyse(marginal, resamples=400)
    assert all(one.gain_removed is None or np.isfinite(one.gain_removed.low) for one in findings)
    assert sum(one.gain_removed is not None for one in findings) > 1
    assert headline.all_gain_removed is None
    json.dumps(asdict(headline), allow_nan=False)


@pytest.mark.parametrize("seeds", [1, 2])
def test_few_seeds_make_no_claim_and_judge_nobody(seeds: int):
    (finding,), headline = analyse([_scores((0.8,) * seeds, (0.4,) * seeds, (0.5,) * seeds)])
    assert finding.status == "unjudged"
    assert not headline.claim
    assert finding.drop.value == pytest.approx(0.4)


def test_without_the_matched_control():
    (finding,), headline = analyse([_scores((0.8,) * 3, (0.4,) * 3)])
    assert finding.control_cost is finding.beyond_control is finding.gain_removed is None
    assert finding.status == "unjudged"
    assert headline.beyond_control is None
    assert not headline.claim


def test_nothing_to_analyse():
    findings, headline = analyse([])
    assert findings == []
    assert headline.beyond_control is None
    assert not headline.claim


def test_all_wrong_everywhere():
    (finding,), _ = analyse([_scores((0.0,) * 3, (0.0,) * 3, (0.0,) * 3, zero=0.0)])
    assert (finding.drop.value, finding.drop.low, finding.drop.high) == (0, 0, 0)
    assert finding.gain_removed is None


def test_same_seed_same_intervals():
    entry = _scores((0.8, 0.7, 0.6), (0.4, 0.5, 0.3), (0.8, 0.8, 0.7))
    assert analyse([entry], seed=3) == analyse([entry], seed=3)
    assert analyse([entry], seed=3) != analyse([entry], seed=4)


def test_arms_must_agree_in_shape():
    entry = _scores((0.8,) * 3, (0.4,) * 2)
    with pytest.raises(ValueError, match="differ in seeds"):
        analyse([entry])


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(0, 0.3), st.floats(0, 0.3)), min_size=1, max_size=6))
def test_mean_of_independent_estimates(numbers):
    estimates = [Estimate(value, value - below, value + above) for value, below, above in numbers]
    mean = mean_of_independent(estimates)
    assert mean.low - 1e-9 <= mean.value <= mean.high + 1e-9
    assert mean.value == pytest.approx(np.mean([one.value for one in estimates]))
    # Narrower than if all were wrong in the same direction, wider than the widest share.
    assert mean.high - mean.value <= np.mean([above for *_, above in numbers]) + 1e-9
    assert mean.value - mean.low >= max(below for _, below, _ in numbers) / len(numbers) - 1e-9


def test_interval_of_a_mean_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    spread = np.array([0.02, 0.05, 0.1])
    drawn = rng.normal(0, spread, size=(4000, 3))
    ends = np.stack([drawn, drawn - 1.96 * spread, drawn + 1.96 * spread], axis=-1)
    means = [mean_of_independent([Estimate(*one) for one in row]) for row in ends]
    assert np.mean([one.low <= 0 <= one.high for one in means]) == pytest.approx(0.95, abs=0.01)
