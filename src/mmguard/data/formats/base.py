"""What a dataset format is: how its files are found, read, and written again with other images and words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmguard.data.sources import Row, Source, json_text, read_text
from mmguard.runtime.durable import replacing
from mmguard.types import Dataset


@dataclass(frozen=True)
class Released:
    """A row as it is released."""

    place: str
    """Where the owner's row stands in the dataset (`Dataset.places`)."""
    row: Row
    """All its fields."""
    changed: Row
    """Those fields that differ from the owner's row."""
    image: Path
    """The protected picture."""


@dataclass(frozen=True)
class Format:
    """One dataset format.

    `read` takes the dataset's folder and the data files in it, in order, and raises `DataError` where they cannot be
    read at all; a bad row becomes a `Rejection`. `write` takes the owner's dataset, the rows to release in the owner's
    order, and the folder to write into: it puts there what `read` would find again, under the same names, with
    everything but the given rows' changes as in the owner's files. Pictures in files of their own are there already.
    """

    name: str
    described: str
    """For messages: what to give."""
    find: Callable[[Path], list[Path]]
    """The data files of this format in a folder; none if it is another format's."""
    accepts: Callable[[Path], bool]
    """Whether a file that exists is a data file of this format."""
    read: Callable[[Path, Sequence[Path]], Source]
    write: Callable[[Dataset, Sequence[Released], Path], None]
    loads: str | None
    """Which files of a release `datasets.load_dataset` reads, as a pattern; None if it does not know the format."""
    split: Callable[[Path], str | None] = lambda file: None
    """Which split a data file holds as a whole, as its name says."""
    columns: Callable[[Path], Sequence[str]] | None = None
    """The fields that a data file has, where `read` gives rows others besides; None where it does not."""
    sharded: bool = False
    """Whether several data files make one dataset."""
    contains: bool = False
    """Whether pictures lie inside the data files."""


def directly(accepts: Callable[[Path], bool]) -> Callable[[Path], list[Path]]:
    """A `Format.find` of the files that are accepted and lie in the folder itself."""
    return lambda folder: sorted(path for path in folder.glob("*") if path.is_file() and accepts(path))


def anywhere(accepts: Callable[[Path], bool]) -> Callable[[Path], list[Path]]:
    """A `Format.find` of the files that are accepted, in the folder itself and in all below it."""
    return lambda folder: sorted(path for path in folder.rglob("*") if accepts(path) and path.is_file())


def is_hidden(path: Path, folder: Path) -> bool:
    """Whether a path within a folder, or a folder on the way there, is hidden, as thumbnails and the like are."""
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def suffixed(*suffixes: str) -> Callable[[Path], bool]:
    """A `Format.accepts` that goes by suffix, in any letter case."""
    return lambda path: path.suffix.lower() in suffixes


def changes(before: Row, after: Row) -> Row:
    """The fields of `after` that differ from `before`."""
    return {field: value for field, value in after.items() if field not in before or before[field] != value}


def target(dataset: Dataset, file: Path, out: Path) -> Path:
    """Where a data file of the dataset lies in the folder `out`, whose parents are made."""
    path = out / file.relative_to(dataset.root)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def is_object(content: bytes) -> bool:
    """Whether a JSON file of this content holds an object, and not a list."""
    return content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file, complete or not at all."""
    with replacing(path) as partial:
        partial.write_bytes(text.encode("utf-8"))


def json_like(file: Path, value: Any) -> str:
    """A value as JSON, indented if the owner's file is."""
    return json_text(value, indent=2 if "\n" in read_text(file).strip() else None) + "\n"


def by_place(released: Iterable[Released]) -> dict[Any, Released]:
    """Released rows by where the owner's row stands."""
    return {one.place: one for one in released}
