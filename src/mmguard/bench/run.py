"""Makes what a benchmark's file describes and is not there yet: releases first, then the runs of their audits.

All lies in one folder: `releases/`, each under a hash of what it is made from; `runs/`, likewise; and `results.json`,
`results.jsonl`, `results.md` and `results.html`, written anew after every experiment. What is there is not made again,
whichever file asked for it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmguard.auditing.earlier import results_of
from mmguard.auditing.plan import Plan, plan_audit
from mmguard.auditing.run import carry_out
from mmguard.bench.config import Bench, Experiment
from mmguard.bench.html import to_html
from mmguard.bench.page import page
from mmguard.bench.results import Line, Outcome, Results, known, read_lines
from mmguard.config import ProtectConfig
from mmguard.data.readers import open_source, read_dataset
from mmguard.errors import DataError, ReleaseError
from mmguard.protection.run import protect
from mmguard.release import layout
from mmguard.release.origin import origin
from mmguard.release.verify import verify
from mmguard.runtime.devices import require_first
from mmguard.runtime.durable import write_durably
from mmguard.runtime.memory import release_memory
from mmguard.runtime.provenance import digest


def run_bench(
    bench: Bench,
    out: Path,
    *,
    lines: Sequence[Line] = (),
    jobs: int | None = None,
    device: str = "auto",
    progress: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Results:
    """Makes what is missing, and reports.

    Args:
        bench: the experiments.
        out: folder for all that is made.
        lines: what is known of these experiments or others from elsewhere. Experiments of the same settings are not
            made again, nor are runs on the same clean data or controls.
        jobs: fine-tuning runs at a time, as for `carry_out`.
        device: `auto`, `cpu`, `cuda`, …
        progress: bars with the time that remains, on standard error.
        say: told which experiment begins.

    Returns:
        What is also in `results.json` and the files beside it. An experiment that fails is listed, and does
        not end the others. What the folder already holds of experiments that fail now, or are not reached, stays there.

    Raises:
        ConfigError: the device is a GPU that trainers would not take.
    """
    require_first(device)  # now, and not when the first release is made
    releases = _Releases(out / "releases", device, progress)
    outcomes = {one: line.outcome(one) for one, line in known(lines, bench).items()}
    before = {one: line.outcome(one) for one, line in _before(out, bench).items() if one not in outcomes}
    results = _results(bench, before | outcomes)
    if outcomes:
        _write(results, out)
    for number, one in enumerate(bench.experiments, 1):
        if one in outcomes:
            continue
        say(f"{number} of {len(bench.experiments)}: {bench.label(one)}")
        release: dict[str, Any] = {}
        try:
            folder = releases.made(one)
            release = _provenance(folder, out)
            plan = _plan(one, folder, releases.made(_model(one, bench)), out, device)
            evidence = carry_out(plan, jobs, progress, [line.evidence for line in lines])
            found = Outcome(one, release, evidence.report(), evidence=evidence)
            outcomes[one] = _better(found, before.get(one))
        # A benchmark runs for days: whatever ends one experiment, the others can go on.
        except Exception as error:
            held = before.get(one, Outcome(one, release, None))
            outcomes[one] = replace(held, failure=f"{type(error).__name__}: {error}")
        results = _results(bench, before | outcomes)
        _write(results, out)
    return results


def _before(out: Path, bench: Bench) -> dict[Experiment, Line]:
    """What an earlier run wrote of the experiments: releases or runs that it is from may be gone."""
    try:
        return known(read_lines(out / "results.jsonl"), bench, failed=True)
    except DataError:  # there is none, or what is there says nothing
        return {}


def _better(found: Outcome, before: Outcome | None) -> Outcome:
    """What was found now; or what there was, where attackers fail now that did not then and whose runs are gone."""
    if before is None or not (found.evidence and before.evidence):
        return found
    if len(found.evidence.failures) <= len(before.evidence.failures):
        return found
    new = (one for one in found.evidence.failures if one not in before.evidence.failures)
    return replace(before, failure="; ".join(f"{one.attacker}: {one.reason}" for one in new))


def _results(bench: Bench, outcomes: Mapping[Experiment, Outcome]) -> Results:
    """The outcomes that there are, in the order of the benchmark's file."""
    return Results(bench, tuple(outcomes[one] for one in bench.experiments if one in outcomes))


def _write(results: Results, out: Path) -> None:
    write(results, out / "results.md")
    write_durably(out / "results.html", to_html(results).encode())


