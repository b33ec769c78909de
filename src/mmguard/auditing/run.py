"""The audit: every attacker fine-tunes on every arm with every seed, and the answers are compared.

It plays the thief, who has the release and nothing else; the owner, who runs it, adds the original (for the
clean arm and the controls) and a clean test set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import torch

from mmguard.auditing.arms import Arm
from mmguard.auditing.html import write_html
from mmguard.auditing.losses import LossCurve, loss_curve
from mmguard.auditing.plan import Plan, plan_audit
from mmguard.auditing.report import AuditReport, Failure
from mmguard.auditing.runs import Result, Run
from mmguard.auditing.stats import FloatArray, Scores, analyse
from mmguard.config import AuditConfig, Recipe
from mmguard.errors import ConfigError
from mmguard.runtime.devices import device_of
from mmguard.runtime.executor import Failed, cores, execute
from mmguard.runtime.progress import progress as bar

Progress = Callable[[float, str], None]
"""Called with the share of the work that is done, from 0 to 1, and with what is being done."""

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
    progress: Progress | bool = False,
    device: str = "auto",
    split: str | None = None,
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
        test_split: split of the test set; of a benchmark, `test` if not given.
        test_limit: use only the questions of so many test images.
        jobs: as for `carry_out`.

    Returns:
        The report. An attacker that fails is listed in it, and does not end the others.

    Raises:
        DataError: a dataset cannot be read, or every test image is also a training image.
        ReleaseError: the release does not belong to the original, or changes nothing.
        ConfigError: an unknown arm, or a recipe that cannot be followed here.
    """
    plan = plan_audit(
        release, original, test, attackers, config, arms=arms, runs=out and out / "runs", device=device, split=split,
        test_split=test_split, test_limit=test_limit,
    )  # fmt: skip
    report = carry_out(plan, jobs, progress)
    if out is not None:
        report.write(out)
        write_html(report, plan.runner.pairing, out)
    return report


def carry_out(plan: Plan, jobs: int | None = 1, progress: Progress | bool = False) -> AuditReport:
    """Makes the runs that are not on the plan's shelf yet, and reports.

    Args:
        plan: the audit.
        jobs: how many runs are made at a time, each in a process of its own with its share of the threads; scores do
            not depend on it. None is one a core on a CPU, as far as memory goes, and one on a GPU. A script that asks
            for more than one needs the guard `if __name__ == "__main__":`.
        progress: as for `audit`.

    Raises:
        ConfigError: `jobs` is below 1.
    """
    jobs = default_jobs(plan.runner.device) if jobs is None else jobs
    if jobs < 1:
        raise ConfigError(f"jobs {jobs}: give 1 or more")
    results = _Results(plan)
    results.find()
    missing = list(results.missing())
    workers = max(1, min(jobs, len(missing)))
    threads = max(1, min(cores() // jobs, torch.get_num_threads())) if workers > 1 else None
    runner = replace(plan.runner, threads=threads)
    with (
        _reporting(progress, missing) as reached,
        closing(execute(runner, results.missing(), workers, reached)) as outcomes,
    ):
        for run, outcome in outcomes:
            results.add(run, outcome)
            reached(run, 1.0)
    return results.report()


def default_jobs(device: str) -> int:
    """How many runs are made at a time if nobody says: one on a GPU, on a CPU one a core, as far as memory goes."""
    if device_of(device).type != "cpu":
        return 1
    return max(1, min(cores(), psutil.virtual_memory().available // _WORKER_BYTES))


class _Results:
    """The outcomes of a plan's runs."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._results: dict[Run, Result] = {}
        self._failed: dict[tuple[str, Recipe | None], str] = {}
        """Why an attacker's recipe has no result; without a recipe, its untouched model."""
        self._hopeless: set[tuple[str, Recipe | None]] = set()
        """Where the next run would fail, too: not the machine is at fault, but model, code or settings."""

    def find(self) -> None:
        """Takes what is on the shelf."""
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
            given_up = {(run.attacker, None), (run.attacker, run.recipe)} & self._hopeless
            if run not in self._results and not given_up:
                yield run

    def add(self, run: Run, outcome: Result | Failed) -> None:
        """Takes an outcome, and keeps a result on the shelf."""
        if isinstance(outcome, Failed):
            key = (run.attacker, run.recipe)
            self._failed.setdefault(key, f"{run.name}: {outcome.reason}")
            if not outcome.died:
                self._hopeless.add(key)
        else:
            self._results[run] = outcome
            self._plan.shelf.keep(self._plan.runner.describe(run), outcome)

    def report(self) -> AuditReport:
        """What is known about every attacker and recipe of which all runs were made."""
        plan = self._plan
        entries, failures = [], []
        losses: list[LossCurve] = []
        for name in plan.attackers:
            for recipe in plan.config.recipes:
                key = (name, None) if (name, None) in self._failed else (name, recipe)
                if key in self._failed:
                    failures.append(Failure(name, self._failed[key]))
                else:
                    entries.append(self._entry(name, recipe))
                    losses += self._losses(name, recipe)
        findings, headline = analyse(entries, plan.groups, plan.config.bootstrap, plan.config.seed)
        return AuditReport(
            headline=headline,
            findings=tuple(findings),
            failures=tuple(dict.fromkeys(failures)),
            warnings=plan.warnings,
            provenance=plan.provenance,
            losses=tuple(losses),
        )

    def _entry(self, name: str, recipe: Recipe) -> Scores:
        by_arm: dict[str, FloatArray] = {
            arm: np.stack([self._results[Run(name, recipe, arm, seed)].scores for seed in self._plan.seeds])
            for arm in self._plan.arms
        }
        return Scores(name, recipe, by_arm, self._results[Run(name)].scores, self._plan.runner.pairing.matched)

    def _losses(self, name: str, recipe: Recipe) -> Iterator[LossCurve]:
        for arm in self._plan.arms:
            runs = [self._results[Run(name, recipe, arm, seed)].losses for seed in self._plan.seeds]
            if all(runs):  # runs of earlier versions kept none
                yield loss_curve(name, recipe, arm, runs)


@contextmanager
def _reporting(progress: Progress | bool, runs: Sequence[Run]) -> Iterator[Callable[[Run, float], None]]:
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
