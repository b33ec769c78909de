"""One progress bar for every long command: what is done, what is left, and how long that will take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Advance = Callable[[float], None]
"""Says that so many more units of work are done; fractions are welcome."""


@contextmanager
def progress(description: str, total: float, enabled: bool = True) -> Iterator[Advance]:
    """Shows a bar with the time remaining on standard error, and yields the function that advances it.

    Standard output stays free for results, so that `--json` can be piped.

    Args:
        description: what is being done, a few words.
        total: units of work in all, in whatever unit the caller advances by.
        enabled: False yields a function that does nothing, and shows nothing.
    """
    if not enabled:
        yield lambda amount: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("remaining"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total)
        yield lambda amount: bar.advance(task, amount)
