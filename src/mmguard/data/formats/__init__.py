"""Every dataset format in one table, and the choice among them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mmguard.data.formats import chat_json, coco, delimited, image_folder, parquet, pictures, webdataset
from mmguard.data.formats.base import Format, is_hidden
from mmguard.data.sources import Source
from mmguard.errors import DataError
from mmguard.types import Rejection

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
        path: of a folder or file that exists.

    Raises:
        DataError: no format is recognised, several datasets lie there, or the data cannot be read.
    """
    return _folder(path.resolve()) if path.is_dir() else _file(path)


def _folder(folder: Path) -> Source:
    found = _found(folder)
    if not found:
        return _pictures(folder)
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


def _pictures(folder: Path) -> Source:
    """A folder of pictures that nothing in it describes. What may do so from a folder below is not passed over: the
    owner would find out from the release that it is without the texts."""
    tables: list[Path] = []
    left_out: dict[Path, str] = {}
    for path in sorted(path for path in folder.rglob("*") if not is_hidden(path, folder)):
        if path.is_dir() and path.is_symlink():
            left_out[path] = "is a link to a folder, which is not followed: put the folder itself there"
        elif path.is_file() and _may_describe(path):
            if chat_json.is_one_object(path):
                texts = folder / image_folder.METADATA
                left_out[path] = f"is JSON of a kind that is not read: if it holds texts, write them into {texts}"
            else:
                tables.append(path)
    if tables:
        names = ", ".join(file.relative_to(folder).as_posix() for file in tables[:5])
        raise DataError(
            f"{folder}: its tables lie in folders below ({names}): give the folder of one, such as {tables[0].parent}; "
            f"or move the table up to {folder}, if its paths begin there, or elsewhere, if the pictures are meant alone"
        )
    loose = pictures.FORMAT.find(folder)
    if not loose:
        raise DataError(f"{folder}: holds no dataset of a known format: give {DESCRIBED}")
    source = pictures.FORMAT.read(folder, loose)
    places = {path.relative_to(folder).as_posix(): reason for path, reason in left_out.items()}
    return replace(source, rows=[*source.rows, *((one, Rejection(one, reason)) for one, reason in places.items())])


def _may_describe(file: Path) -> bool:
    tables = (one for one in FORMATS if not one.contains)
    return any(one.accepts(file) for one in tables) and not pictures.describes_picture(file)


def _found(folder: Path) -> list[tuple[Format, list[Path]]]:
    """The formats of the data files in a folder, pictures aside. Beside an image folder's rows there is no other."""
    if files := image_folder.FORMAT.find(folder):
        return [(image_folder.FORMAT, files)]
    found = {one: files for one in FORMATS if one is not pictures.FORMAT and (files := one.find(folder))}
    if any(one.contains for one in found):
        # Beside shards it tells of them: the books that the hub keeps, or statistics.
        found[chat_json.FORMAT] = [f for f in found.get(chat_json.FORMAT, ()) if not chat_json.is_one_object(f)]
    return [(one, files) for one, files in found.items() if files]


def _file(path: Path) -> Source:
    # By what a link leads to, where pictures may lie beside it, unless that is a blob of a cache, without a suffix.
    for file in (path.resolve(), path.parent.resolve() / path.name):
        if one := next((one for one in FORMATS if one.accepts(file)), None):
            return one.read(file.parent, [file])
    raise DataError(f"{path}: is no dataset file: give {DESCRIBED}")
