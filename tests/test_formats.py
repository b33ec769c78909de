"""Every dataset format: read, released in the format that came in, verified, and paired again by its files alone."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from PIL import Image

from mmguard.auditing.arms import pair
from mmguard.config import ProtectConfig
from mmguard.data.images import load_image
from mmguard.data.readers import read_dataset
from mmguard.errors import DataError
from mmguard.release.verify import verify
from mmguard.release.writer import Release, ReleaseWriter

CONFIG = ProtectConfig(eps=4, trigger_words=2)
WORDS = ("zebra", "Moon")
NAMES = ("one cat.jpg", "größe/zwei, \u2028 drei.png", "deep/er/x.y.png", "größe/one cat.jpg")
"""Spaces, commas, other alphabets, dots, nested folders, and the same name twice."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def picture(seed: int) -> Image.Image:
    pixels = torch.randint(0, 256, (6, 8, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def pictures(root: Path, *names: str) -> None:
    for seed, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture(seed).save(root / name)


def release(source: Path, out: Path, lost: int | None = None) -> Release:
    """A release with every pixel and every question changed, less the image number `lost`."""
    dataset = read_dataset(source)
    writer = ReleaseWriter(out, dataset, CONFIG, [])
    for number, image in enumerate(dataset.by_image()):
        if number != lost:
            original = load_image(image).int()
            writer.write_image(image, (original + 3 - 6 * (original > 127).int()).to(torch.uint8))
    questions = {sample.id: WORDS for sample in dataset.samples if sample.question is not None}
    return writer.finish(questions, [])


def tree(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def released_names(root: Path) -> list[str]:
    """What should lie in a release of a folder: the same, all pictures being PNG, and the card."""
    return sorted(["README.md", *(name.replace(".jpg", ".png") for name in tree(root))])


def require_round_trip(source: Path, out: Path, recorded: bool = True) -> None:
    """A release verifies with and without its record, and all its samples find their originals."""
    original, released = read_dataset(source), read_dataset(out)
    assert released.format == original.format
    assert not released.rejected
    assert verify(out, source).problems == []
    pairs = pair(released, original).pairs
    assert len(pairs) == len(released.samples)
    assert all(torch.equal(change(*both), torch.full((3, 6, 8), 3)) for both in {(a.image, b.image) for a, b in pairs})
    for ours, theirs in pairs:
        assert theirs.answer == ours.answer
        assert theirs.question == (None if ours.question is None else f"{ours.question} zebra Moon")
    if recorded:
        shutil.move(out.with_name(out.name + ".record"), out.with_name("away"))
        assert verify(out, source).problems == []


def change(original: Path, released: Path) -> torch.Tensor:
    return (load_image(original).int() - load_image(released).int()).abs()


# LLaVA, ShareGPT, LLaMA-Factory

LLAVA = [
    {
        "id": "a b",
        "image": NAMES[0],
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "is it?\n<image>"},
            {"from": "gpt", "value": "ja, größer"},
            {"from": "human", "value": "sure?"},
            {"from": "gpt", "value": "no", "weight": 0},
        ],
        "model": None,
    },
    {
        "model": "m",
        "image": f"./{NAMES[1]}",
        "conversations": [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "x"}],
    },
]
FACTORY = [
    {
        "messages": [{"content": "<image>who?", "role": "user"}, {"content": "they", "role": "assistant"}],
        "images": [f"pics/{name}"],
        "extra": {"number": number},
    }
    for number, name in enumerate(NAMES)
]
SHAREGPT = [
    {
        "conversations": [{"from": "human", "value": "<image>who?"}, {"from": "gpt", "value": "they"}],
        "images": [f"pics/{name}"],
    }
    for name in NAMES
]
REGISTER = {
    "mine": {"file_name": "demo set.json", "formatting": "sharegpt", "columns": {"images": "images"}},
    "other": {"hf_hub_url": "a/b"},
}


def test_llava(tmp_path: Path) -> None:
    root = tmp_path / "data"
    pictures(root / "images", *NAMES[:2])
    (root / "chat.json").write_text(json.dumps(LLAVA, ensure_ascii=False), encoding="utf-8")
    release(root, tmp_path / "out")
    assert tree(tmp_path / "out") == released_names(root)
    text = (tmp_path / "out" / "chat.json").read_text(encoding="utf-8")
    first, second = json.loads(text)
    assert [turn["value"] for turn in first.pop("conversations")] == [
        "Be brief.", "is it? zebra Moon\n<image>", "ja, größer", "sure? zebra Moon", "no",
    ]  # fmt: skip
    assert first == {"id": "a b", "image": "one cat.png", "model": None}
    assert list(second) == ["model", "image", "conversations"]
    assert second["image"] == f"./{NAMES[1]}"
    assert text.count("\n") == 1
    require_round_trip(root, tmp_path / "out")


