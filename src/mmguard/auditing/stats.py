"""What an audit's answers say, and how surely: point estimates, bootstrap intervals, and which attackers
count.

An item's score is from 0 to 1, and an accuracy is a mean of scores, whether the metric is hard (right or
wrong) or soft (VQA accuracy, ANLS). Accuracies and differences are shares here; the report turns them into points.

**The bootstrap.** Two things are random: the seed of the fine-tuning run and the test items. Both vary, crossed
(every seed answers every resampled item). Items are the same for all arms, so arms are compared on the same
resampled items; items that share an image are drawn together, since their answers are not independent. Seeds are
paired by index: run k of every arm starts from the same adapter and sees its rows in the same order, and pairing
by index is right whether or not that makes the arms' results move together, whereas drawing them apart would be
wrong if it does.

Three seeds are too few to be drawn from: no resample could reach beyond the worst of them. So a resample weighs
the seeds at random, by normal weights under which any mean over seeds varies as its standard error says; and since
that error is itself known from few seeds alone, intervals are widened by how much Student's t exceeds the normal,
with the degrees of freedom of Welch and Satterthwaite: two for one attacker of three seeds that differ by more than
the test's noise, nearly as many as there are runs for a mean over attackers, and no widening where the test's items
are all that is uncertain. The noise of single answers is counted with the seeds and with the items, which makes
intervals wide rather than narrow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

BRITTLE_COST = 0.05
"""An attacker is brittle where its matched control costs more than this."""
VALID_COST = 0.03
"""An attacker is valid where its matched control costs at most this."""
MIN_SEEDS = 3
"""No claim follows from fewer fine-tuning runs."""
MIN_GAIN = 0.02
"""A fine-tuning gain below this is too small to be a share of anything."""

Status = Literal["valid", "doubtful", "brittle", "untaught", "unjudged"]
"""`unjudged`: fewer than three seeds, or no matched control was run. `doubtful`: between valid and brittle, or not
clearly taught by clean data. `untaught`: clean data teaches it next to nothing, so that nothing can be taken away; it
is in no mean."""

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Estimate:
    """A point estimate with its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Scores:
    """How right one attacker's answers are under one recipe: from 0 to 1 an item, in between for soft metrics."""

    attacker: str
    recipe: str
    by_arm: Mapping[str, FloatArray]
    """Scores of every arm. Shape: `(S, N)`, seeds by test items; the same for every arm."""
    zero_shot: FloatArray
    """The untouched model's scores. Shape: `(N,)`."""
    matched: str
    """The arm that controls for the release: changed in the same places, by noise or words without a purpose.
    """
    attack: str | None = None
    """What was done to the data of every arm before training."""
    status: Status | None = None
    """Of the attacker, where other runs told; if not given, it follows from the cost of the control."""

    def on(self, items: BoolArray) -> Scores:
        """The scores on some of the test items alone. Shape of `items`: `(N,)`."""
        by_arm = {arm: scores[:, items] for arm, scores in self.by_arm.items()}
        return replace(self, by_arm=by_arm, zero_shot=self.zero_shot[items])


@dataclass(frozen=True)
class Finding:
    """What one attacker gains from the data, and what the protection takes away."""

    attacker: str
    recipe: str
    attack: str | None
    """What was done to the data of every arm before training."""
    seeds: int
    zero_shot: float
    """Accuracy of the untouched model."""
    accuracy: dict[str, float]
    """Mean accuracy of every arm that was run."""
    matched: str
    gain: Estimate
    """Acc(clean FT) − Acc(zero-shot)."""
    drop: Estimate
    """Acc(clean FT) − Acc(release FT): Eq. 35."""
    control_cost: Estimate | None
    """Acc(clean FT) − Acc(control FT): what any change of that size costs. None if the matched control was
    not run."""
    beyond_control: Estimate | None
    """Acc(control FT) − Acc(release FT): the part of the drop that the optimisation earned."""
    gain_removed: Estimate | None
    """G = beyond_control / (Acc(control FT) − Acc(zero-shot)). None where that gain is not clearly positive.
    """
    status: Status


@dataclass(frozen=True)
class Marginal:
    """What data adds to clean data that the attacker has anyway: accuracy on both, less accuracy on the clean alone."""

    attacker: str
    recipe: str
    attack: str
    """The mixture, and the filter if there is one."""
    seeds: int
    alone: Estimate
    """Accuracy of fine-tuning on the clean part alone, for as many steps."""
    matched: str
    added: dict[str, Estimate]
    """Marginal value of each arm's data; perfectly protected data adds nothing."""
    beyond_control: Estimate
    """Marginal value of the matched control less that of the release: what the optimisation earned."""


