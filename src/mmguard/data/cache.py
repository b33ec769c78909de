"""Folders in the datasets cache that are filled once, completely or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import datasets

from mmguard.errors import DataError


def root() -> Path:
    """The folder that holds them all; it need not exist."""
    return Path(datasets.config.HF_DATASETS_CACHE) / "mmguard"


def sizes() -> dict[str, int]:
    """Bytes in each folder directly below `root`, by its name."""
    folders = sorted(path for path in root().glob("*") if path.is_dir())
    return {one.name: sum(file.stat().st_size for file in one.rglob("*") if file.is_file()) for one in folders}


def clear() -> None:
    """Removes `root`. What is needed again is filled again; commands that run meanwhile may fail.

    Raises:
        DataError: something in it cannot be removed.
    """
    try:
        shutil.rmtree(root())
    except FileNotFoundError:
        pass
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be removed ({error.strerror}): remove it by hand") from error


def cached(name: str, fill: Callable[[Path], None]) -> Path:
    """The folder `mmguard/NAME` of the datasets cache, which `fill` fills if it is not there yet.

    Args:
        name: of the folder, with forward slashes; it must change with what is to be in it.
        fill: writes into an empty folder that it is given, which then gets its name.

    Raises:
        DataError: the folder cannot be written; or as `fill`.
    """
    folder = root() / name
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
