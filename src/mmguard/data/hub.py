"""Datasets on the Hugging Face hub: brought to disk once as an image folder, then read like any other."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from mmguard.data.cache import root
from mmguard.data.formats.contained import plain
from mmguard.errors import DataError

_CURE = "give a local folder with metadata.jsonl or a LLaVA JSON file, or easy-vqa, which needs no download"

_LISTS = (datasets.List, datasets.LargeList)


def is_hub_id(source: str) -> bool:
    """Whether a dataset source looks like `owner/name` or `owner/name:config`."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:[\w.+-]+)?", source) is not None


def hub_folder(name: str, split: str | None, config: str | None = None) -> list[Path]:
    """Brings a hub dataset to disk as image folders, one a split: `mmguard/NAME/SPLIT` in the datasets cache.

    Images keep their original bytes where the dataset has them and are stored once however many rows use
    them. A folder is written again only if the dataset has changed. `split` of every row is its split on the
    hub.

    Args:
        name: `owner/name`.
        split: the split to read, or several as `train+test` in one folder; None for all, a folder each.
        config: which of the dataset's configurations, if it has several.

    Raises:
        DataError: the hub or the dataset cannot be reached, there is no such split, or it has no image
        column.
    """
    try:
        loaded = datasets.load_dataset(name, config, split=split)
    # Network, hub and dataset errors have no common base below Exception (OSError, httpx errors,
    # ValueError…).
    except Exception as error:
        if isinstance(error, ValueError) and split is not None and "split" in str(error).lower():
            raise DataError(f"{name}: no split {split!r} ({error}): choose one of those") from error
        if isinstance(error, ValueError) and "config" in str(error).lower():
            raise DataError(f"{name}: {error}: give {name}:CONFIG") from error
        raise DataError(
            f"{name}: is no local path, and cannot be loaded from the Hugging Face hub ({error}): {_CURE}"
        ) from error
    parts = {split or str(loaded.split or "all"): loaded} if isinstance(loaded, datasets.Dataset) else loaded
    where = f"{name}/{config}" if config else name
    return [_materialise(where, part, data) for part, data in parts.items()]


def _materialise(name: str, split: str, data: datasets.Dataset) -> Path:
    image = _image_column(name, data)
    folder = root() / name / re.sub(r"[^\w.-]", "_", split)
    stamp = folder / "fingerprint"
    if stamp.is_file() and stamp.read_text() == data._fingerprint:
        return folder
    other_media = [
        column
        for column, feature in data.features.items()
        if column != image and isinstance(_single(feature), (datasets.Image, datasets.Audio, datasets.Video))
    ]
    # Not decoded: Pillow would have to encode the pixels again, and the original bytes would be lost.
    stored = datasets.Image(decode=False)
    listed = isinstance(data.features[image], _LISTS)
    raw = data.remove_columns(other_media).cast_column(image, datasets.List(stored) if listed else stored)
    partial = folder.with_name(folder.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        (partial / "images").mkdir(parents=True)
        _write(partial, raw, image, split)
        (partial / "fingerprint").write_text(data._fingerprint)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    except OSError as error:
        raise DataError(
            f"{folder}: {name} cannot be stored ({error.strerror}): free space, or set HF_DATASETS_CACHE"
        ) from error
    return folder


def _write(folder: Path, rows: Iterable[dict[str, Any]], image: str, split: str) -> None:
    with (folder / "metadata.jsonl").open("w", encoding="utf-8") as metadata:
        for row in rows:
            content = row.pop(image)
            if isinstance(content, list):
                content = content[0] if len(content) == 1 else [None] * len(content)
            stored: dict[str, Any] = {}
            if content:  # of several pictures only their number, so that the row is left out for it
                stored = {"file_name": content if isinstance(content, list) else _store(folder, content)}
            try:
                line = json.dumps(_strict({**stored, **row, **stored, "split": split}), default=plain)
            except ValueError:  # a second picture, in bytes: left out, too
                line = json.dumps({"file_name": [None, None], "split": split})
            metadata.write(line + "\n")


def _strict(value: Any) -> Any:
    """The value as JSON can hold it: NaN and infinite numbers, of columns that need not concern us, as null."""
    if isinstance(value, dict):
        return {key: _strict(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_strict(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _store(folder: Path, content: dict[str, Any]) -> str:
    """Writes one image under a name made of its content, and returns its path relative to the folder."""
    blob: bytes = content["bytes"] if content["bytes"] is not None else Path(content["path"]).read_bytes()
    name = f"images/{hashlib.sha256(blob).hexdigest()[:20]}.{_suffix(blob)}"
    if not (folder / name).exists():
        (folder / name).write_bytes(blob)
    return name


def _suffix(blob: bytes) -> str:
    try:
        with Image.open(io.BytesIO(blob)) as file:
            return (file.format or "bin").lower().replace("jpeg", "jpg")
    # Undecodable bytes are stored too: reading the image then rejects that one sample by name.
    except Exception:
        return "bin"


def _single(feature: Any) -> Any:
    """What the entries of a list are; anything else is what it is."""
    return feature.feature if isinstance(feature, _LISTS) else feature


def _image_column(name: str, data: datasets.Dataset) -> str:
    features = data.features.items()
    columns = [column for column, feature in features if isinstance(feature, datasets.Image)]
    columns = columns or [column for column, feature in features if isinstance(_single(feature), datasets.Image)]
    if usual := [column for column in ("image", "images") if column in columns]:
        return usual[0]
    if len(columns) == 1:
        return columns[0]
    found = ", ".join(data.column_names)
    if columns:
        raise DataError(
            f"{name}: has several image columns ({', '.join(columns)}) and none called image or images: {_CURE}"
        )
    raise DataError(f"{name}: has no image column (columns found: {found}): {_CURE}")
