"""Hub datasets, with the hub replaced by tables in memory."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from mmguard.data.readers import read_dataset
from mmguard.errors import DataError


def jpeg(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), colour).save(buffer, "JPEG")
    return buffer.getvalue()


def table(rows: list[dict[str, Any]]) -> datasets.Dataset:
    data = datasets.Dataset.from_list(rows)
    for column in {"image", "mask"} & set(data.column_names):
        data = data.cast_column(column, datasets.Image())
    return data


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What the hub holds: put a `Dataset`, a `DatasetDict` or an exception under the name."""
    content: dict[str, Any] = {}

    def load_dataset(name: str, config: str | None = None, split: str | None = None) -> Any:
        found = content[f"{name}:{config}" if config else name]
        if isinstance(found, Exception):
            raise found
        if split is None:
            return found
        if split not in found:
            raise ValueError(f'Unknown split "{split}". Should be one of {list(found)}.')
        return found[split]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return content


def test_rows_and_original_bytes(hub: dict[str, Any], tmp_path: Path) -> None:
    red, blue = jpeg("red"), jpeg("blue")
    rows = [
        {"image": {"bytes": red}, "question": "q0", "answer": "a0", "answers": None, "file_name": "x"},
        {
            "image": {"bytes": blue},
            "question": "q1",
            "answer": None,
            "answers": ["a1", "b1"],
            "file_name": "y",
        },
        {"image": {"bytes": red}, "question": "q2", "answer": "a2", "answers": None, "file_name": "x"},
    ]
    hub["owner/name"] = datasets.DatasetDict({"train": table(rows), "test": table(rows[:1])})
    dataset = read_dataset("owner/name", split="train")
    assert [(s.id, s.question, s.answer, s.split) for s in dataset.samples] == [
        ("0", "q0", "a0", "train"),
        ("1", "q1", "a1", "train"),
        ("2", "q2", "a2", "train"),
    ]
    assert dataset.samples[0].image.read_bytes() == red
    assert dataset.samples[0].image == dataset.samples[2].image
    assert dataset.samples[1].image.read_bytes() == blue
    assert dataset.root == tmp_path / "cache" / "mmguard" / "owner" / "name" / "train"
    both = read_dataset("owner/name")
    assert [sample.split for sample in both.samples] == ["train"] * 3 + ["test"]
    assert len(read_dataset("owner/name", split="train", limit=1).samples) == 2


def test_a_second_picture_in_bytes_is_not_released(hub: dict[str, Any], tmp_path: Path) -> None:
    red = jpeg("red")
    columns = {"image": [{"bytes": red}] * 2, "caption": ["a", "b"], "thumbnail": [red, b"no picture"]}
    hub["owner/name"] = {"train": datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())}
    dataset = read_dataset("owner/name", split="train")
    assert [sample.answer for sample in dataset.samples] == ["b"]
    assert [one.reason[:13] for one in dataset.rejected] == ["has 2 images:"]
    assert repr(red)[2:-1] not in (dataset.root / "metadata.jsonl").read_text(encoding="utf-8")


def test_lists_of_pictures(hub: dict[str, Any]) -> None:
    red = {"bytes": jpeg("red"), "path": None}
    rows = {"images": [[red], [], [red, red]], "question": ["a", "b", "c"], "answer": ["x", "y", "z"]}
    features = {
        "images": datasets.List(datasets.Image()), "question": datasets.Value("string"),
        "answer": datasets.Value("string"),
    }  # fmt: skip
    hub["owner/name"] = {"train": datasets.Dataset.from_dict(rows, datasets.Features(features))}
    dataset = read_dataset("owner/name", split="train")
    assert [(sample.question, sample.image.read_bytes()) for sample in dataset.samples] == [("a", red["bytes"])]
    assert [one.reason[:20] for one in dataset.rejected] == ["names no image in `f", "has 2 images: only o"]
    hub["owner/name"] = {"train": hub["owner/name"]["train"], "test": hub["owner/name"]["train"]}
    both = read_dataset("owner/name")
    assert len(both.samples) == 2
    assert [one.reason[:20] for one in both.rejected] == ["names no image in `f", "has 2 images: only o"] * 2


def test_a_column_of_single_pictures_comes_before_lists(hub: dict[str, Any]) -> None:
    red, blue = ({"bytes": jpeg(colour), "path": None} for colour in ("red", "blue"))
    columns = {"images": [[blue]], "photo": [red], "caption": ["a square"]}
    image = datasets.Image()
    features = datasets.Features(images=datasets.List(image), photo=image, caption=datasets.Value("string"))
    hub["owner/name"] = {"train": datasets.Dataset.from_dict(columns, features)}
    assert read_dataset("owner/name", split="train").samples[0].image.read_bytes() == red["bytes"]


