"""Where models run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from mmguard.errors import ConfigError

CUDA_VISIBILITY = "CUDA_VISIBLE_DEVICES"
_auto: ContextVar[str | torch.device] = ContextVar("auto", default="auto")


def device_of(name: str | torch.device) -> torch.device:
    """The device of a name; `auto` is what `auto_means` says, else the first CUDA device if there is one, else the
    CPU.

    Raises:
        ConfigError: no device is called so.
    """
    if name == "auto":
        name = _auto.get()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"device {name}: there is no kind of that name: take auto, cpu, cuda, cuda:1 or mps"
        ) from error


def require_usable(place: torch.device) -> torch.device:
    """The device, if it is there.

    Raises:
        ConfigError: it is a GPU, and there is none, or none of that number.
    """
    if place.type == "cuda" and (place.index or 0) >= (there := torch.cuda.device_count()):
        raise ConfigError(
            f"device {place}: PyTorch finds {there} CUDA devices here: take auto or cpu, or mend the driver"
        )
    return place


def visibility() -> str:
    """The variable of the environment that says which GPUs a process sees.

    ROCm knows CUDA's too, but its own comes before it.
    """
    return "HIP_VISIBLE_DEVICES" if torch.version.hip else CUDA_VISIBILITY


def require_first(name: str | torch.device) -> None:
    """Refuses a GPU that is not the first: trainers take that, whatever is asked for.

    Raises:
        ConfigError: it is another; the message says how to make it the first.
    """
    if index := device_of(name).index:
        raise ConfigError(
            f"device {name}: trainers take the first GPU there is: run with {visibility()}={index} and cuda"
        )


@contextmanager
def auto_means(name: str | torch.device) -> Iterator[None]:
    """Makes `auto` another device until the end of the block, for models that nobody names a device for."""
    before = _auto.set(name)
    try:
        yield
    finally:
        _auto.reset(before)
