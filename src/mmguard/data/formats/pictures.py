"""A folder of pictures, each with a caption in a `.txt` (or `.caption`) of the same name, as LoRA trainers have it.

A picture may also come without a text. Then there is none in the release either: it is protected against the captions
that models give it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mmguard.data.formats.base import Format, Released, target
from mmguard.data.sources import Row, Source, read_text
from mmguard.errors import DataError
from mmguard.types import Dataset, Rejection

_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_SIDECARS = (".txt", ".caption")


def read(folder: Path, files: Sequence[Path]) -> Source:
    """A row a picture, by path: `file_name`, and `caption` where there is one."""
    sidecars = {picture: _sidecar(picture) for picture in files}
    rows = [(picture.relative_to(folder).as_posix(), _row(folder, picture, sidecars[picture])) for picture in files]
    texts = tuple(dict.fromkeys(sidecar for sidecar in sidecars.values() if sidecar))
    return Source(str(folder), folder, "file_name", rows, (), "pictures", texts, wordless=True)


def write(dataset: Dataset, released: Sequence[Released], out: Path) -> None:
    """The captions' files, byte for byte, each under the name of its released picture."""
    for one in released:
        if sidecar := _sidecar(dataset.root / one.place):
            there = target(dataset, sidecar, out).with_name(one.image.with_suffix(sidecar.suffix).name)
            there.write_bytes(sidecar.read_bytes())


def _sidecar(picture: Path) -> Path | None:
    return next((path for suffix in _SIDECARS if os.path.isfile(path := picture.with_suffix(suffix))), None)


def _row(folder: Path, picture: Path, sidecar: Path | None) -> Row | Rejection:
    row = {"file_name": picture.relative_to(folder).as_posix()}
    try:
        return {**row, "caption": read_text(sidecar).strip()} if sidecar else row
    except DataError as error:
        return Rejection(row["file_name"], str(error))


def _find(folder: Path) -> list[Path]:
    paths = (path for path in folder.rglob("*") if path.suffix.lower() in _PICTURES and path.is_file())
    # Hidden files are thumbnails and the like.
    return sorted(path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts))


FORMAT = Format(
    name="pictures",
    described="a folder of pictures, with captions in .txt files beside them or without any text",
    find=_find,
    accepts=lambda path: False,
    read=read,
    write=write,
    loads=None,
    sharded=True,
)
