"""Jobs here and in worker processes: same results, and what befalls one job stays with it."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch

from mmguard.errors import SurrogateError
from mmguard.runtime.executor import Failed, cores, execute


def square(job: int, report: Callable[[float], None]) -> int:
    """13 raises an exception, 17 is killed, and memory is not enough for 19 and 23."""
    if job == 13:
        raise ValueError("unlucky")
    if job == 17:
        os.kill(os.getpid(), signal.SIGKILL)
    if job == 19:
        raise MemoryError("too large")
    if job == 23:
        raise SurrogateError("gpt: take a smaller model") from MemoryError()
    report(0.5)
    return job * job


def linger(job: Path, report: Callable[[float], None]) -> None:
    with tempfile.TemporaryDirectory(dir=job.parent):
        job.write_text("begun")
        time.sleep(30)
        job.write_text("finished")


@pytest.mark.parametrize("workers", [1, 3])
def test_every_job_has_its_result(workers: int) -> None:
    shares: list[tuple[int, float]] = []
    found = dict(execute(square, range(7), workers, lambda job, share: shares.append((job, share))))
    assert found == {n: n * n for n in range(7)}
    assert sorted(shares) == [(n, share) for n in range(7) for share in (0.0, 0.5)]
    assert active_children() == []


def gpus(job: int, report: Callable[[float], None]) -> tuple[int, tuple[str | None, ...]]:
    """Holds its worker until the other one has a job, too."""
    time.sleep(0.5)
    return os.getpid(), tuple(map(os.environ.get, GPUS))


GPUS = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")


@pytest.mark.parametrize(
    ("hip", "count", "given", "seen"),
    [
        (None, 2, (None, None), {("0", None), ("1", None)}),
        (None, 3, ("4,7,9", None), {("4", None), ("7", None)}),
        (None, 1, (None, None), {(None, None)}),
        (None, 0, ("", None), {("", None)}),
        ("7.0", 2, (None, None), {(None, "0"), (None, "1")}),
        ("7.0", 2, (None, "4,7"), {(None, "4"), (None, "7")}),
        ("7.0", 2, ("4,7", None), {("4,7", "4"), ("4,7", "7")}),
        ("7.0", 2, ("0,1", "4,7"), {("0,1", "4"), ("0,1", "7")}),
    ],
)
def test_workers_take_turns_on_several_gpus(
    monkeypatch: pytest.MonkeyPatch,
    hip: str | None,
    count: int,
    given: tuple[str | None, ...],
    seen: set[tuple[str | None, ...]],
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.version, "hip", hip)
    for name, value in zip(GPUS, given, strict=True):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    by_worker = dict(outcome for _, outcome in execute(gpus, range(4), 2))
    assert len(by_worker) == 2
    assert set(by_worker.values()) == seen
    assert tuple(map(os.environ.get, GPUS)) == given


@pytest.mark.parametrize("workers", [1, 2])
def test_an_exception_is_an_outcome(workers: int) -> None:
    found = dict(execute(square, [1, 13, 2, 3], workers))
    assert found == {1: 1, 13: Failed("ValueError: unlucky"), 2: 4, 3: 9}


def test_a_killed_worker_costs_its_own_job() -> None:
    found = dict(execute(square, [1, 17, 2, 3], 2))
    lost = found.pop(17)
    assert found == {1: 1, 2: 4, 3: 9}
    assert isinstance(lost, Failed)
    assert lost.transient
    assert "exit code -9" in lost.reason
    assert "fewer jobs" in lost.reason
    assert active_children() == []


def test_memory_that_is_not_enough_beside_others_may_be_enough_alone() -> None:
    assert dict(execute(square, [19])) == {
        19: Failed("MemoryError: too large; take a smaller model or smaller pictures, or a device with more memory")
    }
    assert dict(execute(square, [23])) == {23: Failed("SurrogateError: gpt: take a smaller model")}
    found = dict(execute(square, [19, 23], 2))
    for beside in (found[19], found[23]):
        assert isinstance(beside, Failed)
        assert beside.transient
        assert "fewer jobs" in beside.reason


def test_jobs_are_taken_when_a_worker_is_free() -> None:
    taken: list[int] = []

    def jobs() -> Iterator[int]:
        for n in range(5):
            taken.append(n)
            yield n

    with closing(execute(square, jobs(), 2)) as outcomes:
        next(outcomes)
        assert taken == [0, 1]


def test_interruption_ends_the_workers_in_the_middle(tmp_path: Path) -> None:
    begun: list[Path] = []

    def interrupt(job: Path, share: float) -> None:
        begun.append(job)
        if len(begun) == 2:
            while not all(path.exists() and path.read_text() for path in begun):
                time.sleep(0.01)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(execute(linger, [tmp_path / name for name in "abc"], 2, interrupt))
    assert active_children() == []
    assert [path.read_text() for path in sorted(tmp_path.iterdir())] == ["begun", "begun"]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only Linux says which cores a process may use")
def test_cores_are_those_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 3, 5})
    assert cores() == 3
