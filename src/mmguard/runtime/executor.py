"""Many jobs, one after the other in this process or side by side in others: the results are the same.

Each worker is a process of its own behind a pipe of its own, and not one of a pool: if the system kills one, its job
is lost and no other, and an interruption ends them all at once.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

import torch

from mmguard.runtime.devices import CUDA_VISIBILITY, visibility
from mmguard.runtime.memory import is_out_of_memory
from mmguard.runtime.quiet import quiet_libraries

Job = TypeVar("Job")
Result = TypeVar("Result")

Report = Callable[[float], None]
"""Says which share of a job is done by now, from 0 to 1."""
Work = Callable[[Job, Report], Result]
"""Does a job. For worker processes it must be picklable, as jobs and results must be."""

_CURE = "run again, with fewer jobs at a time"
_CURE_ALONE = "take a smaller model or smaller pictures, or a device with more memory"
_PATIENCE = 10.0
"""Seconds that a process has to clean up."""
_SPAWN = multiprocessing.get_context("spawn")  # a fork of a process with threads, or with a GPU, may hang


@dataclass(frozen=True)
class Failed:
    """Why a job has no result."""

    reason: str
    transient: bool = False
    """Whether the job may succeed another time: its worker was killed, or had too little memory beside others."""


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def execute(
    work: Work[Job, Result],
    jobs: Iterable[Job],
    workers: int = 1,
    advance: Callable[[Job, float], None] = lambda job, share: None,
) -> Generator[tuple[Job, Result | Failed], None, None]:
    """Does all jobs, and yields each with its outcome as soon as it is there.

    Args:
        work: does one job. Whatever exception it raises is the job's outcome; the others go on.
        jobs: taken one by one, each when a worker is free for it.
        workers: how many are done at a time; 1 stays in this process. More are started by spawning, so that a script
            that is not guarded by `if __name__ == "__main__":` would be run by each of them. With several GPUs they
            take turns: each sees one only.
        advance: called in this process when a job begins, and with every share of it that is reported.
    """
    return _here(work, jobs, advance) if workers == 1 else _elsewhere(work, jobs, workers, advance)


def _here(
    work: Work[Job, Result], jobs: Iterable[Job], advance: Callable[[Job, float], None]
) -> Generator[tuple[Job, Result | Failed], None, None]:
    for job in jobs:
        advance(job, 0.0)
        yield job, _attempt(work, job, partial(advance, job))


def _elsewhere(
    work: Work[Job, Result], jobs: Iterable[Job], workers: int, advance: Callable[[Job, float], None]
) -> Generator[tuple[Job, Result | Failed], None, None]:
    waiting = iter(jobs)
    beside_others = workers > max(1, torch.cuda.device_count())
    busy: dict[Connection, _Worker[Job, Result]] = {}

    def begin(worker: _Worker[Job, Result], job: Job) -> None:
        worker.begin(job)
        busy[worker.connection] = worker
        advance(job, 0.0)

    try:
        for place, job in enumerate(islice(waiting, workers)):
            begin(_Worker(work, place, beside_others), job)
        while busy:
            for ready in wait(list(busy)):
                worker = busy[ready]  # type: ignore[index]  # `wait` gives back what it was given
                share, outcome = worker.receive()
                if outcome is None:
                    advance(worker.job, share)
                    continue
                yield worker.job, outcome
                del busy[worker.connection]
                for job in islice(waiting, 1):
                    begin(worker if worker.alive else _Worker(work, worker.place, beside_others), job)
                if worker.connection not in busy:
                    worker.stop()
    finally:
        for worker in busy.values():
            worker.interrupt()
        for worker in busy.values():
            worker.stop()


class _Worker(Generic[Job, Result]):
    """A process that does one job at a time."""

    job: Job

    def __init__(self, work: Work[Job, Result], place: int, beside_others: bool) -> None:
        self.alive, self.place = True, place
        self.connection, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_serve, args=(theirs, work, beside_others), daemon=True)
        with _one_gpu(place):
            self._process.start()
        theirs.close()

    def begin(self, job: Job) -> None:
        self.job = job
        with suppress(OSError):  # it died; `receive` will say so
            self.connection.send(job)

    def receive(self) -> tuple[float, Result | Failed | None]:
        """A share and None, or anything and the outcome."""
        try:
            message: tuple[float, Result | Failed | None] = self.connection.recv()
            return message
        except (EOFError, OSError):
            self.alive = False
            self._process.join()
            code = self._process.exitcode
            return 0.0, Failed(
                f"its process ended with exit code {code}: it was killed, or memory was not enough; {_CURE}",
                transient=True,
            )

    def interrupt(self) -> None:
        """Has the process end in the middle of its job."""
        self._process.terminate()

    def stop(self) -> None:
        """Waits for the end of a process that has no job any more."""
        self.connection.close()
        self._process.join(_PATIENCE)
        self._process.kill()
        self._process.join()


@contextmanager
def _one_gpu(place: int) -> Iterator[None]:
    """Until the end of the block, new processes see one GPU of those that this one sees, `place` modulo their number.

    Said in the environment, since it must be known before CUDA is first used.
    """
    seen = [str(number) for number in range(torch.cuda.device_count())]
    if len(seen) < 2:
        yield
        return
    name = visibility()
    before = os.environ.get(name)
    if given := before or os.environ.get(CUDA_VISIBILITY):
        seen = given.split(",")[: len(seen)]
    os.environ[name] = seen[place % len(seen)]
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _serve(connection: Connection, work: Work[Any, Any], beside_others: bool) -> None:
    """What a worker process does, until there are no more jobs or nobody is there to hear of them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the one that has the results decides
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # an exit that removes what the job has put on disk
    quiet_libraries()
    with suppress(EOFError, OSError):
        while True:
            job = connection.recv()
            outcome = _attempt(work, job, lambda share: connection.send((share, None)), beside_others)
            connection.send((1.0, outcome))


def _attempt(work: Work[Job, Result], job: Job, report: Report, beside_others: bool = False) -> Result | Failed:
    try:
        return work(job, report)
    # Whatever the code of a job raises, the other jobs can go on.
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        if is_out_of_memory(error):
            return Failed(f"{reason}; {_CURE if beside_others else _CURE_ALONE}", transient=beside_others)
        # An error of ours that names the model which was too large, and has the cure for one that is alone.
        if beside_others and isinstance(error.__cause__, Exception) and is_out_of_memory(error.__cause__):
            return Failed(f"{reason}; {_CURE}", transient=True)
        return Failed(reason)
