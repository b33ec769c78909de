"""Parquet with pictures inside, as `datasets` stores them (bytes and path) or as bare bytes, one in a row or a list
with one, as TRL has it; any number of shards.

In the released shards schema, metadata, compression and row groups are the owner's. A picture without a path gets its
number as one, so that it is known by it even if other rows are left out; so does one whose path another has, too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmguard.data.formats.base import Format, Released, anywhere, by_place, suffixed, target
from mmguard.data.formats.contained import content_digest, is_picture, is_safe, plain, unpacked
from mmguard.data.sources import Row, Source
from mmguard.errors import DataError, ReleaseError
from mmguard.runtime.durable import replacing
from mmguard.types import Dataset, Rejection

_SHARD = re.compile(r"(\w+?)-\d+-of-\d+(?:-[0-9a-f]+)?|(train|validation|test)")
"""Names of shards that say which split they hold."""

_ROWS = 16
"""Read at a time."""

_GROUP_BYTES = 2**30
"""Of a row group, at most about this: readers hold one at a time, and Arrow no more than 2 GiB of pictures."""

_NAMES = "names.json"
"""In the unpacked folder of each shard: the name of each row's picture, null where there is none, a list of nulls where
there are several."""


def read(folder: Path, files: Sequence[Path]) -> Source:
    """A row a row, with the path of its unpacked picture in place of the picture.

    Raises:
        DataError: a file is no parquet or is damaged, not exactly one column holds pictures, or files have different
            columns.
    """
    _require_one_dataset(folder, files)
    column, named = _picture_column(files)
    root = unpacked(files, _pictures(folder, files, column))
    rows: list[tuple[str, Row | Rejection]] = []
    for file in files:
        table = _table(file, without=column)
        names: list[str | list[None] | None] = json.loads((root / _shard(folder, file) / _NAMES).read_bytes())
        extra = {"split": split} if (split := _split(file)) else {}
        for number, (row, name) in enumerate(zip(table.to_pylist(), names, strict=True)):
            place = _place(folder, file, number)
            try:
                # As JSON has it: dates become text here, and stay what they are in the release.
                readable = json.loads(json.dumps({**extra, **row}, default=plain))
            except ValueError as error:
                rows.append((place, Rejection(place, str(error))))
                continue
            if isinstance(name, str):
                name = f"{_shard(folder, file)}/{name}"
            rows.append((place, {**readable, column: name} if name else readable))
    name = str(files[0] if len(files) == 1 else folder)
    return Source(name, folder, column, rows, (), "parquet", tuple(files), root, named)


def write(dataset: Dataset, released: Sequence[Released], out: Path) -> None:
    """The same shards less the rows that are not released, with other pictures and words; none that has no row left.

    Raises:
        ReleaseError: a shard cannot be written as Parquet.
    """
    kept = by_place(released)
    for file in dataset.files:
        layout = pq.read_metadata(file)
        ours = {n: kept[place] for n in range(layout.num_rows) if (place := _place(dataset.root, file, n)) in kept}
        if ours:
            with _writing(file):
                _write_shard(file, dataset.image_field, ours, target(dataset, file, out))


def _changed(table: pa.Table, column: str, released: Mapping[int, Released]) -> pa.Table:
    """The rows of a part of a shard that are released, by number, with other pictures and words."""
    table, ours = table.take(pa.array(list(released), pa.int64())), released.values()
    named = _has_paths(_single(table.schema.field(column).type))
    pictures = [_picture(old.as_py(), new, named) for old, new in zip(table[column], ours, strict=True)]
    table = _replaced(table, column, pictures)
    for name in dict.fromkeys(name for one in ours for name in one.changed if name != column):
        values = [one.changed.get(name, old.as_py()) for old, one in zip(table[name], ours, strict=True)]
        table = _replaced(table, name, values)
    return table


def _write_shard(file: Path, column: str, released: Mapping[int, Released], path: Path) -> None:
    """Writes a shard with the compression and row groups of the owner's file, which has rows, though smaller groups
    where pictures have grown so much that readers could not hold one."""
    stored = pq.ParquetFile(file)
    group = stored.metadata.row_group(0)
    size, compression = max(1, group.num_rows), group.column(0).compression
    compression = "NONE" if compression == "UNCOMPRESSED" else compression
    with replacing(path) as partial, pq.ParquetWriter(partial, stored.schema_arrow, compression=compression) as writer:
        waiting: list[pa.Table] = []
        rows = held = first = 0
        for batch in stored.iter_batches(_ROWS):
            ours = {n: released[first + n] for n in range(batch.num_rows) if first + n in released}
            first += batch.num_rows
            if ours:
                waiting.append(_changed(pa.Table.from_batches([batch]), column, ours))
                rows, held = rows + waiting[-1].num_rows, held + waiting[-1].nbytes
            while rows >= size or held >= _GROUP_BYTES:
                table = pa.concat_tables(waiting)
                writer.write_table(table.slice(0, size))
                waiting = [table.slice(size)]
                rows, held = waiting[0].num_rows, waiting[0].nbytes
        if rows:
            writer.write_table(pa.concat_tables(waiting))


def _pictures(folder: Path, files: Sequence[Path], column: str) -> Iterator[tuple[str, bytes]]:
    """Every picture under its path in the unpacked folder, once however many rows of a shard have it."""
    for file in files:
        names: list[str | list[None] | None] = []
        stored: dict[str, str] = {}
        """Digest by name."""
        known: dict[str, str] = {}
        """Name by digest, of pictures without a name of their own."""
        for number, cell in enumerate(_cells(file, column)):
            found = _contents(cell.as_py())
            if len(found) > 1:
                names.append([None] * len(found))
                continue
            content, path = found[0] if found else (None, None)
            if content is None:
                names.append(None)
                continue
            digest = content_digest(content)
            path = path if path is None or is_safe(path) else PurePosixPath(path).name
            if not path or not is_safe(path) or path == _NAMES or stored.get(path, digest) != digest:
                path = known.setdefault(digest, f"{number:06d}")
            names.append(path)
            if path not in stored:
                stored[path] = digest
                yield f"{_shard(folder, file)}/{path}", content
        yield f"{_shard(folder, file)}/{_NAMES}", json.dumps(names).encode()


def _split(file: Path) -> str | None:
    found = _SHARD.fullmatch(file.stem)
    return found and (found[1] or found[2])


def _contents(cell: Any) -> list[tuple[bytes | None, str | None]]:
    """Bytes and path of each picture of a cell, which holds one or a list of them."""
    if isinstance(cell, list):
        return [content for one in cell for content in _contents(one)]
    return [(cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)]


def _picture(old: Any, new: Released, named: bool) -> Any:
    if isinstance(old, list):
        return [_picture(old[0], new, named)]
    content = new.image.read_bytes()
    if not isinstance(old, dict):
        return content
    return {**old, "bytes": content, **({"path": _path(old["path"], new.image.name)} if named else {})}


def _path(owners: str | None, unpacked_as: str) -> str:
    """The path of a released picture: the owner's, but the number by which the picture is known where it has none, or
    where others have the same: a reader of the release might number it otherwise."""
    return owners if owners and PurePosixPath(owners).stem == PurePosixPath(unpacked_as).stem else unpacked_as


def _columns(file: Path) -> list[str]:
    with _reading(file):
        names: list[str] = pq.read_schema(file).names
        return names


def _require_one_dataset(folder: Path, files: Sequence[Path]) -> None:
    """Refuses shards of different columns, such as several configurations of a hub dataset: nobody could load them,
    or a release of them, as one dataset."""
    by_columns = {frozenset(_columns(file)): file for file in reversed(files)}
    if len(by_columns) > 1:
        *_, other, one = by_columns.values()
        raise DataError(
            f"{folder}: holds several datasets: {_shard(folder, one)} and {_shard(folder, other)} have different "
            "columns: name the folder or file that is meant, or give them the same columns"
        )


def _picture_column(files: Sequence[Path]) -> tuple[str, bool]:
    """The column that holds pictures, and whether it names them. One of lists is it only where there is no other."""
    found: dict[str, bool] = {}
    listed: dict[str, bool] = {}
    for file in files:
        with _reading(file):
            for batch in pq.ParquetFile(file).iter_batches(batch_size=32):
                for field in batch.schema:
                    type_ = _single(field.type)
                    cells = (_contents(cell.as_py()) for cell in batch[field.name]) if _may_hold(type_) else ()
                    if any(content and is_picture(content) for cell in cells for content, _ in cell):
                        kind = found if type_ == field.type else listed
                        kind[field.name] = kind.get(field.name, True) and _has_paths(type_)
                break
    found = found or listed
    if len(found) != 1:
        what = f"several columns of pictures ({', '.join(found)})" if found else "no column of pictures"
        cure = "keep one of them" if found else "store each as bytes, as `datasets.Image` does"
        raise DataError(f"{files[0]}: has {what}: {cure}")
    ((column, named),) = found.items()
    return column, named


def _single(type_: pa.DataType) -> pa.DataType:
    """The type of a list's entries; any other is its own."""
    is_list = pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)
    return type_.value_type if is_list else type_


