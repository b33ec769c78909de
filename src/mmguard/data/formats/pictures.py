"""A folder of pictures, each with a caption in a `.txt` (or `.caption`) of the same name, as LoRA trainers have it.

Letter case makes no difference, and the name may have the picture's suffix (`cup.jpg.txt`).

A picture may also come without a text. Then there is none in the release either: it is protected against the captions
that models give it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from mmguard.data.formats.base import Format, Released, anywhere, is_hidden, is_object, suffixed, target
from mmguard.data.sources import Row, Source, read_bytes, read_text
from mmguard.errors import DataError
from mmguard.types import Dataset, Rejection

_PICTURES = (
    ".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".jp2", ".j2k", ".ppm", ".pgm",
    ".pbm", ".pnm",
)  # fmt: skip
_RAW = (".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".pef", ".raf", ".raw", ".rw2", ".srw")
_UNREAD = {
    **dict.fromkeys((".heic", ".heif"), "a HEIC photo"),
    **dict.fromkeys(_RAW, "a camera's raw data"),
    **dict.fromkeys((".dcm", ".dicom"), "a DICOM image"),
    **dict.fromkeys((".eps", ".exr", ".hdr", ".jxl", ".psd", ".svg", ".tga"), "of a format that is not read"),
}
"""Pictures that are not read, and what they are: an owner should know that they are left out."""
_SIDECARS = (".txt", ".caption")


def read(folder: Path, files: Sequence[Path]) -> Source:
    """A row a picture, by path: `file_name`, and `caption` where there is one."""
    texts = _Sidecars(anywhere(suffixed(*_SIDECARS))(folder))
    found = {picture: texts.of(picture) for picture in files}
    rows = [(picture.relative_to(folder).as_posix(), _row(folder, picture, text)) for picture, text in found.items()]
    used = tuple(dict.fromkeys(text for text in found.values() if text))
    return Source(str(folder), folder, "file_name", rows, (), "pictures", used, wordless=True)


def write(dataset: Dataset, released: Sequence[Released], out: Path) -> None:
    """The captions' files, byte for byte, each under the name of its released picture."""
    texts = _Sidecars(dataset.files)
    for one in released:
        picture = dataset.root / one.place
        if text := texts.of(picture):
            behind = text.stem.casefold() == picture.name.casefold()
            name = f"{one.image.name if behind else one.image.stem}{text.suffix}"
            target(dataset, text, out).with_name(name).write_bytes(text.read_bytes())


class _Sidecars:
    """The captions' files of a folder: `NAME.txt` or `NAME.EXT.txt`, in whatever letter case if none has the same."""

    def __init__(self, files: Iterable[Path]) -> None:
        found = [path for path in sorted(files) if path.is_file()]
        self._exact = {path.with_suffix(path.suffix.lower()): path for path in found}
        self._alike = {_folded(path): path for path in reversed(found)}

    def of(self, picture: Path) -> Path | None:
        """The file that belongs to a picture."""
        names = [picture.with_name(name + suffix) for name in (picture.stem, picture.name) for suffix in _SIDECARS]
        exact = (self._exact.get(name) for name in names)
        alike = (self._alike.get(_folded(name)) for name in names)
        return next((path for path in (*exact, *alike) if path), None)


def describes_picture(file: Path) -> bool:
    """Whether a file is one JSON object that is named after a picture beside it, as exports of photo libraries are:
    `cup.json`, `cup.jpg.json`, `cup.jpg.supplemental-metadata.json`.

    Raises:
        DataError: it has such a name, and cannot be read.
    """
    *parts, suffix = file.name.split(".")
    if suffix.lower() != "json":
        return False
    begins = [".".join(parts[: number + 1]) for number in range(len(parts))]
    named = any(
        file.with_name(name).is_file()
        for begin in begins
        for name in (begin, *(begin + other for suffix in _PICTURES for other in (suffix, suffix.upper())))
        if Path(name).suffix.lower() in _PICTURES
    )
    return named and is_object(read_bytes(file))


def _folded(path: Path) -> Path:
    return path.with_name(path.name.casefold())


def _row(folder: Path, picture: Path, sidecar: Path | None) -> Row | Rejection:
    row = {"file_name": picture.relative_to(folder).as_posix()}
    if what := _UNREAD.get(picture.suffix.lower()):
        return Rejection(row["file_name"], f"is {what}: export it as JPEG or PNG")
    try:
        return {**row, "caption": read_text(sidecar).strip()} if sidecar else row
    except DataError as error:
        return Rejection(row["file_name"], str(error))


def _find(folder: Path) -> list[Path]:
    found = anywhere(suffixed(*_PICTURES, *_UNREAD))(folder)
    return [path for path in found if not is_hidden(path, folder)]


FORMAT = Format(
    name="pictures",
    described="a folder of pictures, with captions in .txt files beside them or without any text",
    find=_find,
    accepts=lambda path: False,
    read=read,
    write=write,
    loads=None,
    sharded=True,
)