@dataclass(frozen=True)
class Headline:
    """The mean over all attackers that are not brittle.

    Who is brittle is told by the control's answers, which are in the mean too: a control that happens to do badly is
    left out, one that happens to do well is counted. That favours the protection a little; the means over all
    attackers, brittle ones included, do not have this flaw.
    """

    counted: int
    """How many attackers and recipes the means are over."""
    brittle: int
    """How many were left out as brittle."""
    untaught: int
    """How many were left out since clean data teaches them next to nothing."""
    beyond_control: Estimate | None
    gain_removed: Estimate | None
    """Mean of G over those attackers that have one."""
    with_gain: int
    """How many these are."""
    all_beyond_control: Estimate | None
    """As `beyond_control`, brittle attackers included; so is `all_gain_removed`."""
    all_gain_removed: Estimate | None
    strongest: str | None
    """The attacker (and recipe) that lost least beyond its control, by G where all have one."""
    claim: bool
    """Whether enough seeds were run for a claim."""


def analyse(
    scores: Sequence[Scores], groups: Sequence[int] | None = None, resamples: int = 2000, seed: int = 0
) -> tuple[list[Finding], Headline]:
    """Estimates everything that a report states.

    Args:
        scores: one entry an attacker and recipe, all on the same test items.
        groups: number of the group (image) of every test item; by default each item is its own.
        resamples: bootstrap resamples.
        seed: of the bootstrap.

    Returns:
        One finding for each entry, and the means over them.

    Raises:
        ValueError: no entry has any test item, arrays differ in shape, or a score is not from 0 to 1.
    """
    kept = [_finding(entry, _draw(entry, groups, resamples, seed, k)) for k, entry in enumerate(scores)]
    return [finding for finding, *_ in kept], _headline(kept)


def marginal_values(
    scores: Sequence[Scores], groups: Sequence[int] | None = None, resamples: int = 2000, seed: int = 0
) -> list[Marginal]:
    """What every arm's data adds to clean data.

    Args:
        scores: of mixtures; among their arms are `clean-part`, the matched control and `release`.
        groups: as for `analyse`, which raises likewise.
        resamples: bootstrap resamples.
        seed: of the bootstrap.
    """
    return [_marginal(entry, _draw(entry, groups, resamples, seed, k)) for k, entry in enumerate(scores)]


