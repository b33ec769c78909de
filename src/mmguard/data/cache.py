"""Folders in the datasets cache that are filled once, completely or not at all."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import datasets

from mmguard.errors import DataError


def cached(name: str, fill: Callable[[Path], None]) -> Path:
    """The folder `mmguard/NAME` of the datasets cache, which `fill` fills if it is not there yet.

    Args:
        name: of the folder, with forward slashes; it must change with what is to be in it.
        fill: writes into an empty folder that it is given, which then gets its name.

    Raises:
        DataError: the folder cannot be written; or as `fill`.
    """
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "mmguard" / name
    if folder.is_dir():
        return folder.resolve()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Another process may fill the same: each fills its own, and the first to be done gives the folder its name.
        with tempfile.TemporaryDirectory(prefix=".", dir=folder.parent) as scratch:
            partial = Path(scratch) / "partial"
            partial.mkdir()
            fill(partial)
            partial.rename(folder)
    except OSError as error:
        if not folder.is_dir():
            raise DataError(
                f"{folder}: cannot be written ({error.strerror or error}): free space, or set HF_DATASETS_CACHE"
            ) from error
    return folder.resolve()