@pytest.mark.parametrize("rows", [FACTORY, SHAREGPT])
def test_llama_factory(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    root = tmp_path / "data"
    pictures(root / "pics", *NAMES)
    (root / "demo set.json").write_text(json.dumps(rows, indent=2), encoding="utf-8")
    (root / "dataset_info.json").write_text(json.dumps(REGISTER))
    release(root / "demo set.json", tmp_path / "out", lost=2)
    assert json.loads((tmp_path / "out" / "dataset_info.json").read_text()) == {"mine": REGISTER["mine"]}
    released = json.loads((tmp_path / "out" / "demo set.json").read_text(encoding="utf-8"))
    assert [row["images"] for row in released] == [
        [f"pics/{name.replace('.jpg', '.png')}"] for name in (NAMES[0], NAMES[1], NAMES[3])
    ]
    assert [list(row) for row in released] == [list(row) for row in rows[:3]]
    assert [row.get("extra") for row in released] == [row.get("extra") for row in (rows[0], rows[1], rows[3])]
    assert tree(tmp_path / "out") == [n for n in released_names(root) if "x.y" not in n]
    require_round_trip(root, tmp_path / "out", recorded=False)


def test_conversations_in_json_lines(tmp_path: Path) -> None:
    root = tmp_path / "data"
    pictures(root, *NAMES[:2])
    (root / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in LLAVA), encoding="utf-8")
    release(root, tmp_path / "out")
    assert len((tmp_path / "out" / "chat.jsonl").read_text(encoding="utf-8").split("\n")) == 3
    require_round_trip(root, tmp_path / "out")


# CSV and TSV

TABLE = [
    {"id": "1", "image_path": NAMES[0], "question": 'is "it"?', "answer": "yes", "options": '["yes",  "no"]', "n": "1"},
    {"id": "2", "image_path": NAMES[1], "question": "what,\nnow?", "answer": "dog; cat", "options": "", "n": "01.50"},
    {"id": "3", "image_path": NAMES[0], "question": "größer?", "answer": "no", "options": '["yes", "no"]', "n": ""},
]


def table(path: Path, **dialect: Any) -> Path:
    with path.open("w", encoding=dialect.pop("encoding", "utf-8"), newline="") as stream:
        writer = csv.DictWriter(stream, list(TABLE[0]), **dialect)
        writer.writeheader()
        writer.writerows(TABLE)
    return path


@pytest.mark.parametrize(
    ("name", "dialect"),
    [
        ("my table.csv", {}),
        ("table.csv", {"delimiter": ";", "lineterminator": "\n", "quoting": csv.QUOTE_ALL, "encoding": "utf-8-sig"}),
        ("table.tsv", {"delimiter": "\t", "lineterminator": "\n"}),
    ],
)
def test_tables(tmp_path: Path, name: str, dialect: dict[str, Any]) -> None:
    root = tmp_path / "data"
    pictures(root, *NAMES[:2])
    before = table(root / name, **dialect).read_bytes()
    dataset = read_dataset(root)
    assert [(s.id, s.question, s.answer, s.options) for s in dataset.samples] == [
        ("1", 'is "it"?', "yes", ("yes", "no")),
        ("2", "what,\nnow?", "dog; cat", ()),
        ("3", "größer?", "no", ("yes", "no")),
    ]
    release(root, tmp_path / "out")
    assert tree(tmp_path / "out") == released_names(root)
    # Nothing but words and a suffix: not a quote, a blank or a line end.
    after = (tmp_path / "out" / name).read_bytes()
    assert after.replace(b" zebra Moon", b"").replace(b"cat.png", b"cat.jpg") == before
    require_round_trip(root, tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"t\.csv: is empty: give a table"),
        ("picture,question\na.png,q\n", r"t\.csv: no column names the images \(columns found: picture, question\)"),
        ('image,caption\n"a.png,x\n', r"t\.csv: line 2: unexpected end of data: correct the quotes"),
        ("image,image\na.png,x\n", "two columns have the same name"),
        ("image,caption\na.png,x,y\n", r"t\.csv:2: has 3 cells, the first line 2"),
        ("image,caption\na.png,\n", r"t\.csv:2: has no text that is understood"),
    ],
)
def test_broken_tables(tmp_path: Path, content: str, message: str) -> None:
    pictures(tmp_path, "a.png")
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        read_dataset(tmp_path)


