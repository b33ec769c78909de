"""Image folder: `metadata.jsonl`, one JSON object a line, with the path of its image in `file_name`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmguard.data.formats.base import Format, Released, directly, write_text
from mmguard.data.sources import Source, json_text, read_json_lines
from mmguard.types import Dataset

METADATA = "metadata.jsonl"


def read(folder: Path, files: Sequence[Path]) -> Source:
    """The lines of `metadata.jsonl`."""
    (metadata,) = files
    return Source(str(metadata), folder, "file_name", read_json_lines(metadata), files=(metadata,))


def write(dataset: Dataset, released: Sequence[Released], out: Path) -> None:
    """Also what came from the hub or a package, whose rows lie in several files or in none."""
    write_text(out / METADATA, "".join(f"{json_text(one.row)}\n" for one in released))


def _accepts(path: Path) -> bool:
    return path.name.lower() == METADATA


FORMAT = Format(
    name="image-folder",
    described=f"a folder with {METADATA}",
    find=directly(_accepts),
    accepts=_accepts,
    read=read,
    write=write,
    loads="**",
)
