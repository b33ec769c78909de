"""Where perturbations live while they are optimised: in one file, never all in memory."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from mmguard.release.writer import writing


class DeltaFile:
    """The δ of every image as int8 in a memory-mapped file.

    They are appended in order; `mapped` then gives each as a tensor that lies in the file. The system keeps in memory
    what is in use, so a dataset may be larger than memory.

    Args:
        path: the file; written anew, and never into one that another run has mapped.

    Raises:
        ReleaseError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with writing(self.path):
            path.unlink(missing_ok=True)
            self._file: BinaryIO = path.open("wb")
        self._shapes: list[torch.Size] = []

    def append(self, delta: Tensor) -> None:
        """Adds one perturbation, int8 `(3, H, W)`."""
        with writing(self.path):
            self._file.write(delta.contiguous().numpy().data)
        self._shapes.append(delta.shape)

    def mapped(self) -> list[Tensor]:
        """Every perturbation, in the order in which they came; what is written into one is written into the file."""
        with writing(self.path):
            self._file.close()
            sizes = [shape.numel() for shape in self._shapes]
            whole = torch.from_file(str(self.path), shared=True, size=sum(sizes), dtype=torch.int8)
        return [part.view(shape) for part, shape in zip(whole.split(sizes), self._shapes, strict=True)]
