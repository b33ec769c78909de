"""What came of a benchmark, as plain data."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from typing import Any

from mmguard.auditing.report import AuditReport
from mmguard.bench.config import Bench, Experiment
from mmguard.runtime.provenance import commit


@dataclass(frozen=True)
class Outcome:
    """What came of one experiment."""

    experiment: Experiment
    release: dict[str, Any]
    """Its folder and what it was made from; empty if it was not made."""
    report: AuditReport | None
    failure: str | None = None
    """Why there is no report."""


@dataclass(frozen=True)
class Results:
    """What came of the experiments so far."""

    bench: Bench
    outcomes: tuple[Outcome, ...]

    @property
    def complete(self) -> bool:
        """Whether every attacker of every experiment has its result."""
        reports = [one.report for one in self.outcomes if one.report is not None and not one.report.failures]
        return len(reports) == len(self.bench.experiments)

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
