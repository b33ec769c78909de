"""Reading ahead."""

from __future__ import annotations

import threading

import pytest

from mmguard.runtime.prefetch import prefetched


def test_every_job_in_order_with_what_was_loaded() -> None:
    assert list(prefetched(range(5), lambda n: n * n)) == [(n, n * n) for n in range(5)]
    assert list(prefetched([], str)) == []


def test_the_next_job_is_loaded_while_one_is_worked_on() -> None:
    loaded = {n: threading.Event() for n in range(3)}
    for job, _ in prefetched(range(3), lambda n: loaded[n].set()):
        if job < 2:
            assert loaded[job + 1].wait(timeout=10)


def test_an_error_comes_with_its_own_job() -> None:
    def load(job: int) -> int:
        if job == 1:
            raise ValueError("job 1")
        return job

    done = prefetched(range(3), load)
    assert next(done) == (0, 0)
    with pytest.raises(ValueError, match="job 1"):
        next(done)
