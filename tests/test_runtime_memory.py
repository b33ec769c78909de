"""Running out of memory, and going on with less."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from mmguard.runtime.memory import in_parts


class Doubling:
    """Doubles numbers, `most` at a time."""

    def __init__(self, most: int) -> None:
        self.sizes: list[int] = []
        self._most = most

    def __call__(self, numbers: Sequence[int]) -> list[int]:
        self.sizes.append(len(numbers))
        if len(numbers) > self._most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return [2 * number for number in numbers]


@pytest.mark.parametrize(
    ("most", "sizes"),
    [(9, [5, 2]), (4, [5, 2, 2, 2, 1]), (1, [5, 2, 1, 1, 1, 1, 1, 1, 1])],
)
def test_parts_become_smaller_and_stay_so(most: int, sizes: list[int]) -> None:
    doubling = Doubling(most)
    assert in_parts(doubling, range(7), 5) == [0, 2, 4, 6, 8, 10, 12]
    assert doubling.sizes == sizes
    assert in_parts(doubling, [], 5) == []


def test_not_even_one() -> None:
    doubling = Doubling(0)
    with pytest.raises(torch.OutOfMemoryError):
        in_parts(doubling, range(7), 5)
    assert doubling.sizes == [5, 2, 1]


def test_other_errors_are_not_tried_again() -> None:
    def fail(numbers: Sequence[int]) -> list[int]:
        tried.append(len(numbers))
        raise RuntimeError("sizes do not match")

    tried: list[int] = []
    with pytest.raises(RuntimeError, match="do not match"):
        in_parts(fail, range(7), 5)
    assert tried == [5]
