"""What a visitor uploads, unpacked into a folder of their own: nothing lands outside, and nothing is without bounds."""

from __future__ import annotations

import lzma
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from mmguard.errors import DataError

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
TEXTS = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".caption")
"""Pictures in files of their own, and texts. Parquet and WebDataset are left to the command line: their pictures would
be unpacked into a cache that outlives the session."""

_IGNORED = ("__MACOSX", "Thumbs.db", "desktop.ini")
_DEEPEST = 16
_CHUNK = 1 << 20
STORED = re.compile(r"[0-9a-f]{64}")
"""What the folder of an upload is called."""


@dataclass(frozen=True)
class Limits:
    """How much one upload may hold."""

    files: int = 5_000
    file_bytes: int = 64 << 20
    total_bytes: int = 1 << 30


LIMITS = Limits()


@dataclass(frozen=True)
class Unpacked:
    """A dataset that came in."""

    folder: Path
    ignored: tuple[str, ...]
    """Files that are neither pictures nor texts, and were not taken."""


def stored(sent: Any, store: Path) -> list[tuple[str, Path]]:
    """The uploaded files that a browser names: each one's path on the visitor's disk, and where the server put it.

    Args:
        sent: what the browser says, a list of such pairs.
        store: the server's folder, where uploads lie as SECRET/NUMBER.

    Raises:
        DataError: it says something else, or names a file that is no upload.
    """
    files: list[tuple[str, Path]] = []
    for entry in sent if isinstance(sent, list) else [None]:
        if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry)):
            raise DataError("the upload was not understood: load the page again")
        name, path = entry[0], Path(entry[1])
        if path.parent.parent != store or not STORED.fullmatch(path.parent.name) or path.is_symlink():
            raise DataError(f"{name}: was not uploaded here: choose it again")
        files.append((name, path))
    return files


def discard(sent: Any, store: Path) -> None:
    """Deletes uploaded files, where there still are any.

    Args:
        sent: as for `stored`; of what is refused there, nothing is deleted.
        store: the server's folder.
    """
    with suppress(DataError):
        for folder in {path.parent for _, path in stored(sent, store)}:
            shutil.rmtree(folder, ignore_errors=True)


def unpack(files: Sequence[tuple[str, Path]], into: Path, limits: Limits = LIMITS) -> Unpacked:
    """Copies uploaded files, or the content of one zip file, into a new folder.

    Args:
        files: relative path on the visitor's disk, and the file.
        into: folder to make; gone again if anything is refused.
        limits: how much is taken.

    Raises:
        DataError: a path that would leave the folder, a link, a broken or encrypted zip file, too much, or nothing.
    """
    taken = _Taken(into, limits)
    try:
        if len(files) == 1 and files[0][0].lower().endswith(".zip"):
            _unzip(files[0][1], taken)
        else:
            for name, path in files:
                with path.open("rb") as stream:
                    taken.take(name, stream)
        if not taken.names:
            kinds = ", ".join((*PICTURES, *TEXTS))
            raise DataError(f"there is nothing in it that is understood: give a folder or a zip file with {kinds}")
    except (OSError, ValueError) as error:
        shutil.rmtree(into, ignore_errors=True)
        raise DataError(f"the upload cannot be unpacked ({error}): choose it again") from error
    except BaseException:
        shutil.rmtree(into, ignore_errors=True)
        raise
    return Unpacked(_only_folder(into), tuple(taken.ignored))


class _Taken:
    """The files that were written so far."""

    def __init__(self, into: Path, limits: Limits) -> None:
        self.names: set[str] = set()
        self.ignored: list[str] = []
        self._bytes = 0
        self._into, self.limits = into, limits
        into.mkdir(parents=True)

    def take(self, name: str, stream: IO[bytes]) -> None:
        """Writes one file, or ignores it if it is of no use."""
        parts = _parts(name)
        hidden = any(part.startswith(".") or part in _IGNORED for part in parts)
        if hidden or Path(parts[-1]).suffix.lower() not in (*PICTURES, *TEXTS):
            self.ignored.append(name)
            return
        path = self._into.joinpath(*parts)
        # What differs in case only would be one file on some disks.
        key = "/".join(parts).casefold()
        if key in self.names:
            raise DataError(f"{name}: is there twice: rename one of them")
        if len(self.names) == self.limits.files:
            raise DataError(
                f"has more than {self.limits.files:,} files: give fewer, or use `mmguard protect` on the command line"
            )
        self.names.add(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            written = 0
            while chunk := stream.read(_CHUNK):
                written += len(chunk)
                self._bytes += len(chunk)
                if written > self.limits.file_bytes:
                    raise DataError(f"{name}: is larger than {_megabytes(self.limits.file_bytes)}: leave it out")
                if self._bytes > self.limits.total_bytes:
                    raise _too_large(self.limits)
                file.write(chunk)


def _parts(name: str) -> list[str]:
    """A relative path, in either system's spelling, as names that stay where they are put."""
    parts = [part for part in re.split(r"[\\/]", name) if part not in ("", ".")]
    absolute = name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name)
    if absolute or ".." in parts or "\0" in name:
        raise DataError(f"{name!r}: leaves the folder: pack the folder itself, with relative paths")
    if not parts or len(parts) > _DEEPEST:
        raise DataError(f"{name!r}: is no path of at most {_DEEPEST} folders: move the file up")
    return parts


def _unzip(path: Path, taken: _Taken) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            # What the file says of itself; what comes out of it is counted, too.
            if sum(entry.file_size for entry in entries) > taken.limits.total_bytes:
                raise _too_large(taken.limits)
            for entry in entries:
                kind = stat.S_IFMT(entry.external_attr >> 16)
                if kind not in (0, stat.S_IFREG):
                    raise DataError(f"{entry.filename}: is a link, not a file: pack the file that it leads to")
                if entry.flag_bits & 1:
                    raise DataError(f"{entry.filename}: is encrypted: pack it without a password")
                with archive.open(entry) as stream:
                    taken.take(entry.filename, stream)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"the zip file cannot be read ({error}): pack it again") from error
    # Each method of compression has its own exceptions for broken data.
    except (zlib.error, lzma.LZMAError) as error:
        raise DataError(f"the zip file is damaged ({error}): pack it again") from error


def _too_large(limits: Limits) -> DataError:
    return DataError(
        f"holds more than {_megabytes(limits.total_bytes)}: give less, or use `mmguard protect` on the command line"
    )


def _megabytes(size: int) -> str:
    return f"{size >> 20:,} MB"


def _only_folder(folder: Path) -> Path:
    """The folder itself, or the one that is all it holds, as a packed folder does."""
    while len(inside := list(folder.iterdir())) == 1 and inside[0].is_dir():
        folder = inside[0]
    return folder