def _may_hold(type_: pa.DataType) -> bool:
    if pa.types.is_struct(type_):
        return type_.get_field_index("bytes") >= 0
    return pa.types.is_binary(type_) or pa.types.is_large_binary(type_)


def _has_paths(type_: pa.DataType) -> bool:
    """Whether pictures of this type have room for a path: where none has any, Arrow may have settled on no type for
    it."""
    place = type_.get_field_index("path") if pa.types.is_struct(type_) else -1
    return place >= 0 and not pa.types.is_null(type_.field(place).type)


def _table(file: Path, without: str) -> pa.Table:
    with _reading(file):
        stored = pq.ParquetFile(file)
        return stored.read(columns=[name for name in stored.schema_arrow.names if name != without])


def _cells(file: Path, column: str) -> Iterator[pa.Scalar]:
    """The pictures of a shard, read a few rows at a time: Arrow cannot hold more than 2 GiB of them at once."""
    with _reading(file):
        for batch in pq.ParquetFile(file).iter_batches(_ROWS, columns=[column]):
            yield from batch[column]


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: cannot be read as Parquet ({error}): replace the file") from error


@contextmanager
def _writing(file: Path) -> Iterator[None]:
    try:
        yield
    except pa.ArrowException as error:
        raise ReleaseError(
            f"{file}: its release cannot be written as Parquet ({error}): split it into smaller files, or write it "
            "anew with `datasets`"
        ) from error


def _replaced(table: pa.Table, column: str, values: list[Any]) -> pa.Table:
    """The table with other values in one column, of the same type."""
    field = table.schema.field(column)
    return table.set_column(table.schema.get_field_index(column), field, pa.array(values, type=field.type))


def _shard(folder: Path, file: Path) -> str:
    return file.relative_to(folder).as_posix()


def _place(folder: Path, file: Path, number: int) -> str:
    return f"{_shard(folder, file)}:{number}"


_accepts = suffixed(".parquet")

FORMAT = Format(
    name="parquet",
    described="Parquet files with pictures inside",
    find=anywhere(_accepts),
    accepts=_accepts,
    read=read,
    write=write,
    loads="**/*.parquet",
    split=_split,
    columns=_columns,
    sharded=True,
    contains=True,
)
