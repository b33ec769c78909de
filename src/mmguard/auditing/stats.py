"""What an audit's answers say, and how surely: point estimates, bootstrap intervals, and which attackers
count.

An item's score is from 0 to 1, and an accuracy is a mean of scores, whether the metric is hard (right or
wrong) or soft (VQA accuracy, ANLS). Accuracies and differences are shares here; the report turns them into points.

**The bootstrap.** Two things are random: the seed of the fine-tuning run and the test items. Both are
resampled, crossed (every resampled seed answers every resampled item). Items are the same for all arms, so
arms are compared on the same resampled items; items that share an image are drawn together, since their
answers are not independent. Seeds are paired by index: run k of every arm starts from the same adapter and
sees its rows in the same order, and pairing by index is right whether or not that makes the arms' results
move together, whereas drawing them apart would be wrong if it does.

Of S seeds, S − 1 are drawn each time (Rao and Wu, 1988): drawing S would understate the variance between
seeds by the factor (S − 1)/S, a third for the usual three. Where the test set's noise dominates, intervals
are wide rather than narrow (simulated coverage of three seeds on 150 items: 98% and more), since the noise of
single answers is counted with the seeds and with the items. But no percentile interval reaches beyond the
seeds that were run: where seeds differ by 5 points and 1000 items leave little other noise, three seeds cover
the truth in 85% of the cases, five in 91%, ten in 94%. Use more seeds then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

BRITTLE_COST = 0.05
"""An attacker is brittle where its matched control costs more than this."""
VALID_COST = 0.03
"""An attacker is valid where its matched control costs at most this."""
MIN_SEEDS = 3
"""No claim follows from fewer fine-tuning runs."""
MIN_GAIN = 0.02
"""A fine-tuning gain below this is too small to be a share of anything."""

Status = Literal["valid", "doubtful", "brittle", "untaught", "unjudged"]
"""`unjudged`: fewer than three seeds, or no matched control was run. `doubtful` lies between valid and brittle.
`untaught`: clean data teaches it nothing, so that nothing can be taken away; it is in no mean."""

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
    beyond_control: Estimate | None
    gain_removed: Estimate | None
    """Mean of G over those attackers that have one."""
    with_gain: int
    """How many these are."""
    all_beyond_control: Estimate | None
    """As `beyond_control`, brittle attackers included; so is `all_gain_removed`."""
    all_gain_removed: Estimate | None
    strongest: str | None
    """The attacker (and recipe) that lost least beyond its control."""
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
    findings, kept = [], []
    for number, entry in enumerate(scores):
        draws = _draw(entry, groups, resamples, seed, number)
        finding, beyond, share = _finding(entry, draws)
        findings.append(finding)
        kept.append((finding, beyond, share))
    return findings, _headline(kept)


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
    return [_marginal(entry, _draw(entry, groups, resamples, seed, number)) for number, entry in enumerate(scores)]


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
    from scipy.stats import t as student  # slow to import, and seldom needed

    values = np.array([one.value for one in found])
    n, mean = len(values), float(values.mean())
    reach = float(student.ppf(0.975, n - 1) * values.std(ddof=1)) / n**0.5
    down, up = (float(np.mean([(getattr(one, end) - one.value) ** 2 for one in found])) for end in ("low", "high"))
    return Estimate(mean, mean - float(np.hypot(reach, down**0.5)), mean + float(np.hypot(reach, up**0.5)))


def _draw(entry: Scores, groups: Sequence[int] | None, resamples: int, seed: int, number: int) -> dict[str, FloatArray]:
    """Accuracies of every arm, zero-shot included, in every resample. Shape of each: `(resamples,)`."""
    shapes = {array.shape for array in entry.by_arm.values()}
    if len(shapes) != 1:
        raise ValueError(f"{entry.attacker}: arms differ in seeds or test items: {sorted(shapes)}")
    seeds, items = shapes.pop()
    if items == 0 or seeds == 0 or entry.zero_shot.shape != (items,):
        raise ValueError(f"{entry.attacker}: {seeds} seeds, {items} items, zero-shot {entry.zero_shot.shape}")
    group = np.arange(items) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    if group.shape != (items,):
        raise ValueError(f"groups: {len(group)} given for {items} test items")
    # Items are drawn by the seed alone, so that all attackers meet the same ones and their mean can be
    # resampled.
    picked = max(1, seeds - 1)
    which = np.random.default_rng([seed, 1, number]).integers(seeds, size=(resamples, picked))
    by_seed = np.concatenate([*entry.by_arm.values(), entry.zero_shot[None]]).T.astype(np.float64)
    if not ((by_seed >= 0) & (by_seed <= 1)).all():
        raise ValueError(f"{entry.attacker}: scores from {by_seed.min()} to {by_seed.max()}, which should be 0 to 1")
    drawn = np.empty((resamples, by_seed.shape[1]))
    rng = np.random.default_rng([seed, 0])
    number_of_groups = int(group.max()) + 1
    chunk = max(1, 4_000_000 // items)  # at most 32 MB of counts at a time
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        counts = rng.multinomial(number_of_groups, np.full(number_of_groups, 1 / number_of_groups), size=size)
        weight = counts[:, group].astype(np.float64)
        drawn[start : start + size] = weight @ by_seed / weight.sum(axis=1, keepdims=True)
    accuracy = {
        arm: np.take_along_axis(drawn[:, k * seeds : (k + 1) * seeds], which, axis=1).mean(axis=1)
        for k, arm in enumerate(entry.by_arm)
    }
    return accuracy | {"zero-shot": drawn[:, -1]}


def _finding(entry: Scores, draws: dict[str, FloatArray]) -> tuple[Finding, FloatArray | None, FloatArray | None]:
    """One finding, with the resamples for the means over attackers (`_Kept`)."""
    mean = {arm: float(array.mean()) for arm, array in entry.by_arm.items()}
    mean["zero-shot"] = float(entry.zero_shot.mean())
    seeds = next(iter(entry.by_arm.values())).shape[0]

    def difference(a: str, b: str) -> Estimate:
        return interval(mean[a] - mean[b], draws[a] - draws[b])

    gain = difference("clean", "zero-shot")
    cost = beyond = removed = beyond_draws = share_draws = None
    status: Status = "unjudged"
    if entry.matched in entry.by_arm:
        control = entry.matched
        cost = difference("clean", control)
        beyond = difference(control, "release")
        beyond_draws = draws[control] - draws["release"]
        removed, share_draws = _share(
            mean[control] - mean["release"],
            mean[control] - mean["zero-shot"],
            beyond_draws,
            draws[control] - draws["zero-shot"],
        )
        status = entry.status or _status(cost.value, gain, seeds)
    finding = Finding(
        attacker=entry.attacker,
        recipe=entry.recipe,
        attack=entry.attack,
        seeds=seeds,
        zero_shot=mean.pop("zero-shot"),
        accuracy=mean,
        matched=entry.matched,
        gain=gain,
        drop=difference("clean", "release"),
        control_cost=cost,
        beyond_control=beyond,
        gain_removed=removed,
        status=status,
    )
    return finding, beyond_draws, share_draws


def _marginal(entry: Scores, draws: dict[str, FloatArray]) -> Marginal:
    mean = {arm: float(array.mean()) for arm, array in entry.by_arm.items()}

    def difference(a: str, b: str) -> Estimate:
        return interval(mean[a] - mean[b], draws[a] - draws[b])

    return Marginal(
        attacker=entry.attacker,
        recipe=entry.recipe,
        attack=entry.attack or "",
        seeds=len(entry.by_arm["clean-part"]),
        alone=interval(mean["clean-part"], draws["clean-part"]),
        matched=entry.matched,
        added={arm: difference(arm, "clean-part") for arm in entry.by_arm if arm != "clean-part"},
        beyond_control=difference(entry.matched, "release"),
    )


def _status(cost: float, gain: Estimate, seeds: int) -> Status:
    if seeds < MIN_SEEDS:
        return "unjudged"
    if gain.low <= 0:
        return "untaught"
    # A hair of tolerance: 0.05 as a difference of two means is rarely 0.05 in binary.
    if cost > BRITTLE_COST + 1e-9:
        return "brittle"
    return "valid" if cost <= VALID_COST + 1e-9 else "doubtful"


def interval(value: float, draws: FloatArray) -> Estimate:
    """A value with the middle 95 % of what resamples came to. Shape of `draws`: `(resamples,)`."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(float(value), float(low), float(high))


