"""Every dataset format in one table, and the choice among them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mmguard.data.formats import chat_json, coco, delimited, image_folder, parquet, pictures, webdataset
from mmguard.data.formats.base import Format, anywhere, is_hidden
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

    A file that is a link keeps its own name and folder, as it does where its folder is read: what it leads to, in a
    cache of the hub or of git-annex, has another name, often without a suffix, and no pictures beside it.

    Args:
        path: of a folder or file that exists.

    Raises:
        DataError: no format is recognised, several datasets lie there, or the data cannot be read.
    """
    return _folder(path.resolve()) if path.is_dir() else _file(path.parent.resolve() / path.name)


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
    below = [file for file in anywhere(_may_describe)(folder) if not is_hidden(file, folder)]
    objects = [file for file in below if chat_json.is_one_object(file)]
    if tables := [file for file in below if file not in objects]:
        names = ", ".join(file.relative_to(folder).as_posix() for file in tables[:5])
        raise DataError(
            f"{folder}: its tables lie in folders below ({names}): give the folder of one, such as {tables[0].parent}; "
            f"or move the table up to {folder}, if its paths begin there, or elsewhere, if the pictures are meant alone"
        )
    loose = pictures.FORMAT.find(folder)
    if not loose:
        raise DataError(f"{folder}: holds no dataset of a known format: give {DESCRIBED}")
    source = pictures.FORMAT.read(folder, loose)
    reason = f"is JSON of a kind that is not read: if it holds texts, write them into {folder / image_folder.METADATA}"
    places = [file.relative_to(folder).as_posix() for file in objects]
    return replace(source, rows=[*source.rows, *((place, Rejection(place, reason)) for place in places)])


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
    one = next((one for one in FORMATS if one.accepts(path)), None)
    if one is None:
        raise DataError(f"{path}: is no dataset file: give {DESCRIBED}")
    return one.read(path.parent, [path])
