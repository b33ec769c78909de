"""WebDataset: tar shards. Members that differ only behind the first dot of their names make one sample.

Of these one is a picture; a `.json` holds fields, and a `.txt` a caption. In the released shards, members keep their
names and order; others than samples (links, hidden files) are not released.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmguard.data.formats.base import Format, Released, anywhere, by_place, target
from mmguard.data.formats.contained import content_digest, is_picture, is_safe, unpacked
from mmguard.data.sources import Row, Source, json_text
from mmguard.errors import DataError
from mmguard.runtime.durable import replacing
from mmguard.types import Dataset, Rejection

IMAGE = "__image__"
_KEY = re.compile(r"(?P<key>(?:.*/)?[^./][^./]*)\.(?P<ext>[^/]+)", re.DOTALL)
_PICTURES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm")
_CAPTIONS = ("txt", "caption", "text")
_TEXTS = ("question", "caption", "captions", "text", "conversations", "messages")
_ENDINGS = (".tar", ".tar.gz", ".tgz")
_MAX_BYTES = 2**28
"""Of one member: more than any picture that is read has; a few kilobytes of a compressed shard can claim any size."""


@dataclass
class _Sample:
    fields: dict[str, bytes] = field(default_factory=dict)
    """Content of each member by extension, less pictures."""
    pictures: list[str] = field(default_factory=list)
    """Names of its pictures."""
    too_large: str | None = None
    """Name of a member beyond the limit, if there is one."""


def read(folder: Path, files: Sequence[Path]) -> Source:
    """A row a sample: the fields of its JSON, its caption, `__key__`, and in `__image__` its picture's unpacked path.

    Raises:
        DataError: a shard is no tar file, or is damaged.
    """
    rows: list[tuple[str, Row | Rejection]] = []
    for file in files:
        samples: dict[str, _Sample] = {}
        for key, ext, member, content in _members(file, pictures=False):
            sample = samples.setdefault(key, _Sample())
            if member.size > _MAX_BYTES:
                sample.too_large = member.name
            elif content is None:
                sample.pictures.append(member.name)
            else:
                sample.fields[ext] = content
        shard = file.relative_to(folder).as_posix()
        rows += [(f"{shard}:{key}", _row(f"{shard}:{key}", shard, key, one)) for key, one in samples.items()]
    pictures = (
        (f"{file.relative_to(folder).as_posix()}/{member.name}", content)
        for file in files
        for _, ext, member, content in _members(file, pictures=True)
        if _is_picture(ext) and content is not None and is_safe(member.name)
    )
    name = str(files[0] if len(files) == 1 else folder)
    return Source(name, folder, IMAGE, rows, (), "webdataset", tuple(files), unpacked(files, pictures))


def write(dataset: Dataset, released: Sequence[Released], out: Path) -> None:
    """The same shards with other pictures, and other JSON where words changed; none that has no sample left."""
    kept = by_place(released)
    for file in dataset.files:
        shard = file.relative_to(dataset.root).as_posix()
        plain = file.name.lower().endswith(".tar")
        if all(f"{shard}:{key}" not in kept for key, *_ in _members(file, pictures=False)):
            continue
        with replacing(target(dataset, file, out)) as partial, _tar(partial, plain) as tar:
            for key, ext, member, content in _members(file, pictures=True):
                if (one := kept.get(f"{shard}:{key}")) is None or content is None:
                    continue
                if _is_picture(ext):
                    content = one.image.read_bytes()
                elif ext == "json" and (changed := {k: v for k, v in one.changed.items() if k != IMAGE}):
                    content = json_text({**json.loads(content), **changed}).encode()
                member.size = len(content)
                member.pax_headers = {}  # what is needed is written anew; the rest may say or show anything
                tar.addfile(member, io.BytesIO(content))


@contextmanager
def _tar(path: Path, plain: bool) -> Iterator[tarfile.TarFile]:
    """A tar file to write; compressed, its header tells neither time nor name, so that equal releases are equal."""
    with ExitStack() as stack:
        stream: Any = stack.enter_context(path.open("wb"))
        if not plain:
            stream = stack.enter_context(gzip.GzipFile(filename="", mode="wb", fileobj=stream, mtime=0))
        yield stack.enter_context(tarfile.open(fileobj=stream, mode="w"))


def _members(file: Path, pictures: bool) -> Iterator[tuple[str, str, tarfile.TarInfo, bytes | None]]:
    """Key, extension and content of each member that belongs to a sample; pictures are read only on demand."""
    try:
        with tarfile.open(file) as tar:
            for member in tar:
                named = _KEY.fullmatch(member.name)
                if named is None or not member.isfile():
                    continue
                ext = named["ext"].lower()
                wanted = (pictures or not _is_picture(ext)) and member.size <= _MAX_BYTES
                stream = tar.extractfile(member) if wanted else None
                yield named["key"], ext, member, stream.read() if stream else None
            _require_end(tar)
    # Beyond TarError, headers with nonsense in them make `tarfile` raise ValueError and its like.
    except (tarfile.TarError, OSError, EOFError, zlib.error, ValueError, OverflowError) as error:
        raise DataError(f"{file}: cannot be read as a tar file ({error}): replace the file") from error


def _require_end(tar: tarfile.TarFile) -> None:
    """What is behind the last member must be zeros, since `tarfile` takes a damaged header for the end; and all must
    be read, since a compressed shard has its checksum at the very end.
    """
    stream = tar.fileobj
    assert stream is not None
    stream.seek(tar.offset)
    if stream.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.ReadError(f"damaged at byte {tar.offset}")
    while stream.read(2**20):
        pass


def _is_picture(ext: str) -> bool:
    return ext.rpartition(".")[2] in _PICTURES


def _row(place: str, shard: str, key: str, sample: _Sample) -> Row | Rejection:
    if sample.too_large is not None:
        return Rejection(place, f"{sample.too_large} is larger than {_MAX_BYTES >> 20} MiB: remove it, or shrink it")
    if len(sample.pictures) != 1:
        return Rejection(place, f"has {len(sample.pictures)} pictures: only one image a sample is supported")
    if not is_safe(sample.pictures[0]):
        return Rejection(place, f"the name {sample.pictures[0]} cannot be a file's: rename the member")
    if hidden := next((ext for ext, content in sample.fields.items() if is_picture(content)), None):
        return Rejection(place, f"its .{hidden} is a picture that would be released as it is: remove it")
    try:
        row = json.loads(sample.fields.get("json") or b"{}")
        if not isinstance(row, dict):
            return Rejection(place, "its .json holds no object: correct or remove it")
        for ext, content in sample.fields.items():
            if ext in _CAPTIONS:
                row.setdefault(ext if any(name in row for name in _TEXTS) else "caption", content.decode())
            elif ext != "json":
                row.setdefault(ext, f"sha256:{content_digest(content)}")
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError too
        return Rejection(place, f"its texts cannot be read ({error}): correct them")
    return {"__key__": key, **row, IMAGE: f"{shard}/{sample.pictures[0]}"}


def _accepts(path: Path) -> bool:
    return path.name.lower().endswith(_ENDINGS)


FORMAT = Format(
    name="webdataset",
    described="WebDataset tar shards",
    find=anywhere(_accepts),
    accepts=_accepts,
    read=read,
    write=write,
    loads="**/*.tar*",
    sharded=True,
    contains=True,
)