def in_percent(estimate: Estimate | None) -> str:
    """As tables have it: `12.3 (4.5 to 20.1)`; a dash for what is not known."""
    if estimate is None:
        return "–"
    return f"{100 * estimate.value:.1f} ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"


def _share(
    lost: float, gain: float, lost_draws: FloatArray, gain_draws: FloatArray
) -> tuple[Estimate | None, FloatArray | None]:
    """lost / gain, or None where the gain is not clearly positive: a share of nothing is no number."""
    if gain < MIN_GAIN or np.quantile(gain_draws, 0.025) <= 0:
        return None, None
    # A resample without a gain has no finite share; it counts as beyond either end, and never as a wild
    # number.
    beyond_any = np.where(lost_draws >= 0, np.inf, -np.inf)
    positive = gain_draws > 0
    draws = np.where(positive, lost_draws / np.where(positive, gain_draws, 1.0), beyond_any)
    estimate = _ends(lost / gain, draws)
    return estimate, None if estimate is None else draws


def _ends(value: float, draws: FloatArray) -> Estimate | None:
    """The interval of draws that may hold infinities; None if it reaches them."""
    low, high = np.sort(draws)[[int(0.025 * (len(draws) - 1)), int(np.ceil(0.975 * (len(draws) - 1)))]]
    return Estimate(value, float(low), float(high)) if np.isfinite([low, high]).all() else None


