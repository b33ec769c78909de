"""The audit: every attacker fine-tunes on every arm with every seed, and the answers are compared.

It plays the thief, who has the release and nothing else; the owner, who runs it, adds the original (for the
clean arm and the controls) and a clean test set.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import psutil
import torch

from mmguard.auditing.arms import Arm
from mmguard.auditing.earlier import results_of
from mmguard.auditing.evidence import Evidence
from mmguard.auditing.html import write_html
from mmguard.auditing.losses import LossCurve, loss_curve
from mmguard.auditing.plan import Plan, plan_audit
from mmguard.auditing.report import AuditReport, Failure, Filtered
from mmguard.auditing.runs import Result, Run
from mmguard.auditing.selection import MixedArm, mean_auc
from mmguard.auditing.stats import FloatArray, Scores
from mmguard.config import AuditConfig, Recipe
from mmguard.errors import ConfigError
from mmguard.runtime.devices import device_of
from mmguard.runtime.executor import Failed, cores, execute
from mmguard.runtime.progress import Told
from mmguard.runtime.progress import progress as bar

_WORKER_BYTES = 2 << 30
"""Memory that a worker process is taken to need: the libraries, and a model as small as those of the zoo."""


def audit(
    release: str | Path,
    original: str | Path,
    test: str | Path,
    attackers: Sequence[str] | None = None,
    config: AuditConfig = AuditConfig(),
    out: Path | None = None,
    arms: Sequence[Arm] | None = None,
    progress: Told | bool = False,
    device: str = "auto",
    split: str | None = None,
    limit: int | None = None,
    test_split: str | None = None,
    test_limit: int | None = None,
    jobs: int | None = 1,
) -> AuditReport:
    """Measures what a release is worth against attackers who fine-tune on it.

    Args:
        release: the released folder; nothing beside it is read.
        original: the dataset that it was made from.
        test: a clean test set of the same task.
        attackers: model names (hub id, folder, `zoo:NAME`); `zoo.MEASURED` if not given.
        config: how attackers fine-tune, and how they are judged.
        out: where finished runs are kept and the report is written. An audit that was interrupted goes on
            from there; runs made with other settings, data, models or library versions are made again. None
            keeps nothing.
        arms: run only these besides clean, release and its matched control. By default all that differ for this
            release.
        progress: a callback, or True for a bar on standard error.
        device: `auto`, `cpu`, `cuda`, …
        split: split of the original; of a benchmark, `train` if not given.
        limit: train on the first so many released images alone.
        test_split: split of the test set; of a benchmark, `test` if not given.
        test_limit: use only the questions of so many test images.
        jobs: as for `carry_out`.

    Returns:
        The report. An attacker that fails is listed in it, and does not end the others.

    Raises:
        DataError: a dataset cannot be read, or every test image is also a training image.
        ReleaseError: the release does not belong to the original, or changes nothing.
        ConfigError: an unknown arm or attack, or a recipe that cannot be followed here.
    """
    plan = plan_audit(
        release, original, test, attackers, config, arms=arms, runs=out and out / "runs", device=device, split=split,
        limit=limit, test_split=test_split, test_limit=test_limit,
    )  # fmt: skip
    report = carry_out(plan, jobs, progress).report()
    if out is not None:
        report.write(out)
        write_html(report, plan.runner.pairing, out)
    return report


def carry_out(
    plan: Plan, jobs: int | None = 1, progress: Told | bool = False, earlier: Iterable[Evidence] = ()
) -> Evidence:
    """Makes the runs that are not on the plan's shelf yet, and gathers what all of them say.

    Args:
        plan: the audit.
        jobs: how many runs are made at a time, each in a process of its own with its share of the threads; scores do
            not depend on it. None is one a core on a CPU, as far as memory goes, and one a GPU. A script that asks
            for more than one needs the guard `if __name__ == "__main__":`.
        progress: as for `audit`.
        earlier: of other audits; what they have in common with this one is not run again.

    Raises:
        ConfigError: `jobs` is below 1.
    """
    jobs = default_jobs(plan.runner.device) if jobs is None else jobs
    if jobs < 1:
        raise ConfigError(f"jobs {jobs}: give 1 or more")
    results = _Results(plan)
    results.find(earlier)
    missing = list(results.missing())
    workers = max(1, min(jobs, len(missing)))
    threads = max(1, min(cores() // workers, torch.get_num_threads())) if workers > 1 else None
    runner = replace(plan.runner, threads=threads)
    with (
        _reporting(progress, missing) as reached,
        closing(execute(runner, results.missing(), workers, reached)) as outcomes,
    ):
        for run, outcome in outcomes:
            results.add(run, outcome)
            reached(run, 1.0)
    return results.evidence()


def default_jobs(device: str) -> int:
    """How many runs are made at a time if nobody says: one a GPU, on a CPU one a core, as far as memory goes."""
    kind = device_of(device).type
    if kind != "cpu":
        return max(1, torch.cuda.device_count()) if kind == "cuda" else 1
    return max(1, min(cores(), psutil.virtual_memory().available // _WORKER_BYTES))


_Kind = tuple[str, Recipe | None, str | None]
"""Attacker, recipe and attack of runs that fail together; without a recipe, of the untouched model."""


def _kind(run: Run) -> _Kind:
    return run.attacker, run.recipe, run.attack


def _needed(run: Run) -> tuple[_Kind, ...]:
    """The kinds of runs that must not fail if this one is to tell anything: its own, and those it is compared with."""
    return (run.attacker, None, None), (run.attacker, run.recipe, None), _kind(run)


class _Results:
    """The outcomes of a plan's runs."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._warnings = plan.warnings  # now: an attack that fails on this release is better known before days of runs
        self._results: dict[Run, Result] = {}
        self._failed: dict[_Kind, str] = {}
        """Why runs of a kind have no result."""
        self._hopeless: set[_Kind] = set()
        """Where the next run would fail, too: not the machine is at fault, but model, code or settings."""

    def find(self, earlier: Iterable[Evidence] = ()) -> None:
        """Takes what is on the shelf, or known from other audits."""
        self._results |= results_of(earlier, self._plan)
        for run in self._plan.runs:
            try:
                result = self._plan.shelf.find(self._plan.runner.describe(run))
            # Whatever is wrong with an attacker's files, the others can go on.
            except Exception as error:
                self.add(run, Failed(f"{type(error).__name__}: {error}"))
            else:
                if result is not None:
                    self._results[run] = result

    def missing(self) -> Iterator[Run]:
        """The runs that have no outcome yet, as long as they may have a result."""
        for run in self._plan.runs:
            if run not in self._results and not self._hopeless.intersection(_needed(run)):
                yield run

    def add(self, run: Run, outcome: Result | Failed) -> None:
        """Takes an outcome, and keeps a result on the shelf."""
        if isinstance(outcome, Failed):
            key = _kind(run)
            self._failed.setdefault(key, f"{run.name}: {outcome.reason}")
            if not outcome.transient:
                self._hopeless.add(key)
        else:
            self._results[run] = outcome
            self._plan.shelf.keep(self._plan.runner.describe(run), outcome)

    def evidence(self) -> Evidence:
        """The scores of every attacker, recipe and attack of which all runs were made, and why there are no others."""
        plan = self._plan
        failures: list[Failure] = []
        scores = [one for attack in (None, *plan.attacks) for one in self._entries(attack, failures)]
        return Evidence(
            scores=tuple(scores),
            groups=tuple(plan.groups),
            attacks=plan.attacks,
            resamples=plan.config.bootstrap,
            seed=plan.config.seed,
            sifted=tuple(self._sifted(scores)),
            failures=tuple(dict.fromkeys(failures)),
            warnings=(*self._warnings, *self._diverged()),
            provenance={**plan.provenance, "commits": self._commits()},
            losses=tuple(curve for one in scores if one.attack is None for curve in self._losses(one)),
        )

    def _diverged(self) -> Iterator[str]:
        """Names the runs that came to nothing by an accident of training, which would pass for protection."""
        losses = {run: self._results[run].losses for run in self._plan.runs if run in self._results}
        if diverged := [str(run) for run, steps in losses.items() if steps and not math.isfinite(steps[-1])]:
            yield (
                "training diverged (its last loss is no finite number); the answers count all the same, though that is "
                f"no merit of the data, and another attempt may go well: {'; '.join(diverged)}"
            )

    def _commits(self) -> list[str]:
        """What the runs were made with, some perhaps earlier or elsewhere."""
        return sorted({commit for result in self._results.values() for commit in result.commits})

    def _entries(self, attack: str | None, failures: list[Failure]) -> Iterator[Scores]:
        """The scores of all attackers and recipes under an attack; of those that have none, the failures."""
        plan = self._plan
        for name in plan.attackers:
            for recipe in plan.config.recipes:
                made = {arm: self._runs(name, recipe, arm, attack) for arm in plan.arms_under(attack)}
                needed = [kind for runs in made.values() for run in runs for kind in _needed(run)]
                if failed := [kind for kind in needed if kind in self._failed]:
                    _, of_recipe, under = failed[0]
                    failures.append(Failure(name, self._failed[failed[0]], under, of_recipe))
                    continue
                by_arm: dict[str, FloatArray] = {
                    arm: np.stack([self._results[run].scores for run in runs]) for arm, runs in made.items()
                }
                zero_shot, matched = self._results[Run(name)].scores, plan.runner.pairing.matched
                yield Scores(name, recipe, by_arm, zero_shot, matched, attack)

    def _sifted(self, entries: Sequence[Scores]) -> Iterator[Filtered]:
        """What filters did to every arm that they were used on: means over seeds."""
        for one in entries:
            for arm in one.by_arm:
                runs = self._runs(one.attacker, cast("Recipe", one.recipe), cast("MixedArm", arm), one.attack)
                found = [sifted for run in runs if (sifted := self._results[run].sifted) is not None]
                if found:
                    dropped = float(np.mean([sifted.dropped for sifted in found]))
                    yield Filtered(one.attacker, one.recipe, str(one.attack), arm, dropped, mean_auc(found))

    def _runs(self, attacker: str, recipe: Recipe, arm: MixedArm, attack: str | None) -> list[Run]:
        """One a seed."""
        return [Run.under(attacker, recipe, arm, seed, attack) for seed in self._plan.seeds]

    def _losses(self, one: Scores) -> Iterator[LossCurve]:
        """How training went on every arm, without attacks."""
        for arm in self._plan.arms:
            made = [Run(one.attacker, cast("Recipe", one.recipe), arm, seed) for seed in self._plan.seeds]
            losses = [self._results[run].losses for run in made]
            if all(losses):  # runs of earlier versions kept none
                yield loss_curve(one.attacker, one.recipe, arm, losses)


@contextmanager
def _reporting(progress: Told | bool, runs: Sequence[Run]) -> Iterator[Callable[[Run, float], None]]:
    """Yields `reached(run, share)`, which reports to a callback, to a bar, or to nobody."""
    total = sum(run.weight for run in runs)
    shares = dict.fromkeys(runs, 0.0)
    with bar("Audit", total, enabled=progress is True and bool(runs)) as move:

        def reached(run: Run, share: float) -> None:
            move(run.weight * (share - shares[run]))
            shares[run] = share
            if callable(progress):
                done = sum(one.weight * reached for one, reached in shares.items())
                progress(min(1.0, done / total), str(run))

        yield reached
        for run, share in shares.items():  # of runs that were given up
            move(run.weight * (1 - share))
    if callable(progress):
        progress(1.0, "all runs are made")
