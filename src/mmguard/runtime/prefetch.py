"""Reading ahead, so that a model never waits for a disk or a decoder."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def prefetched(jobs: Iterable[Job], load: Callable[[Job], Result]) -> Generator[tuple[Job, Result], None, None]:
    """Every job with what `load` makes of it; while one is worked on, the next is loaded in a thread.

    Args:
        jobs: taken one ahead of what has been yielded.
        load: must not depend on what is done with earlier jobs. Its exception is raised when its job's turn comes.
    """
    with ThreadPoolExecutor(max_workers=1) as thread:
        waiting = None
        for job in jobs:
            ahead = (job, thread.submit(load, job))
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = ahead
        if waiting is not None:
            yield waiting[0], waiting[1].result()