_Kept = tuple[Finding, FloatArray | None, FloatArray | None]
"""A finding, with the resamples of its `beyond_control` and `gain_removed`."""


def _headline(kept: Sequence[_Kept]) -> Headline:
    judged = [one for one in kept if one[0].beyond_control is not None and one[0].status != "untaught"]
    counted = [one for one in judged if one[0].status != "brittle"]
    found = [one for one, *_ in counted]
    # Of shares, where there are any: one that gains little has few points to lose.
    lost = [(one.gain_removed, one) for one in found if one.gain_removed]
    lost = lost or [(one.beyond_control, one) for one in found if one.beyond_control]
    strongest = min(lost, key=lambda pair: pair[0].value)[1] if lost else None
    return Headline(
        counted=len(counted),
        brittle=len(judged) - len(counted),
        beyond_control=_mean_beyond(counted),
        gain_removed=_mean_share(counted),
        with_gain=sum(one.gain_removed is not None for one in found),
        all_beyond_control=_mean_beyond(judged),
        all_gain_removed=_mean_share(judged),
        strongest=f"{strongest.attacker} ({strongest.recipe})" if strongest else None,
        claim=bool(found) and all(one.seeds >= MIN_SEEDS for one in found),
    )


def _mean_beyond(kept: Sequence[_Kept]) -> Estimate | None:
    values = [finding.beyond_control.value for finding, *_ in kept if finding.beyond_control is not None]
    draws = [beyond for _, beyond, _ in kept if beyond is not None]
    return interval(float(np.mean(values)), np.mean(draws, axis=0)) if values else None


def _mean_share(kept: Sequence[_Kept]) -> Estimate | None:
    values = [finding.gain_removed.value for finding, *_ in kept if finding.gain_removed is not None]
    draws = [share for *_, share in kept if share is not None]
    return _ends(float(np.mean(values)), np.mean(draws, axis=0)) if values else None
