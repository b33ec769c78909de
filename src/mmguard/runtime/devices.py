"""Where models run."""

from __future__ import annotations

import torch


def device_of(name: str | torch.device) -> torch.device:
    """The device of a name; `auto` is the first CUDA device if there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