def test_a_bad_line_of_a_table_is_left_out(tmp_path: Path) -> None:
    root = tmp_path / "data"
    pictures(root, "a.png", "b.png")
    (root / "t.csv").write_text("image,caption,id\na.png,one,1\nb.png,two\nb.png,two,3\n")
    release(root, tmp_path / "out")
    assert (tmp_path / "out" / "t.csv").read_text() == "image,caption,id\na.png,one,1\nb.png,two,3\n"
    require_round_trip(root, tmp_path / "out")


# Which format


def test_several_datasets_in_a_folder_must_be_named(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png")
    (tmp_path / "t.csv").write_text("image,caption\na.png,x\n")
    (tmp_path / "chat.json").write_text("[]")
    with pytest.raises(DataError, match=r"holds several datasets \(chat\.json, t\.csv\): name the file"):
        read_dataset(tmp_path)
    assert len(read_dataset(tmp_path / "t.csv").samples) == 1


def test_a_release_in_another_format_does_not_verify(tmp_path: Path) -> None:
    root = tmp_path / "data"
    pictures(root, "a.png")
    (root / "t.csv").write_text("image,caption\na.png,x\n")
    release(root, tmp_path / "out")
    (tmp_path / "out" / "t.csv").unlink()
    (tmp_path / "out" / "chat.json").write_text(json.dumps([{"image": "a.png", "caption": "x"}]))
    problems = verify(tmp_path / "out", root).problems
    assert len(problems) == 1
    assert problems[0].endswith("chat.json: is of the format chat-json, the original delimited")


# COCO captions

COCO: dict[str, Any] = {
    "info": {"description": "größe"},
    "licenses": [{"id": 1}],
    "images": [
        *({"id": 10 + n, "file_name": name, "license": 1, "width": 8} for n, name in enumerate(NAMES)),
        {"id": 99, "file_name": "nobody describes me.jpg"},
    ],
    "annotations": [
        {"image_id": 10 + number % 4, "id": 500 - number, "caption": f"caption {number} \u2028"} for number in range(6)
    ],
}


@pytest.mark.parametrize("indent", [None, 1])
def test_coco(tmp_path: Path, indent: int | None) -> None:
    root = tmp_path / "data"
    pictures(root / "train2017", *NAMES, "nobody describes me.jpg")
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_train2017.json").write_text('{"images": [], "annotations": []}')
    file = root / "annotations" / "captions_train2017.json"
    file.write_text(json.dumps(COCO, indent=indent), encoding="utf-8")
    assert read_dataset(root) == read_dataset(file)
    assert [sample.id for sample in read_dataset(root).samples] == ["500", "499", "498", "497", "496", "495"]
    release(root, tmp_path / "out")
    released = json.loads((tmp_path / "out" / "annotations" / "captions_train2017.json").read_text(encoding="utf-8"))
    images = [{**image, "file_name": image["file_name"].replace(".jpg", ".png")} for image in COCO["images"][:4]]
    assert released == {**COCO, "images": images}
    assert list(released) == list(COCO)
    assert tree(tmp_path / "out") == [
        name for name in released_names(root) if "nobody" not in name and "instances" not in name
    ]
    require_round_trip(root, tmp_path / "out")


def test_coco_without_one_image(tmp_path: Path) -> None:
    root = tmp_path / "data"
    pictures(root, *NAMES)
    broken = [*COCO["annotations"], {"image_id": 77, "id": 1, "caption": "x"}, "text"]
    (root / "my captions.json").write_text(json.dumps({**COCO, "annotations": broken}))
    assert [rejection.reason.partition(":")[0] for rejection in read_dataset(root).rejected] == [
        "no image has the id 77",
        "is no JSON object",
    ]
    release(root, tmp_path / "out", lost=0)
    released = json.loads((tmp_path / "out" / "my captions.json").read_text(encoding="utf-8"))
    assert [image["id"] for image in released["images"]] == [11, 12, 13]
    assert [annotation["id"] for annotation in released["annotations"]] == [499, 498, 497, 495]
    require_round_trip(root, tmp_path / "out", recorded=False)


@pytest.mark.parametrize(
    "content", ['{"images": [], "annotations": ["caption"]', '{"images":{},"annotations":["caption"]}']
)
def test_broken_coco(tmp_path: Path, content: str) -> None:
    (tmp_path / "captions.json").write_text(content)
    with pytest.raises(DataError, match=r"captions\.json: (not valid JSON|`images` and `annotations` are not both)"):
        read_dataset(tmp_path)
