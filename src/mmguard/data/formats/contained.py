"""Pictures inside data files: copied once into the cache, where they are files like any other's."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from mmguard.data.cache import cached
from mmguard.runtime.provenance import digest

_MAX_NAME = 255
"""Bytes of a name, in every usual file system."""


def unpacked(files: Sequence[Path], pictures: Iterable[tuple[str, bytes]]) -> Path:
    """The folder in the cache with the pictures of these data files, filled if they are new or have changed.

    Args:
        files: the data files.
        pictures: the path of each picture in the folder, and its bytes; consumed only if it must be filled.

    Raises:
        DataError: as `cached`.
    """

    def fill(folder: Path) -> None:
        for name, content in pictures:
            # A name may also be that of a folder of others: its picture is then missed when it is looked for.
            with suppress(FileExistsError, IsADirectoryError, NotADirectoryError):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)

    states = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return cached(f"unpacked/{digest(states)[:20]}", fill)


def is_safe(name: str) -> bool:
    """Whether a path that a data file gives can be one in a folder of ours: inside it, and no part too long."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or any(sign in name for sign in "\\\0"):
        return False
    return all(len(os.fsencode(part)) <= _MAX_NAME for part in parts)


def is_picture(content: bytes) -> bool:
    """Whether bytes begin like a picture's file."""
    try:
        with Image.open(io.BytesIO(content)):
            return True
    # Pillow's openers raise much more than UnidentifiedImageError on bad bytes.
    except Exception:
        return False


def content_digest(content: bytes) -> str:
    """Hash of bytes, as hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def plain(value: Any) -> Any:
    """What JSON has not: bytes as a list, which is no text that could get words inserted, and the rest as text.

    Raises:
        ValueError: the bytes are a picture.
    """
    if not isinstance(value, bytes):
        return str(value)
    if is_picture(value):
        raise ValueError("holds a second picture, which would be released as it is: keep only one column of pictures")
    return [f"sha256:{content_digest(value)}"]