def mean_of_independent(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of estimates that do not depend on one another, such as those of different test sets.

    Its interval follows from theirs by the method of Zou and Donner (2008): distances to the ends add up as standard
    errors do, each side by itself.
    """
    value, low, high = np.array([(one.value, one.low, one.high) for one in estimates]).T
    mean, n = float(value.mean()), len(estimates)
    return Estimate(mean, mean - float(np.linalg.norm(value - low)) / n, mean + float(np.linalg.norm(high - value)) / n)


def mean_of_repetitions(found: Sequence[Estimate]) -> Estimate:
    """The mean of what repetitions of one thing came to, with an interval that is wide for few of them.

    Student's interval says how they differ. What they share, such as controls and test items, does not make them
    differ: it is somewhere in their own intervals, which are added in quadrature, whole since there is no telling.

    Args:
        found: at least two.
    """
    values = np.array([one.value for one in found])
    n, mean = len(values), float(values.mean())
    reach = float(stdtrit(n - 1, 0.975) * values.std(ddof=1)) / n**0.5
    down, up = (float(np.mean([(getattr(one, end) - one.value) ** 2 for one in found])) for end in ("low", "high"))
    return Estimate(mean, mean - float(np.hypot(reach, down**0.5)), mean + float(np.hypot(reach, up**0.5)))


@dataclass(frozen=True)
class _Drawn:
    """A number that follows from one attacker's scores, with what resamples came to. Shape of these: `(resamples,)`."""

    value: float
    draws: FloatArray
    """Seeds and items varied."""
    fixed: FloatArray
    """Items alone."""
    seeds: int

    def __sub__(self, other: _Drawn) -> _Drawn:
        return _Drawn(self.value - other.value, self.draws - other.draws, self.fixed - other.fixed, self.seeds)

    @property
    def by_seeds(self) -> float:
        """How much of the variance is due to seeds."""
        return max(0.0, _variance(self.draws) - _variance(self.fixed))


def _draw(entry: Scores, groups: Sequence[int] | None, resamples: int, seed: int, number: int) -> dict[str, _Drawn]:
    """The accuracy of every arm, and of `zero-shot`."""
    shapes = {array.shape for array in entry.by_arm.values()}
    if len(shapes) != 1:
        raise ValueError(f"{entry.attacker}: arms differ in seeds or test items: {sorted(shapes)}")
    seeds, items = shapes.pop()
    if items == 0 or seeds == 0 or entry.zero_shot.shape != (items,):
        raise ValueError(f"{entry.attacker}: {seeds} seeds, {items} items, zero-shot {entry.zero_shot.shape}")
    group = np.arange(items) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    if group.shape != (items,):
        raise ValueError(f"groups: {len(group)} given for {items} test items")
    by_seed = np.concatenate([*entry.by_arm.values(), entry.zero_shot[None]]).T.astype(np.float64)
    if not ((by_seed >= 0) & (by_seed <= 1)).all():
        raise ValueError(f"{entry.attacker}: scores from {by_seed.min()} to {by_seed.max()}, which should be 0 to 1")
    # Items are drawn by the seed alone, so that all attackers meet the same ones and their mean can be
    # resampled.
    drawn = np.empty((resamples, by_seed.shape[1]))
    rng = np.random.default_rng([seed, 0])
    number_of_groups = int(group.max()) + 1
    chunk = max(1, 4_000_000 // items)  # at most 32 MB of counts at a time
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        counts = rng.multinomial(number_of_groups, np.full(number_of_groups, 1 / number_of_groups), size=size)
        weight = counts[:, group].astype(np.float64)
        drawn[start : start + size] = weight @ by_seed / weight.sum(axis=1, keepdims=True)
    weights = _seed_weights(resamples, seeds, np.random.default_rng([seed, 1, number]))
    found = {"zero-shot": _Drawn(float(entry.zero_shot.mean()), drawn[:, -1], drawn[:, -1], seeds)}
    for k, (arm, scores) in enumerate(entry.by_arm.items()):
        of_seeds = drawn[:, k * seeds : (k + 1) * seeds]
        found[arm] = _Drawn(float(scores.mean()), (weights * of_seeds).sum(axis=1), of_seeds.mean(axis=1), seeds)
    return found


def _seed_weights(resamples: int, seeds: int, rng: np.random.Generator) -> FloatArray:
    """Weights that add up to 1, under which a mean over seeds varies as its standard error says.

    Some are negative, and so may be an accuracy: only differences between arms, weighted alike, are meant.
    Shape: `(resamples, seeds)`.
    """
    noise = rng.standard_normal((resamples, seeds))
    noise -= noise.mean(axis=1, keepdims=True)
    return 1 / seeds + noise / np.sqrt(seeds * max(1, seeds - 1))


def _finding(entry: Scores, accuracy: Mapping[str, _Drawn]) -> _Kept:
    """One finding, with what the means over attackers need."""
    control, release = accuracy.get(entry.matched), accuracy["release"]
    clean, zero_shot = accuracy["clean"], accuracy["zero-shot"]
    gain = _estimate([clean - zero_shot])
    cost = beyond = removed = None
    status: Status = "unjudged"
    if control is not None:
        cost = _estimate([clean - control])
        beyond = control - release
        removed = _share(beyond, control - zero_shot)
        status = entry.status or _status(cost.value, gain, clean.seeds)
    finding = Finding(
        attacker=entry.attacker,
        recipe=entry.recipe,
        attack=entry.attack,
        seeds=clean.seeds,
        zero_shot=zero_shot.value,
        accuracy={arm: accuracy[arm].value for arm in entry.by_arm},
        matched=entry.matched,
        gain=gain,
        drop=_estimate([clean - release]),
        control_cost=cost,
        beyond_control=_estimate([beyond]) if beyond else None,
        gain_removed=_estimate([removed]) if removed else None,
        status=status,
    )
    return finding, beyond, removed


def _marginal(entry: Scores, accuracy: Mapping[str, _Drawn]) -> Marginal:
    alone = accuracy["clean-part"]
    return Marginal(
        attacker=entry.attacker,
        recipe=entry.recipe,
        attack=entry.attack or "",
        seeds=alone.seeds,
        alone=_estimate([alone]),
        matched=entry.matched,
        added={arm: _estimate([accuracy[arm] - alone]) for arm in entry.by_arm if arm != "clean-part"},
        beyond_control=_estimate([accuracy[entry.matched] - accuracy["release"]]),
    )


def _status(cost: float, gain: Estimate, seeds: int) -> Status:
    if seeds < MIN_SEEDS:
        return "unjudged"
    if gain.value < MIN_GAIN:
        return "untaught"
    # A hair of tolerance: 0.05 as a difference of two means is rarely 0.05 in binary.
    if cost > BRITTLE_COST + 1e-9:
        return "brittle"
    return "valid" if cost <= VALID_COST + 1e-9 and gain.low > 0 else "doubtful"


def interval(value: float, draws: FloatArray) -> Estimate:
    """A value with the middle 95 % of what resamples came to. Shape of `draws`: `(resamples,)`."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(float(value), float(low), float(high))


def in_percent(estimate: Estimate | None) -> str:
    """As tables have it: `12.3 (4.5 to 20.1)`; a dash for what is not known."""
    if estimate is None:
        return "–"
    return f"{100 * estimate.value:.1f} ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"


def _share(lost: _Drawn, gain: _Drawn) -> _Drawn | None:
    """lost / gain, or None where the gain is not clearly positive: a share of nothing is no number."""
    if gain.value < MIN_GAIN or np.quantile(gain.draws, 0.025) <= 0:
        return None
    draws = _ratio(lost.draws, gain.draws)
    if not np.isfinite(_middle(draws)).all():
        return None
    return _Drawn(lost.value / gain.value, draws, _ratio(lost.fixed, gain.fixed), lost.seeds)


def _ratio(lost: FloatArray, gain: FloatArray) -> FloatArray:
    """Resamples of a share. One without a gain has none; it counts as beyond either end, and never as a wild number."""
    positive = gain > 0
    return np.where(positive, lost / np.where(positive, gain, 1.0), np.where(lost >= 0, np.inf, -np.inf))


def _estimate(parts: Sequence[_Drawn]) -> Estimate:
    """The mean of one number over attackers, or that of one attacker, with its interval.

    What is due to the seeds of each attacker is known from so few runs as it has; what is due to items from many.
    """
    value, draws = float(np.mean([one.value for one in parts])), np.mean([one.draws for one in parts], axis=0)
    low, high = _middle(draws)
    freedom = sum((one.by_seeds / len(parts) ** 2) ** 2 / (one.seeds - 1) for one in parts if one.seeds > 1)
    wider = float(stdtrit(_variance(draws) ** 2 / freedom, 0.975) / ndtri(0.975)) if freedom else 1.0
    return Estimate(value, value - wider * (value - low), value + wider * (high - value))


def _variance(draws: FloatArray) -> float:
    """By the middle 95 %, since draws may hold infinities beyond it."""
    low, high = _middle(draws)
    return float((high - low) / (2 * ndtri(0.975))) ** 2


def _middle(draws: FloatArray) -> tuple[float, float]:
    """The ends of the middle 95 %, each a draw."""
    low, high = np.sort(draws)[[int(0.025 * (len(draws) - 1)), int(np.ceil(0.975 * (len(draws) - 1)))]]
    return float(low), float(high)


_Kept = tuple[Finding, _Drawn | None, _Drawn | None]
"""A finding, with its `beyond_control` and `gain_removed`."""


def _headline(kept: Sequence[_Kept]) -> Headline:
    controlled = [one for one in kept if one[1] is not None]
    judged = [one for one in controlled if one[0].status != "untaught"]
    counted = [one for one in judged if one[0].status != "brittle"]
    found = [one for one, *_ in counted]
    shares = [share for *_, share in counted if share is not None]
    # Of shares, where all have one: who gains little has few points to lose.
    lost = shares if len(shares) == len(counted) else [beyond for _, beyond, _ in counted if beyond is not None]
    least = found[int(np.argmin([one.value for one in lost]))] if found else None
    return Headline(
        counted=len(counted),
        brittle=len(judged) - len(counted),
        untaught=len(controlled) - len(judged),
        beyond_control=_mean([beyond for _, beyond, _ in counted]),
        gain_removed=_mean(shares),
        with_gain=len(shares),
        all_beyond_control=_mean([beyond for _, beyond, _ in judged]),
        all_gain_removed=_mean([share for *_, share in judged]),
        strongest=f"{least.attacker} ({least.recipe})" if least else None,
        claim=bool(found) and all(one.seeds >= MIN_SEEDS for one in found),
    )


def _mean(parts: Sequence[_Drawn | None]) -> Estimate | None:
    """The mean over attackers; none where too many resamples lack a share, each of another attacker."""
    there = [one for one in parts if one is not None]
    if not there:
        return None
    with np.errstate(invalid="ignore"):  # an infinite share of either sign: what they have in the mean is no number
        mean = _estimate(there)
    return mean if np.isfinite((mean.low, mean.high)).all() else None
