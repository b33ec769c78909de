"""Running out of memory, and going on with less."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

Item = TypeVar("Item")
Made = TypeVar("Made")

_MORE = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What accelerate does not list."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, on the CPU or on an accelerator."""
    known = isinstance(error, MemoryError) or should_reduce_batch_size(error)
    return known or any(words in str(error) for words in _MORE)


def release_memory() -> None:
    """Gives back what nobody uses any more. Call it outside the `except` block: an error keeps its frames alive."""
    clear_device_cache(garbage_collection=True)


def in_parts(make: Callable[[Sequence[Item]], Sequence[Made]], items: Sequence[Item], size: int) -> list[Made]:
    """What is made of items, in their order, from as many at a time as memory is enough for.

    Args:
        make: makes one thing of each item that it is given.
        items: all of them.
        size: how many are tried at first; where memory is not enough, half as many, a quarter…, and no more again.

    Raises:
        RuntimeError, MemoryError: memory is not enough for one item; or whatever else `make` raises.
    """
    made: list[Made] = []
    while len(made) < len(items):
        part = items[len(made) : len(made) + size]
        try:
            made += make(part)
            continue
        except (RuntimeError, MemoryError) as error:
            if len(part) == 1 or not is_out_of_memory(error):
                raise
        size = len(part) // 2
        release_memory()
    return made
