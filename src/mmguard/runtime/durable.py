"""Files that are there whole or not at all, whatever happens to the program or the power meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write that takes the place of `path` once it is complete."""
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)  # if it were a link, what it leads to would be written
    yield partial
    os.replace(partial, path)


def write_durably(path: Path, content: bytes) -> None:
    """Writes a file aside, has it put on the disk, and only then gives it its name.

    Raises:
        OSError: it cannot be written; what was there under this name before is there still.
    """
    with replacing(path) as partial, partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(path.parent)


def put_on_disk(paths: Iterable[Path]) -> None:
    """Has files and folders put on the disk as they are: what files hold, and the names in folders.

    Raises:
        OSError: the disk does not take one of them.
    """
    for path in paths:
        if path.is_dir():
            _sync_folder(path)
        else:
            with path.open("r+b") as file:  # Windows puts on the disk only what could be written
                os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Names lie in the folder, which has to be put on the disk, too; Windows knows no such thing."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
