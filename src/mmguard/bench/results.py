"""What came of a benchmark, as plain data.

`results.json` tells what was found; `results.jsonl`, an experiment a line, holds the scores that it was found from.
Lines of several machines can be put into one file, and a benchmark that is given it makes only what is not in it.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmguard.auditing.attacks import resolve
from mmguard.auditing.earlier import UNNAMED, compares_alike
from mmguard.auditing.evidence import Evidence
from mmguard.auditing.report import AuditReport
from mmguard.auditing.runs import ATTACK_REVISION, REVISION
from mmguard.bench.config import Bench, Experiment, default_settings
from mmguard.errors import DataError
from mmguard.runtime.provenance import commit


@dataclass(frozen=True)
class Outcome:
    """What came of one experiment."""

    experiment: Experiment
    release: dict[str, Any]
    """Its folder and what it was made from; empty if it was not made."""
    report: AuditReport | None
    failure: str | None = None
    """Why there is no report, or none but that of an earlier time."""
    evidence: Evidence | None = field(default=None, compare=False, repr=False)
    """What the report follows from."""


@dataclass(frozen=True)
class Results:
    """What came of the experiments so far."""

    bench: Bench
    outcomes: tuple[Outcome, ...]

    @property
    def complete(self) -> bool:
        """Whether every attacker of every experiment has its result."""
        whole = [one for one in self.outcomes if one.report and not one.report.failures and not one.failure]
        return len(whole) == len(self.bench.experiments)

    def to_dict(self) -> dict[str, Any]:
        """All findings with their intervals, and what each was made with, ready for JSON."""
        experiments = [
            {
                "label": self.bench.label(one.experiment),
                "settings": one.experiment.settings,
                "release": one.release,
                "failure": one.failure,
                "audit": one.report.to_dict() if one.report else None,
            }
            for one in self.outcomes
        ]
        result: dict[str, Any] = {
            "title": self.bench.title,
            "config": str(self.bench.path),
            "commit": commit(),
            "python": platform.python_version(),
            "complete": self.complete,
            "experiments": experiments,
        }
        return result

    def to_json(self) -> str:
        """The same as text; strict, without NaN."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def to_lines(self) -> str:
        """The evidence of every experiment that has any, a line each; `known` reads it."""
        lines = [
            {"settings": one.experiment.settings, "release": one.release, "evidence": one.evidence.to_dict()}
            for one in self.outcomes
            if one.evidence is not None
        ]
        return "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)


@dataclass(frozen=True)
class Line:
    """What a file of results holds of one experiment."""

    settings: dict[str, Any]
    release: dict[str, Any]
    evidence: Evidence

    def outcome(self, experiment: Experiment) -> Outcome:
        """The outcome that it tells of."""
        return Outcome(experiment, self.release, self.evidence.report(), evidence=self.evidence)


def read_lines(path: Path) -> list[Line]:
    """The experiments in a file, as `Results.to_lines` wrote it.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        plain = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
        return [Line(dict(one["settings"]), one["release"], Evidence.from_dict(one["evidence"])) for one in plain]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: is no file of results ({error}): give a results.jsonl that bench wrote") from error


def known(lines: Iterable[Line], bench: Bench, failed: bool = False) -> dict[Experiment, Line]:
    """The experiments of a benchmark that lines hold, without failures, under the attacks that the file means today.

    `failed` also takes those with failures.

    A setting that was not there yet when a line was written counts as having had its default, where that is what was
    done then. Weights of models, data and versions may have changed since: the line says what they were, and the report
    repeats it. What came of runs of an earlier revision does not count.
    """
    found: dict[Experiment, Line] = {}
    defaults = _plain(default_settings()) | {f"audit.{name}": value for name, value in UNNAMED.items()}
    wanted = {one: _plain(replace(one, group=None).settings) for one in bench.experiments}
    for line in lines:
        stored = defaults | line.settings | {"group": None}
        for one, settings in wanted.items():
            same = settings == {key: stored.get(key) for key in settings} and _same_runs(one, line.evidence)
            if same and (failed or not line.evidence.failures):
                found[one] = line
    return found


def _same_runs(one: Experiment, evidence: Evidence) -> bool:
    """Whether an experiment's attacks are those of the evidence: what a shorthand stands for may have changed."""
    attacks, there = resolve(one.audit.attacks), evidence.provenance
    if evidence.attacks != tuple(attack.name for attack in attacks):
        return False
    # The first results name neither revision.
    of_attacks = there.get("attack versions", {}).get("revision", 1) if attacks else ATTACK_REVISION
    alike = all(compares_alike(attack, there) for attack in attacks)
    return there.get("revision", 1) == REVISION and of_attacks == ATTACK_REVISION and alike


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as a file has them."""
    read: dict[str, Any] = json.loads(json.dumps(settings))
    return read
