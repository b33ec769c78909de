"""Progress bars for every long command: what is done, what is left, and how long that will take."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Name = TypeVar("Name", bound=str)
Advance = Callable[[float], None]
"""Says that so many more units of work are done; fractions are welcome."""
Told = Callable[[float, str], None]
"""Is told the share of the work that is done, from 0 to 1, and what is being done. What it raises ends the work."""

_MEMORY = 24 * 3600.0
"""Seconds of the past that a bar's pace is taken from: where a batch takes minutes, and stages take turns, the
default of 30 seconds would know of no pace at all."""
_LOG_EVERY = 60.0
"""Seconds between lines of the log that say how far a stage is."""

_log = logging.getLogger(__name__)


@contextmanager
def progress(description: str, total: float, enabled: bool | Told = True) -> Iterator[Advance]:
    """Shows a bar with the time remaining on standard error, and yields the function that advances it.

    Standard output stays free for results, so that `--json` can be piped.

    Args:
        description: what is being done, a few words.
        total: units of work in all, in whatever unit the caller advances by.
        enabled: whether to show anything; or who is told instead.
    """
    with stages({description: total}, enabled) as advance:
        yield lambda amount: advance(description, amount)


@contextmanager
def stages(totals: Mapping[Name, float], enabled: bool | Told = True) -> Iterator[Callable[[Name, float], None]]:
    """As `progress`, with one bar for each of several stages that take turns.

    Their beginning and end also go to the log, and meanwhile, once a minute, how far they are.

    Args:
        totals: units of work of each, by description.
        enabled: whether to show anything; or who is told instead, of the share of all stages together.
    """
    began = logged = time.monotonic()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("remaining"),
        TimeRemainingColumn(),
    )
    bars = Progress(*columns, console=Console(stderr=True), speed_estimate_period=_MEMORY)
    tasks = {name: bars.add_task(name, total=total) for name, total in totals.items()}

    def advance(name: Name, amount: float) -> None:
        nonlocal logged
        bars.advance(tasks[name], amount)
        if callable(enabled):
            done = sum(min(task.completed, task.total or 0) for task in bars.tasks)
            enabled(done / sum(totals.values()), name)
        if time.monotonic() - logged >= _LOG_EVERY:
            logged = time.monotonic()
            _log.info("%s: %d %%", name, bars.tasks[tasks[name]].percentage)

    _log.info("begins: %s", ", ".join(totals))
    with bars if enabled is True else nullcontext():
        yield advance
    _log.info("ends: %s, after %.1f s", ", ".join(totals), time.monotonic() - began)
