"""Malformed datasets: what can be wrong with a picture, a row and a whole file, in every format.

Each dataset has two good samples, and a bad one before them whose text says `unwanted`.
"""

from __future__ import annotations

import csv
import io
import json
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

BAD = "bad.png"
GOOD = ("good 1.png", "good 2.png")
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One malformed dataset."""

    name: str
    build: Callable[[Path], None]
    """Writes it into an empty folder."""
    says: str
    """What the message must say, as a regular expression."""


# Pictures


def picture(seed: int, kind: str = "PNG", size: tuple[int, int] = (8, 6), **options: Any) -> bytes:
    """A picture file with noise that depends on the seed."""
    noise = zlib.crc32(bytes([seed])).to_bytes(4, "big")
    pixels = bytes((noise[k % 4] + 37 * k) % 256 for k in range(3 * size[0] * size[1]))
    return saved(Image.frombytes("RGB", size, pixels), kind, **options)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, data: bytes = b"\0" * 64, depth: int = 8) -> bytes:
    """A PNG file that claims a size, whatever its pixels are."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def bmp(width: int, height: int) -> bytes:
    return (
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 70, 0, 0, 54, 40, width, height, 1, 24, 0, 16, 1, 1, 0, 0) + bytes(16)
    )


def gif(width: int, height: int) -> bytes:
    return (
        b"GIF89a"
        + struct.pack("<HHBBB", width, height, 0, 0, 0)
        + b","
        + bytes(4)
        + struct.pack("<HHB", width, height, 0)
        + b"\x08\x01\0\0;"
    )


def animated(kind: str) -> bytes:
    first, *rest = (Image.new("RGB", (8, 6), colour) for colour in ("red", "green", "blue"))
    return saved(first, kind, save_all=True, append_images=rest)


