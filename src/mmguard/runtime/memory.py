"""Running out of memory, and going on with less."""

from __future__ import annotations

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

_MORE = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What accelerate does not list."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, on the CPU or on an accelerator."""
    known = isinstance(error, MemoryError) or should_reduce_batch_size(error)
    return known or any(words in str(error) for words in _MORE)


def release_memory() -> None:
    """Gives back what nobody uses any more. Call it outside the `except` block: an error keeps its frames alive."""
    clear_device_cache(garbage_collection=True)
