"""Tables as text: CSV with any usual delimiter, and TSV. The first line names the columns.

An empty cell counts as absent. Where a field is a list or a conversation, its cell holds JSON. Letter case in the
columns' names makes no difference, and beside answers a `query` is a `question`; a release keeps the owner's spelling.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmguard.data.formats.base import Format, Released, by_place, directly, suffixed, target
from mmguard.data.sources import Row, Source, json_text, read_text
from mmguard.errors import DataError
from mmguard.runtime.durable import replacing
from mmguard.types import Dataset, Rejection

_IMAGE_COLUMNS = ("file_name", "image", "image_path", "filepath", "path", "filename", "file", "img")
_JSON_COLUMNS = ("answers", "captions", "options", "conversations", "messages", "prompt", "completion", "texts")
_COLUMNS = {*_IMAGE_COLUMNS, *_JSON_COLUMNS, "question", "answer", "caption", "text"}
"""Names that are understood in any letter case."""


def read(folder: Path, files: Sequence[Path]) -> Source:
    """The table's rows; `image_field` is the column that names images.

    Raises:
        DataError: no UTF-8, no table, or no column that names images.
    """
    (file,) = files
    header, lines = _table(file)
    columns = _understood(header)
    image_field = next((name for names in (header, columns) for name in _IMAGE_COLUMNS if name in names), None)
    if image_field is None:
        raise DataError(
            f"{file}: no column names the images (columns found: {', '.join(header) or 'none'}): "
            f"head it with {', '.join(_IMAGE_COLUMNS[:4])}…"
        )
    rows = [(place, _row(place, columns, cells)) for place, cells in lines]
    return Source(str(file), folder, image_field, rows, ("images",), "delimited", (file,))


def write(dataset: Dataset, released: Sequence[Released], out: Path) -> None:
    """The same table, in the same dialect, with other cells where a row was changed."""
    (file,) = dataset.files
    kept = by_place(released)
    header, lines = _table(file)
    columns = _understood(header)
    raw = file.read_bytes()
    with (
        replacing(target(dataset, file, out)) as partial,
        partial.open("w", encoding="utf-8-sig" if raw.startswith(b"\xef\xbb\xbf") else "utf-8", newline="") as stream,
    ):
        quoted = raw.lstrip(b"\xef\xbb\xbf").startswith(b'"')
        table = csv.writer(
            stream,
            delimiter=_delimiter(file),
            lineterminator="\r\n" if b"\r\n" in raw else "\n",
            quoting=csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL,
        )
        table.writerow(header)
        for place, cells in lines:
            if place in kept:
                changed = kept[place].changed
                table.writerow([_cell(changed.get(name, cell)) for name, cell in zip(columns, cells, strict=True)])


def _understood(header: Sequence[str]) -> list[str]:
    """The columns' names as rows have them."""
    columns = list(header)
    for number, name in enumerate(header):
        if (lower := name.lower()) in _COLUMNS and lower not in columns:
            columns[number] = lower
    lowered = [name.lower() for name in columns]
    if "query" in lowered and "question" not in columns and {"answer", "answers"} & set(columns):
        columns[lowered.index("query")] = "question"
    return columns


def _table(file: Path) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """The names of the columns, and every other line's place and cells."""
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(read_text(file), newline=""), delimiter=_delimiter(file), strict=True)
    try:
        lines = [(f"{file.name}:{reader.line_num}", cells) for cells in reader if cells]
    except csv.Error as error:
        raise DataError(f"{file}: line {reader.line_num}: {error}: correct the quotes there") from error
    if not lines:
        raise DataError(f"{file}: is empty: give a table whose first line names the columns")
    (_, header), *rest = lines
    if len(set(header)) < len(header):
        raise DataError(f"{file}: two columns have the same name: rename one")
    return header, rest


def _delimiter(file: Path) -> str:
    if file.suffix.lower() == ".tsv":
        return "\t"
    head = read_text(file).split("\n", 1)[0]
    return max(",;\t|", key=head.count)


def _row(place: str, columns: list[str], cells: list[str]) -> Row | Rejection:
    if len(cells) != len(columns):
        return Rejection(place, f"has {len(cells)} cells, the first line {len(columns)}: correct the line")
    return {name: _value(name, cell) for name, cell in zip(columns, cells, strict=True) if cell}


def _value(name: str, cell: str) -> Any:
    if name in _JSON_COLUMNS and cell.lstrip().startswith(("[", "{")):
        try:
            return json.loads(cell)
        except (ValueError, RecursionError):
            return cell
    return cell


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else json_text(value)


_accepts = suffixed(".csv", ".tsv")

FORMAT = Format(
    name="delimited",
    described="a CSV or TSV file",
    find=directly(_accepts),
    accepts=_accepts,
    read=read,
    write=write,
    loads="*.?sv",
)
