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

_MEMORY = 24 * 3600.0
"""Seconds of the past that a bar's pace is taken from: where a batch takes minutes, and stages take turns, the
default of 30 seconds would know of no pace at all."""

_log = logging.getLogger(__name__)


@contextmanager
def progress(description: str, total: float, enabled: bool = True) -> Iterator[Advance]:
    """Shows a bar with the time remaining on standard error, and yields the function that advances it.

    Standard output stays free for results, so that `--json` can be piped.

    Args:
        description: what is being done, a few words.
        total: units of work in all, in whatever unit the caller advances by.
        enabled: whether to show anything.
    """
    with stages({description: total}, enabled) as advance:
        yield lambda amount: advance(description, amount)


@contextmanager
def stages(totals: Mapping[Name, float], enabled: bool = True) -> Iterator[Callable[[Name, float], None]]:
    """As `progress`, with one bar for each of several stages that take turns.

    Beginning, end and every tenth of each also go to the log.

    Args:
        totals: units of work of each, by description.
        enabled: whether to show anything.
    """
    began, done = time.monotonic(), dict.fromkeys(totals, 0.0)
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
        before, done[name] = _tenths(done[name], totals[name]), done[name] + amount
        bars.advance(tasks[name], amount)
        if (now := _tenths(done[name], totals[name])) > before:
            _log.info("%s: %d %%", name, 10 * now)

    _log.info("begins: %s", ", ".join(totals))
    with bars if enabled else nullcontext():
        yield advance
    _log.info("ends: %s, after %.1f s", ", ".join(totals), time.monotonic() - began)


def _tenths(done: float, total: float) -> int:
    # A sum of fractions may fall short of the whole by a hair.
    return int(10 * done / total + 1e-6) if total else 10