def test_pixels_without_bytes_become_png(hub: dict[str, Any]) -> None:
    hub["owner/name"] = {
        "train": datasets.Dataset.from_dict({"picture": [Image.new("RGB", (4, 3), "red")], "caption": ["a square"]})
    }
    sample = read_dataset("owner/name", split="train").samples[0]
    assert (sample.question, sample.answer) == (None, "a square")
    with Image.open(sample.image) as file:
        assert (file.format, file.size, file.getpixel((0, 0))) == ("PNG", (4, 3), (255, 0, 0))


def test_written_once_until_the_dataset_changes(hub: dict[str, Any]) -> None:
    row = {"image": {"bytes": jpeg("red")}, "question": "q", "answer": "a", "mask": {"bytes": jpeg("blue")}}
    hub["owner/name"] = {"train": table([row])}
    image = read_dataset("owner/name", split="train").samples[0].image
    written = image.stat().st_mtime_ns
    assert read_dataset("owner/name", split="train").samples[0].image.stat().st_mtime_ns == written
    hub["owner/name"] = {"train": table([{**row, "answer": "b"}])}
    assert read_dataset("owner/name", split="train").samples[0].answer == "b"


def test_rows_without_image_or_with_broken_bytes(hub: dict[str, Any]) -> None:
    rows = [
        {"image": None, "question": "q", "answer": "a"},
        {"image": {"bytes": b"broken"}, "question": "q", "answer": "b"},
        {"image": {"bytes": jpeg("red")}, "question": "q", "answer": "c"},
    ]
    hub["owner/name"] = {"train": table(rows)}
    dataset = read_dataset("owner/name", split="train")
    assert [sample.answer for sample in dataset.samples] == ["b", "c"]  # decoding is judged by load_image
    assert "names no image" in dataset.rejected[0].reason


@pytest.mark.parametrize("error", [ConnectionError("no route"), RuntimeError("404"), ValueError("bad parquet")])
def test_unreachable_hub(hub: dict[str, Any], error: Exception) -> None:
    hub["owner/name"] = error
    with pytest.raises(DataError, match=rf"owner/name: is no local path.*{error}.*local folder.*easy-vqa"):
        read_dataset("owner/name")


def test_one_of_several_configurations(hub: dict[str, Any], tmp_path: Path) -> None:
    row = {"image": {"bytes": jpeg("red")}, "question": "q", "answer": "a"}
    hub["owner/name"] = ValueError("Config name is missing. Please pick one among: ['ocr', 'charts']")
    with pytest.raises(DataError, match=r"Please pick one among: \['ocr', 'charts'\]: give owner/name:CONFIG"):
        read_dataset("owner/name")
    hub["owner/name:ocr"] = {"train": table([row])}
    hub["owner/name:charts"] = {"train": table([{**row, "answer": "b"}])}
    for config, answer in (("ocr", "a"), ("charts", "b")):
        dataset = read_dataset(f"owner/name:{config}", split="train")
        assert [sample.answer for sample in dataset.samples] == [answer]
        assert dataset.root == tmp_path / "cache" / "mmguard" / "owner" / "name" / config / "train"


def test_numbers_that_json_has_not_are_null(hub: dict[str, Any]) -> None:
    rows = [
        {"image": {"bytes": jpeg("red")}, "question": "q", "answer": "a", "score": score, "box": [score, 1.0]}
        for score in (1.0, float("nan"), float("inf"))
    ]
    hub["owner/name"] = {"train": table(rows)}
    dataset = read_dataset("owner/name", split="train")
    assert dataset.rejected == []
    assert [row["box"] for row in dataset.rows] == [[1.0, 1.0], [None, 1.0], [None, 1.0]]


def test_unknown_split(hub: dict[str, Any]) -> None:
    hub["owner/name"] = {"train": table([{"question": "q"}])}
    with pytest.raises(DataError, match=r"no split 'val'.*one of \['train'\]"):
        read_dataset("owner/name", split="val")


def test_no_image_column(hub: dict[str, Any]) -> None:
    hub["owner/name"] = {"train": table([{"question": "q", "answer": "a"}])}
    with pytest.raises(DataError, match=r"no image column \(columns found: question, answer\)"):
        read_dataset("owner/name", split="train")