def zipped(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("word/document.xml", content)
    return buffer.getvalue()


_PNG, _JPEG = picture(9, size=(40, 30)), picture(9, "JPEG", (64, 64))
_DECODE, _FRAMES, _LARGE = (
    r"cannot be decoded .*: replace the file",
    r"holds 3 frames or pages",
    r"scale the image down",
)

PICTURES: Mapping[str, tuple[bytes, str]] = {
    "zero bytes": (b"", _DECODE),
    "one byte": (b"\x89", _DECODE),
    "zeros": (bytes(500), _DECODE),
    "noise": (picture(3, "BMP")[54:], _DECODE),
    "text": (b"This is no picture at all.\n", _DECODE),
    "page of an error": (b"<!DOCTYPE html><html><title>404 Not Found</title></html>", _DECODE),
    "pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0a1b\nsize 12345\n", _DECODE),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="6"/>', _DECODE),
    "PDF": (b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF\n", _DECODE),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 6\n%%EndComments\nshowpage\n%%EOF\n", _DECODE),
    "ZIP": (zipped(b"<w/>"), _DECODE),
    "video": (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(64), _DECODE),
    "program": (b"\x7fELF\2\1\1" + bytes(60), _DECODE),
    "icon": (saved(Image.new("RGB", (16, 16), "red"), "ICO"), _DECODE),
    "PNG, half": (_PNG[: len(_PNG) // 2], _DECODE),
    "PNG, head alone": (_PNG[:33], _DECODE),
    "PNG in a text transfer": (_PNG.replace(b"\r\n", b"\n"), _DECODE),
    "PNG with a wrong checksum": (_PNG[:29] + b"\0\0\0\0" + _PNG[33:], _DECODE),
    "PNG without width": (png(0, 6), _DECODE),
    "PNG of 5 bits": (png(8, 6, depth=5), _DECODE),
    "PNG without enough pixels": (png(800, 600), _DECODE),
    "PNG of 10 gigapixels": (png(100_000, 100_000), _LARGE),
    "PNG a little too large": (png(10_000, 10_000), _LARGE),
    "PNG with a text that grows": (png(8, 6, chunk(b"zTXt", b"c\0\0" + zlib.compress(bytes(2**22)))), _DECODE),
    "PNG, animated": (animated("PNG"), _FRAMES),
    "JPEG, half": (_JPEG[: len(_JPEG) // 2], _DECODE),
    "JPEG, head alone": (_JPEG[:20], _DECODE),
    "JPEG, start and end": (b"\xff\xd8\xff\xd9", _DECODE),
    "GIF, animated": (animated("GIF"), _FRAMES),
    "GIF, half": (picture(9, "GIF", (64, 64))[:900], _DECODE),
    "GIF of 4 gigapixels": (gif(65535, 65535), _LARGE),
    "WebP, animated": (animated("WEBP"), _FRAMES),
    "WebP, half": (picture(9, "WEBP", (64, 64))[:200], _DECODE),
    "BMP, half": (picture(9, "BMP")[:100], _DECODE),
    "BMP of 4 gigapixels": (bmp(65535, 65535), _LARGE),
    "TIFF of three pages": (animated("TIFF"), _FRAMES),
    "TIFF, half": (picture(9, "TIFF", (64, 64))[:400], _DECODE),
    "TIFF of unknown range": (saved(Image.new("F", (8, 6), 0.5), "TIFF"), "floating-point values of unknown range"),
    "TIFF beyond 16 bits": (saved(Image.new("I", (8, 6), 70_000), "TIFF"), "beyond 16 bits of unknown range"),
    "PPM without pixels": (b"P6\n8 6\n255\n", _DECODE),
}
"""Content of a picture file, and what is said of it."""


# Formats: each writes pictures by name, and what is said of them


def text_of(name: str) -> Row:
    word = "unwanted" if name == BAD else "good"
    return {"id": f"id of {name}", "question": f"is the {word} one here?", "answer": "yes"}


def files(root: Path, pictures: Mapping[str, bytes], folder: str = "images") -> None:
    for name, content in pictures.items():
        (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
        (root / folder / name).write_bytes(content)


def lines(rows: Sequence[Any]) -> bytes:
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


def image_folder(root: Path, pictures: Mapping[str, bytes]) -> None:
    files(root, pictures)
    rows = [{"file_name": f"images/{name}", **text_of(name)} for name in pictures]
    (root / "metadata.jsonl").write_bytes(lines(rows))


def talk(name: str) -> Row:
    text = text_of(name)
    turns = [{"from": "human", "value": f"<image>\n{text['question']}"}, {"from": "gpt", "value": text["answer"]}]
    return {"id": text["id"], "image": name, "conversations": turns}


def chat_json(root: Path, pictures: Mapping[str, bytes]) -> None:
    files(root, pictures)
    (root / "chat.json").write_text(json.dumps([talk(name) for name in pictures]))


def chat_lines(root: Path, pictures: Mapping[str, bytes]) -> None:
    files(root, pictures)
    (root / "chat.jsonl").write_bytes(lines([talk(name) for name in pictures]))


def table(root: Path, pictures: Mapping[str, bytes], name: str = "table.csv") -> None:
    files(root, pictures)
    write_table(root / name, [{"image": picture, **text_of(picture)} for picture in pictures])


def write_table(file: Path, rows: Sequence[Row]) -> None:
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter="\t" if file.suffix == ".tsv" else ",")
        writer.writeheader()
        for row in rows:
            writer.writerow({name: json.dumps(cell) if isinstance(cell, list) else cell for name, cell in row.items()})


def coco_of(pictures: Mapping[str, bytes]) -> dict[str, list[Any]]:
    images = [{"id": number, "file_name": name} for number, name in enumerate(pictures)]
    captions = [f"{'an unwanted' if name == BAD else 'a good'} one" for name in pictures]
    return {
        "images": images,
        "annotations": [{"id": 70 + n, "image_id": n, "caption": caption} for n, caption in enumerate(captions)],
    }


def coco(root: Path, pictures: Mapping[str, bytes]) -> None:
    files(root, pictures)
    (root / "captions.json").write_text(json.dumps(coco_of(pictures)))


STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def write_parquet(file: Path, columns: Mapping[str, pa.Array]) -> None:
    pq.write_table(pa.table(dict(columns)), file, compression="none")


def parquet_columns(pictures: Mapping[str, bytes]) -> dict[str, pa.Array]:
    rows = [text_of(name) for name in pictures]
    cells = [{"bytes": content, "path": name} for name, content in pictures.items()]
    return {"image": pa.array(cells, STRUCT), **{key: pa.array([row[key] for row in rows]) for key in rows[0]}}


def parquet(root: Path, pictures: Mapping[str, bytes]) -> None:
    write_parquet(root / "data.parquet", parquet_columns(pictures))


def write_tar(file: Path, members: Sequence[tuple[str | tarfile.TarInfo, bytes]]) -> None:
    with tarfile.open(file, "w") as tar:
        for name, content in members:
            member = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def members_of(name: str, content: bytes) -> list[tuple[str | tarfile.TarInfo, bytes]]:
    return [(name, content), (f"{Path(name).stem}.json", json.dumps(text_of(name)).encode())]


def webdataset(root: Path, pictures: Mapping[str, bytes]) -> None:
    write_tar(root / "shard.tar", [member for one in pictures.items() for member in members_of(*one)])


def captioned(root: Path, pictures: Mapping[str, bytes]) -> None:
    files(root, pictures, folder="")
    for name in pictures:
        (root / name).with_suffix(".txt").write_text("an unwanted one" if name == BAD else "a good one")


FORMATS: Mapping[str, Callable[[Path, Mapping[str, bytes]], None]] = {
    "image folder": image_folder,
    "chat JSON": chat_json,
    "chat JSON lines": chat_lines,
    "CSV": table,
    "TSV": partial(table, name="table.tsv"),
    "COCO": coco,
    "Parquet": parquet,
    "WebDataset": webdataset,
    "captions in files": captioned,
}

GOOD_PICTURES = {name: picture(number) for number, name in enumerate(GOOD)}


def bad_pictures() -> list[Case]:
    """Every bad picture in every format."""
    return [
        Case(f"{kind}: {name}", partial(write, pictures={BAD: content, **GOOD_PICTURES}), says)
        for kind, write in FORMATS.items()
        for name, (content, says) in PICTURES.items()
    ]


# Rows


def strange_places(root: Path) -> None:
    """What a row may name and must not get: a picture outside, folders, loops, pipes."""
    (root.parent / "outside.png").write_bytes(picture(77))
    places = root / "images"
    (places / "loop.png").symlink_to("loop.png")
    (places / "circle").symlink_to("../images/circle")
    (places / "dangling.png").symlink_to("nowhere at all.png")
    (places / "folder.png").mkdir()
    os.mkfifo(places / "pipe.png")
    (places / f"{'n' * 247}.png").write_bytes(picture(78))


_ELSEWHERE, _OUTSIDE, _NAMELESS = "is not in .*: correct the path", "leaves the dataset's folder", "names no image in"
_ENCODED = "data:image/png;base64,iVBORw0KGgo="
_JPEG_TEXT = "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgGBgcGBQgHBwcJCQgKDBQNDAsLDBkSEw8UHRofHh0a"

BAD_PATHS: Mapping[str, tuple[str, str]] = {
    "no such picture": ("nowhere.png", _ELSEWHERE),
    "an absolute path": ("/etc/unwanted.png", "is absolute: give it relative"),
    "a path of Windows": ("C:\\unwanted.png", "is absolute"),
    "a path of a network": ("\\\\server\\unwanted.png", "is absolute"),
    "the folder above": ("../outside.png", _OUTSIDE),
    "a folder above, in between": ("images/../../outside.png", _OUTSIDE),
    "the folder above, as Windows has it": ("..\\outside.png", _OUTSIDE),
    "the folder above, twice": ("../../outside.png", _OUTSIDE),
    "the folder above, as URLs have it": ("%2e%2e/outside.png", _ELSEWHERE),
    "a NUL": ("bad\0.png", _ELSEWHERE),
    "a name of 5000 bytes": ("x" * 5000, _ELSEWHERE),
    "a name of 251 bytes": (f"images/{'n' * 247}.png", "is longer than 240 bytes: rename it"),
    "a path of 200 kilobytes": ("x/" * 100_000, _ELSEWHERE),
    "a URL": ("https://example.org/unwanted.png", _ELSEWHERE),
    "a file URL": ("file:///etc/hostname", "is not in|is absolute"),
    "a data URL": (_ENCODED, _ELSEWHERE),
    "a folder": ("images", _ELSEWHERE),
    "a folder with a suffix": ("images/folder.png", _ELSEWHERE),
    "the dataset itself": (".", _ELSEWHERE),
    "a loop": ("images/loop.png", _ELSEWHERE),
    "a path through a loop": ("images/circle/bad.png", _ELSEWHERE),
    "a dangling link": ("images/dangling.png", _ELSEWHERE),
    "a pipe": ("images/pipe.png", _ELSEWHERE),
    "a device": ("images/../dev/null", _ELSEWHERE),
    "a home folder": ("~/unwanted.png", _ELSEWHERE),
    "a variable": ("$HOME/unwanted.png", _ELSEWHERE),
    "a pattern": ("images/*.png", _ELSEWHERE),
    "a line break": ("no\nwhere.png", _ELSEWHERE),
    "a change of direction": ("images/\u202egnp.dab", _ELSEWHERE),
    "a lone surrogate": ("images/\ud83d.png", _ELSEWHERE),
    "an escape of terminals": ("\x1b[2J\x1b[31m.png", _ELSEWHERE),
}
"""Paths, and what is said of them; JSON can hold them all."""

JSON_ONLY_PATHS: Mapping[str, tuple[Any, str]] = {
    "no path": (None, _NAMELESS),
    "an empty path": ("", _NAMELESS),
    "a blank path": ("  ", _NAMELESS),
    "a number for a path": (7, _NAMELESS),
    "an object for a path": ({"path": BAD}, _NAMELESS),
    "two paths": (["a.png", "b.png"], "has 2 images"),
    "an empty list of paths": ([], _NAMELESS),
    "a list of no path": ([None], _NAMELESS),
}

TEXTS: Mapping[str, tuple[Row, str]] = {
    "no question": ({"question": None}, "has no text that is understood"),
    "an empty question": ({"question": ""}, "`question` is empty: fill it in"),
    "a blank question": ({"question": " \t\n"}, "`question` is empty"),
    "a list for a question": ({"question": ["unwanted"]}, "`question` is list, not text"),
    "an object for a question": ({"question": {"text": "unwanted"}}, "`question` is dict, not text"),
    "a truth value for a question": ({"question": True}, "`question` is bool, not text"),
    "a question of 100 kilobytes": ({"question": "unwanted " * 12_000}, "has 108000 characters, at most 100000"),
    "a picture in the question": ({"question": f'what is <img src="{_ENCODED}">?'}, "`question` holds a picture"),
    "half a character": ({"question": "unwanted \ud83d?"}, "`question` holds half a character"),
    "half a character in the answer": ({"answer": "\udcff"}, "`answer` holds half a character"),
    "half a character in the id": ({"id": "\ud83d"}, "`id` .* is neither text"),
    "no answer": ({"answer": None}, "has no `answer`"),
    "an empty answer": ({"answer": ""}, "`answer` is empty"),
    "a list for an answer": ({"answer": ["unwanted"]}, "`answer` is list, not text"),
    "a truth value for an answer": ({"answer": False}, "`answer` is bool, not text"),
    "an answer of 1 megabyte": ({"answer": "unwanted" * 125_000}, "`answer` has 1000000 characters"),
    "a text for answers": ({"answers": "yes"}, "`answers` is str: give a list"),
    "an empty one of the answers": ({"answers": ["yes", ""]}, "an entry of `answers` is empty"),
    "null among the answers": ({"answers": ["yes", None]}, "an entry of `answers` is NoneType"),
    "a text for options": ({"options": "yes or no"}, "`options` is str: give a list"),
    "options out of order": ({"options": {"B": "yes", "A": "no"}}, "`options` has the keys B, A: use A, B, C"),
    "27 options": ({"options": ["yes", *map(str, range(26))]}, "has 27 options: at most 26"),
    "an empty option": ({"options": ["yes", ""]}, "an option is empty"),
    "no such option": ({"options": ["left", "right"]}, "is neither the letter nor the text of exactly one option"),
    "the same option twice": ({"options": ["yes", "yes"]}, "exactly one option: correct it"),
    "an unknown metric": ({"metric": "bleu"}, "`metric` 'bleu' is unknown: choose from"),
    "a list for a metric": ({"metric": ["exact"]}, "`metric` .* is unknown"),
    "an empty id": ({"id": ""}, "`id` '' is neither text nor a whole number"),
    "a truth value for an id": ({"id": True}, "`id` True is neither"),
    "a list for an id": ({"id": [1]}, "`id` .* is neither"),
    "a number for a split": ({"split": 3}, "`split` 3 is not text"),
    "a picture as text": ({"thumbnail": _JPEG_TEXT}, "`thumbnail` holds a picture as text"),
    "a data URL in depth": ({"extra": {"previews": [_ENCODED]}}, "`extra` holds a picture as text"),
    "a video": ({"video": "unwanted.mp4"}, "has `video`: only one image"),
    "several files": ({"file_names": ["a.png", "b.png"]}, "has `file_names`: only one image"),
    "a blank answer": ({"answer": " \n"}, "`answer` is empty"),
}
"""Other fields of a row, and what is said of them."""

NUMBERS: Mapping[str, str] = {"NaN": "NaN", "infinity": "Infinity", "minus infinity": "-Infinity", "too large": "1e999"}


def rows_of(image_field: str, changed: Row) -> list[Row]:
    names = {BAD: {image_field: f"images/{BAD}"}, **{name: {image_field: f"images/{name}"} for name in GOOD}}
    first, *rest = ({**image, **text_of(name)} for name, image in names.items())
    return [{**first, **changed}, *rest]


ALL_PICTURES = {BAD: picture(5), **GOOD_PICTURES}


def strange_row(root: Path, file: str, image_field: str, changed: Row) -> None:
    files(root, ALL_PICTURES)
    strange_places(root)
    rows = rows_of(image_field, changed)
    if file.endswith(".json"):
        (root / file).write_text(json.dumps(rows))
    elif file.endswith(".jsonl"):
        (root / file).write_bytes(lines(rows))
    else:
        write_table(root / file, rows)


def bad_rows() -> list[Case]:
    """Bad paths, texts and numbers in formats whose rows lie in a text file."""
    found = []
    for kind, file, field in (
        ("image folder", "metadata.jsonl", "file_name"),
        ("chat JSON", "chat.json", "image"),
        ("chat JSON lines", "chat.jsonl", "image"),
    ):
        for name, (path, says) in {**BAD_PATHS, **JSON_ONLY_PATHS}.items():
            found.append(Case(f"{kind}: {name}", partial(_row_case, file, field, {field: path}), says))
        for name, (changed, says) in TEXTS.items():
            found.append(Case(f"{kind}: {name}", partial(_row_case, file, field, changed), says))
    for name, (path, says) in BAD_PATHS.items():
        if "\0" not in path and "\ud83d" not in path:
            found.append(Case(f"CSV: {name}", partial(_row_case, "table.csv", "image", {"image": path}), says))
    for name in ("no question", "no answer", "an unknown metric", "no such option", "a picture as text",
                 "a blank question", "a question of 100 kilobytes", "several files", "a video"):  # fmt: skip
        changed, says = TEXTS[name]
        found.append(Case(f"TSV: {name}", partial(_row_case, "table.tsv", "image", changed), says))
    return found


def _row_case(file: str, field: str, changed: Row, root: Path) -> None:
    strange_row(root, file, field, changed)


# Lines of JSON lines and entries of JSON lists

_NOT_JSON, _NO_OBJECT = r"not valid JSON .*: correct or remove the line", "is no JSON object: correct or remove it"
_FINITE = "holds NaN or an infinite number, which JSON does not have: put null"
_LINE = json.dumps({"file_name": f"images/{BAD}", **text_of(BAD)})

LINES: Mapping[str, tuple[bytes, str]] = {
    "words": (b"unwanted", _NOT_JSON),
    "half an object": (_LINE[:40].encode(), _NOT_JSON),
    "a comma at the end": (_LINE.replace("}", ",}").encode(), _NOT_JSON),
    "a comma behind the object": (_LINE.encode() + b",", _NOT_JSON),
    "single quotes": (_LINE.replace('"', "'").encode(), _NOT_JSON),
    "names without quotes": (b"{file_name: 'unwanted'}", _NOT_JSON),
    "two objects": (_LINE.encode() * 2, _NOT_JSON),
    "a comment": (b"// unwanted", _NOT_JSON),
    "a tab in a text": (_LINE.replace("unwanted", "un\twanted").encode(), _NOT_JSON),
    "a NUL": (b"\0" * 100, _NOT_JSON),
    "two byte order marks": (b"\xef\xbb\xbf" * 2 + _LINE.encode(), _NOT_JSON),
    "Latin-1": (_LINE.replace("unwanted", "unw\xe4nted").encode("latin-1"), "byte .* of the line is not UTF-8"),
    "half a character": (_LINE.encode() + "ß".encode()[:1], "byte .* of the line is not UTF-8"),
    "a coded surrogate": (_LINE.replace("unwanted", "un\udcffw").encode("utf-8", "surrogatepass"), "is not UTF-8"),
    "noise": (bytes(k for k in range(256) if k != 10), "is not UTF-8"),
    "compressed": (zlib.compress(_LINE.encode(), 0).replace(b"\n", b""), "is not UTF-8|not valid JSON"),
    "100,000 brackets": (b"[" * 100_000, _NOT_JSON),
    "100,000 objects": (b'{"a":' * 100_000, _NOT_JSON),
    "a number of 5000 digits": (b'{"n": ' + b"1" * 5000 + b"}", _NOT_JSON),
    "1 megabyte without sense": (b"unwanted" * 131_072, _NOT_JSON),
    "a number": (b"7", _NO_OBJECT),
    "a text": (b'"unwanted"', _NO_OBJECT),
    "null": (b"null", _NO_OBJECT),
    "a list": (b'["unwanted"]', _NO_OBJECT),
    "an empty object": (b"{}", _NAMELESS),
    "NaN alone": (b"NaN", _NO_OBJECT),
}

ENTRIES: Mapping[str, tuple[str, str]] = {
    "a number": ("7", _NO_OBJECT),
    "a text": ('"unwanted"', _NO_OBJECT),
    "null": ("null", _NO_OBJECT),
    "a list": ('[{"unwanted": 1}]', _NO_OBJECT),
    "an empty object": ("{}", _NAMELESS),
}


def strange_line(line: bytes, file: str, root: Path) -> None:
    files(root, ALL_PICTURES)
    write = {"metadata.jsonl": image_folder, "chat.jsonl": chat_lines}[file]
    write(root, ALL_PICTURES)
    _, *rest = (root / file).read_bytes().splitlines(keepends=True)
    (root / file).write_bytes(line + b"\n" + b"".join(rest))


def strange_entry(entry: str, root: Path) -> None:
    chat_json(root, ALL_PICTURES)
    _, *rest = json.loads((root / "chat.json").read_text())
    (root / "chat.json").write_text(f"[{entry}, {json.dumps(rest)[1:]}")


def with_number(number: str, field: str) -> str:
    image = {"file_name" if field == "file_name" else "image": f"images/{BAD}"}
    return json.dumps({**image, **text_of(BAD), "score": 0}).replace('"score": 0', f'"score": {number}')


def bad_lines() -> list[Case]:
    found = [
        Case(f"a line of {file}: {name}", partial(strange_line, line, file), says)
        for file in ("metadata.jsonl", "chat.jsonl")
        for name, (line, says) in LINES.items()
    ]
    found += [
        Case(f"an entry of chat.json: {name}", partial(strange_entry, entry), says)
        for name, (entry, says) in ENTRIES.items()
    ]
    for name, number in NUMBERS.items():
        for file, field in (("metadata.jsonl", "file_name"), ("chat.jsonl", "image")):
            line = with_number(number, field).encode()
            found.append(Case(f"a line of {file}: a score of {name}", partial(strange_line, line, file), _FINITE))
        found.append(
            Case(
                f"an entry of chat.json: a score of {name}",
                partial(strange_entry, with_number(number, "image")),
                _FINITE,
            )
        )
    return found


# Conversations


def said(*turns: tuple[Any, Any]) -> list[Row]:
    return [{"from": role, "value": text} for role, text in turns]


_HUMAN, _GPT = ("human", "<image>unwanted?"), ("gpt", "unwanted")
_PARTS = "message 0 has parts that are not understood"
CONVERSATIONS: Mapping[str, tuple[Any, str]] = {
    "nothing": ([], "holds no messages"),
    "a text": ("unwanted", "holds no messages"),
    "an object": ({"human": "unwanted"}, "holds no messages"),
    "a list of texts": (["unwanted"], "message 0 has the role None"),
    "null": ([None], "message 0 has the role None"),
    "an unknown role": (said(("robot", "unwanted"), _GPT), "has the role 'robot': use human and gpt"),
    "a number for a role": (said((7, "unwanted"), _GPT), "has the role 7"),
    "a list for a role": (said((["human"], "unwanted"), _GPT), "has the role"),
    "no text": (said(("human", None), _GPT), "message 0 has no text in `value`"),
    "no parts": (said(("human", []), _GPT), _PARTS),
    "a part without text": (said(("human", [{"type": "text"}]), _GPT), "message 0 has no text"),
    "two parts of text": (said(("human", [{"type": "text", "text": "unwanted"}] * 2), _GPT), _PARTS),
    "a part that is a text": (said(("human", ["unwanted"]), _GPT), _PARTS),
    "a part of a list for a type": (said(("human", [{"type": ["text"], "text": "unwanted"}]), _GPT), _PARTS),
    "an answer alone": (said(_GPT), "do not alternate"),
    "a question alone": (said(_HUMAN), "do not alternate"),
    "two questions": (said(_HUMAN, _HUMAN, _GPT), "several <image> tags|do not alternate"),
    "two answers": (said(_HUMAN, _GPT, _GPT), "do not alternate"),
    "an open end": (said(_HUMAN, _GPT, ("human", "unwanted?")), "do not alternate"),
    "two images": (said(("human", "<image><image>unwanted?"), _GPT), "several <image> tags"),
    "a video": (said(("human", "<video>unwanted?"), _GPT), "is about a video"),
    "an image and no question": (said(("human", "<image>"), _GPT), "the human's turn 0 is empty"),
    "an empty answer": (said(_HUMAN, ("gpt", "")), "the reply of turn 0 is empty"),
    "a system and no one else": (said(("system", "unwanted")), "do not alternate"),
}


def strange_talk(conversation: Any, field: str, root: Path) -> None:
    strange_row(root, "chat.json", "image", {"question": None, field: conversation})


# COCO


def strange_coco(root: Path, image: Any = None, caption: Any = None, more: Any = None) -> None:
    """With changes of the bad one's image entry and caption, or others in their place, and one more image entry."""
    files(root, ALL_PICTURES)
    content = coco_of(ALL_PICTURES)
    for place, change in (("images", image), ("annotations", caption)):
        if change is not None:
            content[place][0] = {**content[place][0], **change} if isinstance(change, dict) else change
    content["images"] += [more] if more is not None else []
    (root / "captions.json").write_text(json.dumps(content))


_NO_IMAGE = "no image has the id .*: correct its `image_id`"
COCO: Mapping[str, tuple[Row, str]] = {
    "a caption that is a text": ({"caption": "unwanted"}, _NO_OBJECT),
    "a caption that is null": ({"caption": 0}, _NO_OBJECT),
    "a caption that is a list": ({"caption": ["unwanted"]}, _NO_OBJECT),
    "no such image": ({"caption": {"image_id": 99}}, _NO_IMAGE),
    "no image": ({"caption": {"image_id": None}}, _NO_IMAGE),
    "a list for an image": ({"caption": {"image_id": [0]}}, _NO_IMAGE),
    "an object for an image": ({"caption": {"image_id": {}}}, _NO_IMAGE),
    "an image's number as text": ({"caption": {"image_id": "0"}}, _NO_IMAGE),
    "an image that is a text": ({"image": "unwanted"}, _NO_IMAGE),
    "an image that is a list": ({"image": [0]}, _NO_IMAGE),
    "an image with a list for an id": ({"image": {"id": [0]}}, _NO_IMAGE),
    "an image with an object for an id": ({"image": {"id": {"a": 1}}}, _NO_IMAGE),
    "an image without an id": ({"image": {"id": None}}, _NO_IMAGE),
    "an image's id twice": ({"more": {"id": 0, "file_name": GOOD[0]}}, "2 images have the id 0: give each its own"),
    "no file": ({"image": {"file_name": None}}, _NAMELESS),
    "a number for a file": ({"image": {"file_name": 7}}, _NAMELESS),
    "an empty caption": ({"caption": {"caption": ""}}, "`caption` is empty"),
    "a caption of 1 megabyte": ({"caption": {"caption": "unwanted" * 125_000}}, "`caption` has 1000000 characters"),
    "a list of captions": ({"caption": {"caption": ["unwanted"]}}, "`caption` is list, not text"),
    "no caption": ({"caption": {"caption": None}}, "has no text that is understood"),
    "a caption's id that is a list": ({"caption": {"id": [1]}}, "`id` .* is neither"),
    "NaN for a caption": ({"caption": {"caption": float("nan")}}, "`caption` is nan, which is no answer"),
    "a picture as text": ({"image": {"preview": _ENCODED}}, "`image` holds a picture as text"),
}


def bad_coco() -> list[Case]:
    found = [Case(f"COCO: {name}", partial(strange_coco, **change), says) for name, (change, says) in COCO.items()]
    return found + [Case(f"COCO: {name}", partial(_coco_path, path), says) for name, (path, says) in BAD_PATHS.items()]


def _coco_path(path: str, root: Path) -> None:
    strange_coco(root, image={"file_name": path})
    strange_places(root)


# Parquet


def strange_parquet(change: Row, root: Path) -> None:
    write_parquet(root / "data.parquet", {**parquet_columns(ALL_PICTURES), **change})


_STORED = [{"bytes": content, "path": name} for name, content in GOOD_PICTURES.items()]
_BINARY = [b"unwanted", b"x", b"y"]
PARQUET: Mapping[str, tuple[Row, str]] = {
    "no picture": ({"image": pa.array([None, *_STORED], STRUCT)}, _NAMELESS),
    "a picture without bytes": ({"image": pa.array([{"path": BAD}, *_STORED], STRUCT)}, _NAMELESS),
    "no question": ({"question": pa.array([None, "a good one?", "b?"])}, "has no text that is understood"),
    "an empty question": ({"question": pa.array(["", "a good one?", "b?"])}, "`question` is empty"),
    "no answer": ({"answer": pa.array([None, "x", "y"])}, "has no `answer`"),
    "NaN for an answer": ({"answer": pa.array([float("nan"), 1.0, 2.0])}, "`answer` is nan, which is no answer"),
    "infinity for an answer": ({"answer": pa.array([float("inf"), 1.0, 2.0])}, "`answer` is inf"),
    "an unknown metric": ({"metric": pa.array(["bleu", "exact", None])}, "`metric` 'bleu' is unknown"),
    "one option": ({"options": pa.array([["unwanted"], None, None])}, "exactly one option"),
    "a picture in a list": ({"views": pa.array([[picture(5)], [], None], pa.list_(pa.binary()))}, "second picture"),
    "a picture in a struct": ({"a": pa.array([{"x": picture(5)}, None, None])}, "second picture"),
    "a picture as text": ({"preview": pa.array([_ENCODED, None, None])}, "`preview` holds a picture as text"),
}


# WebDataset


def member(name: str, kind: bytes, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


_TEXT = json.dumps(text_of(BAD)).encode()
_MEMBERS: Mapping[str, tuple[list[tuple[str | tarfile.TarInfo, bytes]], str]] = {
    "no picture": ([("bad.json", _TEXT)], "has 0 pictures: only one image"),
    "two pictures": ([(BAD, picture(5)), ("bad.jpg", picture(6)), ("bad.json", _TEXT)], "has 2 pictures"),
    "one picture twice": ([(BAD, picture(5)), (BAD, picture(6)), ("bad.json", _TEXT)], "has 2 pictures"),
    "a mask": ([(BAD, picture(5)), ("bad.mask.png", picture(6)), ("bad.json", _TEXT)], "has 2 pictures"),
    "a picture otherwise": ([(BAD, picture(5)), ("bad.q", picture(6)), ("bad.json", _TEXT)], "its .q is a picture"),
    "a picture for a text": ([(BAD, picture(5)), ("bad.txt", picture(6))], "its .txt is a picture"),
    "no text": ([(BAD, picture(5))], "has no text that is understood"),
    "an empty text": ([(BAD, picture(5)), ("bad.txt", b"")], "`caption` is empty"),
    "a text in Latin-1": ([(BAD, picture(5)), ("bad.txt", b"unw\xe4nted")], "cannot be read .*: correct them"),
    "no JSON": ([(BAD, picture(5)), ("bad.json", b"unwanted")], "its texts cannot be read"),
    "half a JSON": ([(BAD, picture(5)), ("bad.json", _TEXT[:20])], "its texts cannot be read"),
    "a list of JSON": ([(BAD, picture(5)), ("bad.json", b"[1]")], "its .json holds no object"),
    "null for JSON": ([(BAD, picture(5)), ("bad.json", b"null")], "its .json holds no object"),
    "JSON in Latin-1": ([(BAD, picture(5)), ("bad.json", b'{"a": "\xe4"}')], "its texts cannot be read"),
    "100,000 brackets": ([(BAD, picture(5)), ("bad.json", b"[" * 100_000)], "its texts cannot be read"),
    "NaN": ([(BAD, picture(5)), ("bad.json", b'{"question": "unwanted?", "answer": NaN}')], "`answer` is nan"),
    "the folder above": ([("../bad.png", picture(5)), ("../bad.json", _TEXT)], "has 0 pictures|cannot be a file's"),
    "a folder above": ([("a/../../bad.png", picture(5)), ("a/../../bad.json", _TEXT)], "cannot be a file's: rename"),
    "an absolute path": ([("/tmp/bad.png", picture(5)), ("/tmp/bad.json", _TEXT)], "cannot be a file's: rename"),
    "a path of Windows": ([("a\\bad.png", picture(5)), ("a\\bad.json", _TEXT)], "cannot be a file's: rename"),
    "a name of 304 bytes": ([("n" * 300 + ".png", picture(5)), ("n" * 300 + ".json", _TEXT)], "cannot be a file's"),
    "a name of 251 bytes": ([("n" * 247 + ".png", picture(5)), ("n" * 247 + ".json", _TEXT)], "longer than 240 bytes"),
    "a file for a folder": (
        [("bad", b""), ("good 1.png/bad.png", picture(5)), ("good 1.png/bad.json", _TEXT)], "is not in",
    ),
    "a link": ([member(BAD, tarfile.SYMTYPE, "/etc/hostname"), ("bad.json", _TEXT)], "has 0 pictures"),
    "a hard link": ([member(BAD, tarfile.LNKTYPE, "good 1.png"), ("bad.json", _TEXT)], "has 0 pictures"),
    "a pipe": ([member(BAD, tarfile.FIFOTYPE), ("bad.json", _TEXT)], "has 0 pictures"),
    "a device": ([member(BAD, tarfile.CHRTYPE), ("bad.json", _TEXT)], "has 0 pictures"),
    "a folder": ([member(BAD, tarfile.DIRTYPE), ("bad.json", _TEXT)], "has 0 pictures"),
}  # fmt: skip


def strange_tar(members: list[tuple[str | tarfile.TarInfo, bytes]], root: Path) -> None:
    good = [one for pair in GOOD_PICTURES.items() for one in members_of(*pair)]
    write_tar(root / "shard.tar", [*good, *members])


# Pictures with captions in files

CAPTIONS: Mapping[str, tuple[bytes, str]] = {
    "no letters": (b"", "`caption` is empty"),
    "blanks": (b" \n\t\n", "`caption` is empty"),
    "Latin-1": (b"unw\xe4nted", r"bad\.txt: line 1: byte 3 is not UTF-8: save the file as UTF-8"),
    "UTF-16": ("unwanted".encode("utf-16"), "is not UTF-8"),
    "a picture": (picture(6), "is not UTF-8"),
    "a picture as text": (_JPEG_TEXT.encode(), "`caption` holds a picture as text"),
    "1 megabyte": (b"unwanted" * 125_000, "`caption` has 1000000 characters"),
}


def strange_caption(content: bytes, root: Path) -> None:
    captioned(root, ALL_PICTURES)
    (root / "bad.txt").write_bytes(content)


# Tables

_CELLS = "images/bad.png,id of bad.png,is the unwanted one here?,yes"
CELLS: Mapping[str, tuple[str, str]] = {
    "too few cells": ("images/bad.png,unwanted", r"table\.csv:2: has 2 cells, the first line 4: correct the line"),
    "too many cells": (f"{_CELLS},unwanted", "has 5 cells, the first line 4"),
    "one cell": ("unwanted", "has 1 cells"),
    "an empty path": (_CELLS.replace("images/bad.png", ""), _NAMELESS),
    "empty cells": (",,,", _NAMELESS),
    "an empty question": (_CELLS.replace("is the unwanted one here?", ""), "has no text that is understood"),
    "a blank question": (_CELLS.replace("is the unwanted one here?", "  "), "`question` is empty"),
    "another delimiter": (_CELLS.replace(",", ";"), "has 1 cells"),
    "tabs": (_CELLS.replace(",", "\t"), "has 1 cells"),
}


def strange_cells(line: str, root: Path) -> None:
    table(root, ALL_PICTURES)
    head, _, *rest = (root / "table.csv").read_text().splitlines()
    (root / "table.csv").write_text("\n".join([head, line, *rest]))


def quarantined() -> list[Case]:
    """Every dataset of which the bad sample must be left out, and the two good ones protected."""
    return [
        *bad_pictures(),
        *bad_rows(),
        *bad_lines(),
        *(
            Case(f"{field}: {name}", partial(strange_talk, talk, field), says)
            for field in ("conversations", "messages")
            for name, (talk, says) in CONVERSATIONS.items()
        ),
        *bad_coco(),
        *(Case(f"Parquet: {name}", partial(strange_parquet, change), says) for name, (change, says) in PARQUET.items()),
        *(Case(f"WebDataset: {name}", partial(strange_tar, parts), says) for name, (parts, says) in _MEMBERS.items()),
        *(Case(f"caption: {name}", partial(strange_caption, text), says) for name, (text, says) in CAPTIONS.items()),
        *(Case(f"table: {name}", partial(strange_cells, line), says) for name, (line, says) in CELLS.items()),
    ]


# Files that cannot be read at all


def whole(file: str, content: bytes | Callable[[bytes], bytes], root: Path) -> None:
    """A good dataset whose data file then gets another content."""
    write = {
        "metadata.jsonl": image_folder, "chat.json": chat_json, "chat.jsonl": chat_lines, "table.csv": table,
        "table.tsv": partial(table, name="table.tsv"), "captions.json": coco, "data.parquet": parquet,
        "shard.tar": webdataset,
    }[file]  # fmt: skip
    write(root, ALL_PICTURES)
    (root / file).write_bytes(content if isinstance(content, bytes) else content((root / file).read_bytes()))


def without(column: str) -> Callable[[bytes], bytes]:
    return lambda content: content.replace(column.encode(), b"unknown", 1)


def columns(change: Row, root: Path) -> None:
    chosen = {name: cells for name, cells in {**parquet_columns(ALL_PICTURES), **change}.items() if cells is not None}
    write_parquet(root / "data.parquet", chosen)


def flipped(place: int) -> Callable[[bytes], bytes]:
    return lambda content: content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :]


def cut(share: float) -> Callable[[bytes], bytes]:
    return lambda content: content[: int(len(content) * share)]


_PAGE = b"<!DOCTYPE html><html><title>404 Not Found</title></html>"
_JSON, _UTF8, _EMPTY = (
    r"not valid JSON \(.*\): correct the file",
    "line 1: byte 0 is not UTF-8: save the file",
    "is empty",
)
_TAR, _PARQUET = r"cannot be read as a tar file .*: replace the file", r"cannot be read as Parquet .*: replace the file"
_LISTS = "are not both lists: give COCO captions"

WHOLE: Mapping[str, Mapping[str, tuple[bytes | Callable[[bytes], bytes], str]]] = {
    "metadata.jsonl": {
        "zero bytes": (b"", _EMPTY),
        "empty lines": (b"\n \n\r\n", _EMPTY),
        "a byte order mark alone": (b"\xef\xbb\xbf", _EMPTY),
        "UTF-16": (lambda content: content.decode().encode("utf-16"), r"metadata\.jsonl:1: byte 0 of the line"),
        "a page of an error": (_PAGE, r"metadata\.jsonl:1: not valid JSON"),
        "a list": (lambda content: b"[" + content.replace(b"\n", b",\n") + b"]", "not valid JSON"),
        "old line ends": (lambda content: content.replace(b"\n", b"\r"), r"metadata\.jsonl:1: not valid JSON"),
        "a picture": (picture(5), "is not UTF-8"),
    },
    "chat.json": {
        "zero bytes": (b"", _JSON),
        "half": (cut(0.5), r"not valid JSON \(.*line 1 column"),
        "a comma too many": (lambda content: content[:-1] + b",]", _JSON),
        "a list not closed": (cut(0.999), _JSON),
        "objects in a row": (lambda content: content[1:-1], _JSON),
        "an object": (b'{"a": 1}', "holds no list but dict: give a list"),
        "a text": (b'"unwanted"', "holds no list but str"),
        "a number": (b"7", "holds no list but int"),
        "null": (b"null", "holds no list but NoneType"),
        "an empty list": (b"[]", _EMPTY),
        "100,000 brackets": (b"[" * 100_000, _JSON),
        "a number of 5000 digits": (b"[" + b"1" * 5000 + b"]", _JSON),
        "UTF-16": (lambda content: content.decode().encode("utf-16"), _UTF8),
        "Latin-1 in line 3": (b'[\n\n"\xe4"]', r"chat\.json: line 3: byte 4 is not UTF-8"),
        "a page of an error": (_PAGE, _JSON),
        "a picture": (picture(5), _UTF8),
        "compressed": (zlib.compress, "is not UTF-8"),
    },
    "chat.jsonl": {
        "zero bytes": (b"", _EMPTY),
        "one list": (lambda content: b"[" + content.replace(b"\n", b", ")[:-2] + b"]", "is no JSON object"),
        "a page of an error": (_PAGE, r"chat\.jsonl:1: not valid JSON"),
    },
    "table.csv": {
        "zero bytes": (b"", _EMPTY),
        "a head alone": (b"image,question,answer\n", _EMPTY),
        "no column of pictures": (without("image"), "no column names the images .*columns found: unknown, id"),
        "a column twice": (lambda content: content.replace(b"question", b"id", 1), "two columns have the same name"),
        "an open quote": (lambda content: content + b'"unwanted', r"table\.csv: line \d+: .*: correct the quotes"),
        "a quote within": (lambda content: content + b'"un"wanted,b,c,d', "correct the quotes there"),
        "UTF-16, as spreadsheets save it": (lambda content: content.decode().encode("utf-16"), _UTF8),
        "Latin-1 in line 5": (lambda content: content + b"\xe4", r"table\.csv: line 5: byte \d+ is not UTF-8"),
        "a workbook": (zipped(b"<sheet/>"), "is not UTF-8|no column names the images"),
        "a page of an error": (_PAGE, "no column names the images"),
        "zeros": (bytes(1000), "no column names the images|correct the quotes|line contains NUL"),
    },
    "table.tsv": {
        "zero bytes": (b"", _EMPTY),
        "commas": (lambda content: content.replace(b"\t", b","), "no column names the images"),
        "an open quote": (lambda content: content + b'"unwanted', "correct the quotes there"),
    },
    "captions.json": {
        "half": (cut(0.9), _JSON),
        "images in an object": (lambda content: content.replace(b'"images": [', b'"images": {}, "x": [', 1), _LISTS),
        "captions in an object": (
            lambda content: content.replace(b'"annotations": [', b'"annotations": {}, "x": [', 1), _LISTS,
        ),
        "no captions": (b'{"images": [], "annotations": [], "x": "caption", "caption": 1}', _EMPTY),
        "Latin-1": (lambda content: content.replace(b"unwanted", b"unw\xe4nted"), "line 1: byte .* is not UTF-8"),
    },
    "data.parquet": {
        "zero bytes": (b"", _PARQUET),
        "four bytes": (b"PAR1", _PARQUET),
        "half": (cut(0.5), _PARQUET),
        "a missing end": (cut(0.99), _PARQUET),
        "a damaged foot": (lambda content: content[:-300] + bytes(290) + content[-10:], _PARQUET),
        "a foot of 4 gigabytes": (lambda content: content[:-8] + b"\xff\xff\xff\xff" + content[-4:], _PARQUET),
        "another format": (zipped(b"<w/>"), _PARQUET),
        "a page of an error": (_PAGE, _PARQUET),
        "text": (b"image,caption\na.png,x\n", _PARQUET),
    },
    "shard.tar": {
        "zero bytes": (b"", _TAR),
        "noise": (picture(5) * 20, _TAR),
        "half": (cut(0.12), _TAR),
        "a damaged head": (flipped(148), _TAR),
        "a damaged head in the middle": (flipped(1024 + 148), _TAR),
        "another format": (zipped(b"<w/>") * 9, _TAR),
        "a page of an error": (_PAGE * 20, _TAR),
        "half of a compressed one": (lambda content: zlib.compress(content, wbits=31)[:300], _TAR),
        "a wrong sum of a compressed one": (lambda content: flipped(-6)(zlib.compress(content, wbits=31)), _TAR),
        "zeros": (bytes(10_240), f"{_TAR}|{_EMPTY}"),
    },
}  # fmt: skip

COLUMNS: Mapping[str, tuple[Row, str]] = {
    "no pictures": ({"image": None}, "has no column of pictures: store each as bytes"),
    "paths for pictures": ({"image": pa.array([BAD, *GOOD])}, "has no column of pictures"),
    "two columns of pictures": ({"mask": pa.array(list(ALL_PICTURES.values()))}, "has several columns of pictures"),
    "nothing but bad pictures": ({"image": pa.array([b"x", b"y", b"z"])}, "has no column of pictures"),
    "questions in bytes": ({"question": pa.array([b"a", b"b", b"c"])}, "`question` is list, not text"),
    "no rows": (
        {name: cells[:0] for name, cells in parquet_columns(ALL_PICTURES).items()},
        "has no column of pictures",
    ),
}


def unreadable() -> list[Case]:
    """Every dataset that cannot be read, with what is said of it."""
    return [
        *(
            Case(f"{file}: {name}", partial(whole, file, content), says)
            for file, cases in WHOLE.items()
            for name, (content, says) in cases.items()
        ),
        *(Case(f"data.parquet: {name}", partial(columns, change), says) for name, (change, says) in COLUMNS.items()),
    ]


# What is odd and yet a dataset

PAYLOAD = b"<script>unwanted</script>" * 20
_WIDE, _TALL = (saved(Image.new("RGB", size, "teal"), "PNG") for size in ((30_000, 50), (50, 30_000)))

ODD: Mapping[str, tuple[str, bytes]] = {
    "1 x 1": ("a.png", picture(5, size=(1, 1))),
    "30,000 x 50": ("a.png", _WIDE),
    "50 x 30,000": ("a.png", _TALL),
    "a JPEG file by the name of a PNG file": ("a.png", picture(5, "JPEG")),
    "a PNG file by the name of a JPEG file": ("a.jpg", picture(5)),
    "a WebP file by the name of a text": ("a.txt", picture(5, "WEBP")),
    "no suffix": ("picture", picture(5)),
    "capitals": ("A.PNG", picture(5)),
    "PNG and ZIP in one": ("a.png", picture(5) + zipped(PAYLOAD)),
    "JPEG and a page in one": ("a.jpg", picture(5, "JPEG") + PAYLOAD),
    "GIF and a script in one": ("a.gif", picture(5, "GIF") + PAYLOAD),
    "BMP with more behind": ("a.bmp", picture(5, "BMP") + PAYLOAD),
    "one frame of a GIF file": ("a.gif", picture(5, "GIF")),
    "a name with line breaks": ("a\nb\r\nc.png", picture(5)),
    "a name with a change of direction": ("a\u202egnp.png", picture(5)),
    "a name with an escape of terminals": ("a\x1b[2J\x1b[31m.png", picture(5)),
    "a name with marks of tables": ("[/red]a[bold].png", picture(5)),
    "a name of 240 bytes": ("ß" * 118 + ".png", picture(5)),
    "a name that is no text": ("a\udcff.png", picture(5)),
    "a name with a dash in front": ("--out.png", picture(5)),
    "a name with quotes": ("'a\"b`c.png", picture(5)),
    "a name with commas and equals signs": ("=a,b;c.png", picture(5)),
    "a name of blanks": (" .png", picture(5)),
    "a name of two alphabets": ("e\u0301é日本\U0001f600.png", picture(5)),
    "a name of a device": ("CON.png", picture(5)),
    "a name of dots": ("...png", picture(5)),
}
"""A third picture beside the good ones: its name and content."""

TEXT_FILES: Mapping[str, tuple[Callable[[Path, Mapping[str, bytes]], None], str, Callable[[bytes], bytes]]] = {
    "a byte order mark": (image_folder, "metadata.jsonl", lambda content: b"\xef\xbb\xbf" + content),
    "line ends of Windows": (image_folder, "metadata.jsonl", lambda content: content.replace(b"\n", b"\r\n")),
    "no line end at the end": (image_folder, "metadata.jsonl", lambda content: content[:-1]),
    "empty lines": (image_folder, "metadata.jsonl", lambda content: b"\n\n" + content.replace(b"\n", b"\n \n")),
    "a list with a mark": (chat_json, "chat.json", lambda content: b"\xef\xbb\xbf" + content),
    "a table with a mark": (table, "table.csv", lambda content: b"\xef\xbb\xbf" + content),
    "a table with semicolons": (table, "table.csv", lambda content: content.replace(b",", b";")),
    "captions with a mark": (coco, "captions.json", lambda content: b"\xef\xbb\xbf" + content),
}
"""How a dataset is written, and how its text file then differs."""
