"""Datasets behind a URL that fsspec understands: copied once into the cache, then read like any other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from huggingface_hub import is_offline_mode

from mmguard.data.cache import cached
from mmguard.data.formats.contained import is_safe
from mmguard.errors import DataError
from mmguard.runtime.provenance import digest

_ALONE = (".parquet", ".tar", ".tgz", ".gz")
"""Suffixes of files that have their pictures inside; with any other file its whole folder is copied."""
_HERE = ("file://", "local://", "memory://")
_STATES = ("size", "mtime", "LastModified", "last_modified", "updated", "created", "ETag", "etag", "md5Hash", "blob_id")
"""What file systems tell of a file that changes when the file does."""


def is_url(source: str) -> bool:
    """Whether a dataset source is a URL such as `s3://bucket/folder`."""
    return "://" in source


def local_copy(url: str) -> Path:
    """The dataset of a URL on disk: a folder, or a data file in its folder.

    What was copied is copied again only if a file there was added, removed or changed.

    Args:
        url: of a folder or data file, in any file system that fsspec knows (`s3://`, `gs://`, `hf://`, `file://`…).
            Credentials are those that its package finds.

    Raises:
        DataError: no such file system or place, it cannot be reached, the copy cannot be written, or the hub's client
            is offline (`--offline`, or `HF_HUB_OFFLINE`), which is taken to mean every network.
    """
    if is_offline_mode() and not url.startswith(_HERE):
        raise DataError(f"{url}: is not on this machine, and networks are excluded: give a local copy, or go online")
    try:
        system, path = fsspec.url_to_fs(url)
        alone = path.lower().endswith(_ALONE)
        is_file = system.isfile(path)
        folder = path if alone or not is_file else system._parent(path)
        found = {folder: system.info(path)} if alone and is_file else system.find(folder, detail=True)
        files = {name: entry for name, entry in found.items() if not _is_hidden(_inside(name, folder))}
    except ImportError as error:
        raise DataError(f"{url}: {error}: `pip install` that package") from error
    # Every file system has its own errors for networks, permissions and names.
    except Exception as error:
        raise DataError(f"{url}: cannot be reached ({error}): correct the URL, or give a local copy") from error
    if bad := next((name for name in files if not is_safe(_inside(name, folder))), None):
        raise DataError(f"{url}: the name {bad} cannot be a file's here: rename it")
    if not files:
        raise DataError(f"{url}: no such file or folder, or an empty one: correct the URL")

    def fill(target: Path) -> None:
        for name in files:
            place = target / _inside(name, folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                system.get_file(name, str(place))
            except Exception as error:  # as above
                raise DataError(f"{url}: {name} cannot be copied ({error}): run again") from error

    state = [url.rsplit("/", 1)[0] if is_file else url, {name: _state(entry) for name, entry in sorted(files.items())}]
    copied = cached(f"remote/{digest(state)[:20]}/{_name(folder)}", fill)
    return copied / PurePosixPath(path).name if is_file else copied


def _inside(name: str, folder: str) -> str:
    """The path of a file within the copy."""
    return name.removeprefix(folder).strip("/") or PurePosixPath(name).name


def _state(entry: Mapping[str, Any]) -> dict[str, str]:
    return {field: str(entry[field]) for field in _STATES if entry.get(field) is not None}


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") and part != ".." for part in PurePosixPath(path).parts)


def _name(folder: str) -> str:
    return PurePosixPath(folder).name or "data"
