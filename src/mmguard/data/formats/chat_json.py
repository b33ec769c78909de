"""Conversations about images, as LLaVA, ShareGPT, LLaMA-Factory and TRL read them: one JSON list or JSON lines.

A row has `image` (or `images` with one path) and a conversation (`data/chat.py`). LLaMA-Factory registers its files in
`dataset_info.json` beside them; the entry of the released file goes with it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmguard.data.formats.base import Format, Released, directly, is_object, json_like, target, write_text
from mmguard.data.formats.coco import is_coco
from mmguard.data.formats.pictures import describes_picture
from mmguard.data.sources import Source, json_text, read_bytes, read_json_lines, read_json_list, read_text
from mmguard.errors import DataError
from mmguard.types import Dataset

REGISTER = "dataset_info.json"


def read(folder: Path, files: Sequence[Path]) -> Source:
    """The list's entries or the file's lines; image paths are relative to `folder` or to `images/` in it."""
    (file,) = files
    rows = read_json_lines(file) if _is_lines(file) else read_json_list(file)
    registers = (file.parent / REGISTER,) if _registration(file) else ()
    return Source(str(file), folder, "image", rows, ("images",), "chat-json", (file, *registers))


def write(dataset: Dataset, released: Sequence[Released], out: Path) -> None:
    """The same file with the given rows, and its entry in the register."""
    file, *registers = dataset.files
    rows = [one.row for one in released]
    text = "".join(f"{json_text(row)}\n" for row in rows) if _is_lines(file) else json_like(file, rows)
    for register in registers:
        write_text(target(dataset, register, out), json_text(_registration(file), indent=2) + "\n")
    write_text(target(dataset, file, out), text)


def _is_lines(file: Path) -> bool:
    return file.suffix.lower() == ".jsonl"


def _registration(file: Path) -> dict[str, Any]:
    """What LLaMA-Factory's register says of a file, under the name of the dataset; empty if nothing."""
    try:
        entries = json.loads(read_text(file.parent / REGISTER))
    except (DataError, ValueError):  # there is none, or it is no business of ours
        return {}
    found = entries.items() if isinstance(entries, dict) else ()
    return {name: it for name, it in found if isinstance(it, dict) and it.get("file_name") == file.name}


def _accepts(path: Path) -> bool:
    return path.suffix.lower() in (".json", ".jsonl") and path.name != REGISTER and not is_coco(path)


def is_one_object(path: Path) -> bool:
    """Whether a JSON file holds an object, as statistics and settings do, and no list, as datasets do.

    Raises:
        DataError: it cannot be read.
    """
    return path.suffix.lower() == ".json" and is_object(read_bytes(path)) and not is_coco(path)


FORMAT = Format(
    name="chat-json",
    described="a LLaVA, ShareGPT or LLaMA-Factory JSON file (or a folder with one)",
    find=directly(lambda path: _accepts(path) and not describes_picture(path)),
    accepts=_accepts,
    read=read,
    write=write,
    loads="*.json*",
)