def write(results: Results, path: Path) -> None:
    """Writes the page of results to a Markdown file, and beside it, by the same name, `.json`: what was found; and
    `.jsonl`: the scores that it was found from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for suffix, content in ((".md", page(results)), (".json", results.to_json()), (".jsonl", results.to_lines())):
        write_durably(path.with_suffix(suffix), content.encode())


@dataclass(frozen=True)
class State:
    """What of an experiment is there."""

    label: str
    release: bool
    runs: int | None
    """How many its audit takes; None where the release is not there, so that its data was not read."""
    found: int | None
    """How many of them are there."""
    taken: bool = False
    """Whether what came of it is known from elsewhere."""

    def __str__(self) -> str:
        if self.taken:
            return f"{self.label}: taken from results"
        if self.runs is None:
            return f"{self.label}: release {'there' if self.release else 'to make'}, runs to make"
        return f"{self.label}: release there, {self.found} of {self.runs} runs there"


def survey(bench: Bench, out: Path, device: str = "auto", lines: Sequence[Line] = ()) -> Iterator[State]:
    """Looks what is there, and makes nothing. Data is only read where a release of it is.

    Args:
        bench: the experiments.
        out: folder of what was made.
        device: `auto`, `cpu`, `cuda`, …
        lines: as for `run_bench`.
    """
    releases, taken = _Releases(out / "releases", device, progress=False), known(lines, bench)
    for one in bench.experiments:
        if one in taken:
            yield State(bench.label(one), False, None, None, taken=True)
            continue
        folder, model = releases.find(one), releases.find(_model(one, bench))
        if folder is None or model is None:
            yield State(bench.label(one), folder is not None, None, None)
        else:
            plan = _plan(one, folder, model, out, device)
            earlier = results_of([line.evidence for line in lines], plan)
            found = [run in earlier or plan.shelf.find(plan.runner.describe(run)) is not None for run in plan.runs]
            yield State(bench.label(one), True, len(found), sum(found))


def _model(one: Experiment, bench: Bench) -> Experiment:
    """The experiment whose release the controls are made from.

    All variants of a budget, whatever their surrogates and seeds, are held against the same controls, which are made
    from the first that changes images and texts: `control` for those that change both, `random-noise` and
    `random-words` for those that change one.
    """

    def budget(other: Experiment) -> Any:
        settings = {key: value for key, value in vars(other.protect).items() if key not in ("variant", "seed")}
        return other.dataset, other.split, other.limit, settings

    both = (other for other in bench.experiments if all(layout.budgets(other.protect)))
    return next((other for other in both if budget(other) == budget(one)), one)


def _release(one: Experiment) -> tuple[str, str | None, int | None, tuple[str, ...], ProtectConfig]:
    """What of an experiment its release depends on."""
    surrogates = one.surrogates if one.protect.needs_models else ()
    return one.dataset, one.split, one.limit, surrogates, one.protect


def _plan(one: Experiment, release: Path, model: Path, out: Path, device: str) -> Plan:
    return plan_audit(
        release, one.dataset, one.test or one.dataset, one.attackers, one.audit, arms=one.arms,
        controls=model if model != release else None, runs=out / "runs", device=device, split=one.split,
        test_split=one.test_split, test_limit=one.test_limit,
    )  # fmt: skip


class _Releases:
    """The releases in a folder, each under a hash of what it is made from."""

    def __init__(self, folder: Path, device: str, progress: bool) -> None:
        self._folder = folder
        self._device = device
        self._progress = progress
        self._places: dict[Any, tuple[Path, dict[str, Any]]] = {}
        self._made: dict[Any, Path | Exception] = {}

    def find(self, one: Experiment) -> Path | None:
        """The finished release of an experiment, if it is there."""
        if not any(self._folder.glob(f"{_stem(one)}-*")):
            return None
        folder, made_from = self._place(one)
        return folder if _is_finished(folder, made_from) else None

    def made(self, one: Experiment) -> Path:
        """The release of an experiment, made if it is not there, and verified; tried once only."""
        key = _release(one)
        if key not in self._made:
            try:
                self._made[key] = self._make(one)
            except Exception as error:
                self._made[key] = error
        made = self._made[key]
        if isinstance(made, Exception):
            raise made
        return made

    def _make(self, one: Experiment) -> Path:
        folder, made_from = self._place(one)
        if not _is_finished(folder, made_from):
            protect(
                one.dataset, one.surrogates, one.protect, folder, split=one.split, limit=one.limit,
                device=self._device, show_progress=self._progress,
            )  # fmt: skip
            release_memory()  # workers of the audit may need what the surrogates had
        checked = verify(folder, one.dataset, split=one.split, limit=one.limit)
        if not checked.ok:
            raise ReleaseError(f"{folder}: does not verify: {'; '.join(checked.problems[:3])}: remove it and run again")
        return folder

    def _place(self, one: Experiment) -> tuple[Path, dict[str, Any]]:
        """Where the release of an experiment lies, and what it is made from."""
        key = _release(one)
        if key not in self._places:
            dataset, split, limit, surrogates, config = key
            made_from = origin(read_dataset(dataset, split, limit), config, surrogates)
            self._places[key] = (self._folder / f"{_stem(one)}-{digest(made_from)[:12]}", made_from)
        return self._places[key]


def _stem(one: Experiment) -> str:
    """What people call a release."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{Path(one.dataset).name}-{one.protect.variant}")


def _is_finished(release: Path, made_from: dict[str, Any]) -> bool:
    if not release.is_dir() or (layout.record_folder(release) / layout.UNFINISHED).exists():
        return False
    record = _record(release)
    return {key: record.get(key) for key in made_from} == made_from


def _record(release: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads((layout.record_folder(release) / layout.RECORD).read_bytes())
        return record
    except (OSError, ValueError):
        return {}


_OF_RELEASES = ("config", "surrogates", "weights", "dataset", "data", "versions", "revision", "commit")


def _provenance(release: Path, out: Path) -> dict[str, Any]:
    """What results say of a release: nothing of its record that would tell how to undo it."""
    record = _record(release)
    return {
        "folder": release.relative_to(out).as_posix(),
        "files sha256": layout.sha256(*open_source(release)[0].files),
        **{key: record.get(key) for key in _OF_RELEASES},
        "left out": len(record.get("left_out", ())),
    }
