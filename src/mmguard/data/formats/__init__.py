"""Every dataset format in one table, and the choice among them."""

from __future__ import annotations

from pathlib import Path

from mmguard.data.formats import chat_json, coco, delimited, image_folder, parquet, pictures, webdataset
from mmguard.data.formats.base import Format
from mmguard.data.sources import Source
from mmguard.errors import DataError

FORMATS: tuple[Format, ...] = (
    image_folder.FORMAT,
    chat_json.FORMAT,
    coco.FORMAT,
    delimited.FORMAT,
    parquet.FORMAT,
    webdataset.FORMAT,
    pictures.FORMAT,
)
"""In order of precedence."""

DESCRIBED = ", ".join(one.described for one in FORMATS)


def named(name: str) -> Format:
    """The format of that name."""
    return next(one for one in FORMATS if one.name == name)


def open_path(path: Path) -> Source:
    """Reads a dataset's folder or data file, whatever its format.

    Args:
        path: absolute path of a folder or file that exists.

    Raises:
        DataError: no format is recognised, several datasets lie there, or the data cannot be read.
    """
    return _folder(path) if path.is_dir() else _file(path)


def _folder(folder: Path) -> Source:
    found = _found(folder)
    if not found:
        if parts := [path.parent.name for path in sorted(folder.glob(f"*/{image_folder.METADATA}"))]:
            raise DataError(f"{folder}: holds several datasets: name one of its folders {', '.join(parts)}")
        if loose := pictures.FORMAT.find(folder):
            return pictures.FORMAT.read(folder, loose)
        raise DataError(f"{folder}: holds no dataset of a known format: give {DESCRIBED}")
    one, files = found[0]
    try:
        if len(found) > 1 or (len(files) > 1 and not one.sharded):
            names = ", ".join(file.relative_to(folder).as_posix() for _, some in found for file in some[:5])
            raise DataError(f"{folder}: holds several datasets ({names}): name the file that is meant")
        return one.read(folder, files)
    except DataError as error:
        if not one.contains and pictures.FORMAT.find(folder):
            raise DataError(f"{error}; or move it elsewhere, if the pictures are meant alone") from error
        raise


def _found(folder: Path) -> list[tuple[Format, list[Path]]]:
    """The formats of the data files in a folder, pictures aside. Beside an image folder's rows there is no other."""
    if files := image_folder.FORMAT.find(folder):
        return [(image_folder.FORMAT, files)]
    return [(one, files) for one in FORMATS if one is not pictures.FORMAT and (files := one.find(folder))]


def _file(path: Path) -> Source:
    one = next((one for one in FORMATS if one.accepts(path)), None)
    if one is None:
        raise DataError(f"{path}: is no dataset file: give {DESCRIBED}")
    return one.read(path.parent, [path])
