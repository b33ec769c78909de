"""What every reader hands over, and the shared ways to read and write text, JSON and JSON lines."""

from __future__ import annotations

import codecs
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmguard.errors import DataError
from mmguard.types import Rejection

Row = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """A dataset's rows before any of them is judged."""

    name: str
    """What messages call it."""
    root: Path
    """Absolute folder of the dataset."""
    image_field: str
    rows: list[tuple[str, Row | Rejection]]
    """Where each row stands (file and line) and the row, or why it is none."""
    fallbacks: tuple[str, ...] = ()
    """Folders below `root` in which an image is looked for if it is not in `root` itself."""
    format: str = "image-folder"
    """Name of its format in `data/formats`."""
    files: tuple[Path, ...] = ()
    """The files that it is made of, images that lie in files of their own aside."""
    unpacked: Path | None = None
    """Where the images were copied to if they lie inside `files`; image paths are then relative to it."""
    named: bool = True
    """Whether images have names; if not, their paths are mere numbers."""
    wordless: bool = False
    """Whether a row may do without any text."""

    @property
    def image_root(self) -> Path:
        """Absolute folder that image paths are relative to."""
        return self.unpacked or self.root

    def candidates(self, value: str) -> list[Path]:
        """Where an image may lie: never outside the dataset's folder, in either system's spelling of paths.

        Args:
            value: its path as a row has it.

        Raises:
            ValueError: the path is absolute, or leaves the folder.
        """
        depth = 0
        for part in re.split(r"[\\/]", value):
            depth += {"..": -1, ".": 0, "": 0}.get(part, 1)
            if depth < 0:
                raise ValueError(f"image path {value} leaves the dataset's folder: move the image into it")
        if value.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", value):
            raise ValueError(f"image path {value} is absolute: give it relative to the dataset's folder")
        path = os.path.normpath(value)
        return [self.image_root / folder / path for folder in ("", *self.fallbacks)]


def read_text(path: Path) -> str:
    """A UTF-8 file, with or without byte order mark.

    Raises:
        DataError: it is missing, unreadable or in another encoding.
    """
    content = read_bytes(path)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}: line {line}: byte {error.start} is not UTF-8: save the file as UTF-8") from error


def read_bytes(path: Path) -> bytes:
    """The content of a file.

    Raises:
        DataError: it is missing or unreadable.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}): correct the path or its permissions") from error


def read_json_lines(path: Path) -> list[tuple[str, Row | Rejection]]:
    """The objects of a JSON-lines file by line; a line that is none becomes a `Rejection`.

    Raises:
        DataError: it is missing or unreadable.
    """
    rows: list[tuple[str, Row | Rejection]] = []
    # Not splitlines(): JSON strings may hold U+2028 and other separators that are no line ends here.
    for number, line in enumerate(read_bytes(path).removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        if line.strip():
            where = f"{path.name}:{number}"
            rows.append((where, _line(line, where)))
    return rows


def read_json_list(path: Path) -> list[tuple[str, Row | Rejection]]:
    """The objects of a JSON file that holds one list; an entry that is no object becomes a `Rejection`.

    Raises:
        DataError: the file is no JSON or holds something else than a list; or as `read_text`.
    """
    try:
        entries = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error}): correct the file") from error
    if not isinstance(entries, list):
        raise DataError(f"{path}: holds no list but {type(entries).__name__}: give a list of conversations")
    rows: list[tuple[str, Row | Rejection]] = []
    for number, entry in enumerate(entries):
        where = f"{path.name}[{number}]"
        rows.append((where, _object(entry, where)))
    return rows


def _line(line: bytes, where: str) -> Row | Rejection:
    try:
        return _object(json.loads(line.decode()), where)
    except UnicodeDecodeError as error:
        return Rejection(where, f"byte {error.start} of the line is not UTF-8: save the file as UTF-8")
    except (ValueError, RecursionError) as error:
        return Rejection(where, f"not valid JSON ({error}): correct or remove the line")


def _object(entry: Any, where: str) -> Row | Rejection:
    if not isinstance(entry, dict):
        return Rejection(where, "is no JSON object: correct or remove it")
    try:
        json.dumps(entry, allow_nan=False)
    except ValueError:  # Python reads NaN and infinite numbers, but trainers' JSON readers do not
        return Rejection(where, "holds NaN or an infinite number, which JSON does not have: put null in its place")
    return entry


def json_text(value: Any, indent: int | None = None) -> str:
    """A value as JSON that can be stored as UTF-8, other alphabets as they are."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        # A lone surrogate (a JSON escape such as \\ud83d by itself) has no UTF-8 form: it stays an escape.
        text = json.dumps(value, indent=indent)
    return text
