"""Arbitrary bytes and rows: whatever a file holds, a reader returns a dataset or an error of our own."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from malformed import ALL_PICTURES, FORMATS, GOOD_PICTURES, animated, files, image_folder, picture
from mmguard.config import ProtectConfig
from mmguard.data.images import load_image
from mmguard.data.readers import read_dataset
from mmguard.data.rows import owner_texts, released_row, samples_of, skeleton
from mmguard.errors import MMGuardError, SampleError
from mmguard.protection.run import protect

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # what Pillow says of damaged metadata
FEW = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
FILES = ("metadata.jsonl", "chat.json", "chat.jsonl", "captions.json", "table.csv", "table.tsv", "x.parquet", "x.tar")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(list(ALL_PICTURES)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
KINDS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
FIELDS = (
    "file_name", "image", "images", "question", "answer", "answers", "options", "metric", "id", "split", "caption",
    "captions", "text", "conversations", "messages", "image_id", "annotations", "from", "value", "role", "content",
)  # fmt: skip
ROWS = st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=6)
TURNS = st.lists(st.dictionaries(st.sampled_from(["from", "value", "role", "content"]), JSON | st.sampled_from(
    ["human", "gpt", "user", "assistant", "system", "<image>", "<image>a?", "b"]), max_size=3), max_size=4)  # fmt: skip


@contextmanager
def folder() -> Any:
    """A folder with the pictures, and a cache of its own."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", Path(name) / "cache")
        (Path(name) / "data").mkdir()
        yield Path(name) / "data"


def survives(path: Path) -> None:
    """Reads a dataset and its pictures; any other error than ours goes through."""
    with suppress(MMGuardError):
        dataset = read_dataset(path)
        for image in dataset.by_image():
            with suppress(SampleError):
                load_image(image)


@pytest.mark.parametrize("name", FILES)
@FEW
@given(content=st.binary(max_size=200))
def test_bytes(name: str, content: bytes) -> None:
    with folder() as root:
        (root / name).write_bytes(content)
        survives(root)


@pytest.mark.parametrize("name", list(FORMATS))
@FEW
@given(data=st.data())
def test_damaged_datasets(name: str, data: st.DataObject) -> None:
    with folder() as root:
        FORMATS[name](root, GOOD_PICTURES)
        for file in sorted(path for path in root.iterdir() if path.is_file()):
            file.write_bytes(damaged(data, file.read_bytes()))
        survives(root)


@pytest.mark.parametrize(
    "kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "GIF, animated"]
)
@FEW
@given(data=st.data())
def test_damaged_pictures(kind: str, data: st.DataObject) -> None:
    content = animated("GIF") if kind == "GIF, animated" else picture(5, kind, (24, 16))
    with folder() as root:
        (root / "a.png").write_bytes(damaged(data, content))
        with suppress(SampleError):
            assert load_image(root / "a.png").shape[0] == 3


@pytest.mark.parametrize("kind", KINDS)
@FEW
@given(data=st.data())
def test_damaged_pictures_cost_no_other(kind: str, data: st.DataObject) -> None:
    """Also where pixels are fine, and what stands beside them is not."""
    with folder() as root:
        pictures = {"a.png": damaged(data, described(kind)), **GOOD_PICTURES}
        image_folder(root, pictures)
        release = protect(root, [], ProtectConfig(variant="random-noise"), root.with_name("out"))
        assert release.images + len(release.failed) == 3
        assert release.images >= 2


def described(kind: str) -> bytes:
    """A picture with EXIF, a text and a resolution, as far as the format has them."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.ImageDescription] = 6, "a square"
    options = {
        "PNG": {"exif": exif, "dpi": (72, 72)},
        "JPEG": {"exif": exif, "dpi": (72, 72), "comment": b"a square"},
        "TIFF": {"exif": exif},
        "WEBP": {"exif": exif},
        "AVIF": {"exif": exif},
    }
    return picture(5, kind, (24, 16), **options.get(kind, {}))


def damaged(data: st.DataObject, content: bytes) -> bytes:
    """A file that is cut off, or of which some bytes are others, left out or inserted."""
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content)))
        other = data.draw(st.binary(max_size=4))
        gone = data.draw(st.sampled_from([0, 1, 4, 64, len(content)]))
        content = content[:place] + other + content[place + gone :]
    return content


def as_json(rows: list[Any]) -> bytes:
    return json.dumps(rows).encode()


def as_lines(rows: list[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def as_coco(rows: list[Any]) -> bytes:
    images = [{"id": number, "file_name": name} for number, name in enumerate(ALL_PICTURES)]
    return json.dumps({"images": [*images, *rows], "annotations": [*rows, {"caption": "a", "image_id": 0}]}).encode()


@pytest.mark.parametrize(
    ("name", "written"),
    [("metadata.jsonl", as_lines), ("chat.json", as_json), ("captions.json", as_coco)],
)
@FEW
@given(rows=st.lists(ROWS | JSON, max_size=4))
def test_rows(name: str, written: Callable[[list[Any]], bytes], rows: list[Any]) -> None:
    with folder() as root:
        files(root, ALL_PICTURES, folder="")
        (root / name).write_bytes(written(rows))
        survives(root)


@FEW
@given(row=ROWS, turns=TURNS | st.none())
def test_what_is_understood_of_a_row_can_be_released(row: dict[str, Any], turns: list[Any] | None) -> None:
    """A row whose samples are found is the same again but for its picture's name and the words."""
    row = {**row, "file_name": "a/b.jpg", **({} if turns is None else {"conversations": turns})}
    with suppress(ValueError):
        samples = samples_of(row, 0, Path("a/b.jpg"))
        asked = {sample.turn: ("red",) for sample in samples if sample.question is not None}
        released = released_row(row, "file_name", "b.png", asked, {})
        assert released["file_name"] == "a/b.png"
        assert owner_texts(released) == [
            f"{text} red" if turn in asked else text for turn, text in enumerate(owner_texts(row))
        ]
        assert skeleton(released, "file_name") == skeleton(row, "file_name")
