"""Every dataset format: read, released in the format that came in, verified, and paired again by its files alone."""

from __future__ import annotations

import csv
import datetime
import errno
import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from mmguard.auditing.arms import pair
from mmguard.cli import app
from mmguard.config import ProtectConfig
from mmguard.data.images import load_image
from mmguard.data.readers import read_dataset
from mmguard.errors import DataError, ReleaseError, SampleError
from mmguard.protection.run import protect
from mmguard.release.card import configurations
from mmguard.release.verify import verify
from mmguard.release.writer import Release, ReleaseWriter
from mmguard.runtime.durable import replacing

CONFIG = ProtectConfig(eps=4, trigger_words=2)
NOISE = ProtectConfig(variant="random-noise")
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


def release(source: Path, out: Path, lost: int | None = None, config: ProtectConfig = CONFIG) -> Release:
    """A release with every pixel and every question changed, less the image number `lost`."""
    dataset = read_dataset(source)
    writer = ReleaseWriter(out, dataset, config, [])
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
TRL = [
    {
        "images": [f"pics/{name}"],
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "who?", "index": 0}]},
            {"role": "assistant", "content": [{"type": "text", "text": "they"}]},
            {"role": "user", "content": "sure?"},
            {"role": "assistant", "content": "yes"},
        ],
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


@pytest.mark.parametrize("rows", ["captions", "conversations"])
def test_names_that_differ_in_the_suffix_alone_stay(tmp_path: Path, rows: str) -> None:
    root, names = tmp_path / "data", ("a.JPG", "a.jpeg", "a.png", "b/a.webp")
    pictures(root, *names)
    if rows == "captions":
        (root / "a.txt").write_text("the same for all of that name")
    else:
        chat = [{**LLAVA[1], "image": name} for name in names]
        (root / "chat.json").write_text(json.dumps(chat))
    release(root, tmp_path / "out", config=replace(CONFIG, format="keep"))
    assert tree(tmp_path / "out") == ["README.md", *tree(root)]
    assert verify(tmp_path / "out", root).problems == []
    original, released = read_dataset(root), read_dataset(tmp_path / "out")
    together = [
        (a.image.relative_to(root), b.image.relative_to(tmp_path / "out")) for a, b in pair(released, original).pairs
    ]
    assert together == [(Path(name), Path(name)) for name in names]


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


@pytest.mark.parametrize("text", ["Picture 1: <image>\nwhat is it?", "look at <image> and say what it is"])
@pytest.mark.parametrize("place", ["end", "inside"])
def test_a_tag_amid_the_text_is_no_word_of_the_question(tmp_path: Path, text: str, place: str) -> None:
    root = tmp_path / "data"
    pictures(root / "images", NAMES[0])
    turns = [{"from": "human", "value": text}, {"from": "gpt", "value": "x"}]
    (root / "chat.json").write_text(json.dumps([{"image": NAMES[0], "conversations": turns}]), encoding="utf-8")
    config = ProtectConfig(variant="random-words", trigger_words=2, trigger_place=place)
    protect(root, ["zoo:qwen3vl-micro"], config, tmp_path / "out", device="cpu")
    assert verify(tmp_path / "out", root).problems == []


def test_conversations_in_json_lines(tmp_path: Path) -> None:
    root = tmp_path / "data"
    pictures(root, *NAMES[:2])
    (root / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in LLAVA), encoding="utf-8")
    release(root, tmp_path / "out")
    assert len((tmp_path / "out" / "chat.jsonl").read_text(encoding="utf-8").split("\n")) == 3
    require_round_trip(root, tmp_path / "out")


def test_parts_with_types_stay_as_they_are(tmp_path: Path) -> None:
    root = tmp_path / "data"
    pictures(root / "pics", *NAMES)
    (root / "train.json").write_text(json.dumps(TRL), encoding="utf-8")
    release(root, tmp_path / "out")
    file = tmp_path / "out" / "train.json"
    text = file.read_text(encoding="utf-8")
    rows = json.loads(text)
    assert rows[0]["messages"][1]["content"] == [
        {"type": "image"},
        {"type": "text", "text": "who? zebra Moon", "index": 0},
    ]
    assert json.loads(text.replace(" zebra Moon", "").replace(".png", ".jpg")) == [
        {**row, "images": [name.replace(".png", ".jpg") for name in row["images"]]} for row in TRL
    ]
    require_round_trip(root, tmp_path / "out")
    file.write_text(text.replace('"index": 0', '"index": 1'))
    assert any("fields altered: messages" in problem for problem in verify(tmp_path / "out", root).problems)


PROMPTS = [
    {
        "images": [f"pics/{name}"],
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "<image>\nwho?"}],
        "completion": [{"role": "assistant", "content": [{"type": "text", "text": "they"}]}],
    }
    for name in NAMES
]
TEXTS = [{"image": f"pics/{name}", "prompt": "<image>\nwho?", "completion": "they", "note": "x"} for name in NAMES]
PAIRS = [
    {
        "images": [f"pics/{name}"],
        "texts": [{"user": "who?\n", "assistant": "they", "source": "x"}, {"assistant": "yes", "user": "sure?"}],
    }
    for name in NAMES
]


@pytest.mark.parametrize("given", [PROMPTS, TEXTS, PAIRS])
def test_prompts_with_completions_and_pairs(tmp_path: Path, given: list[dict[str, Any]]) -> None:
    root = tmp_path / "data"
    pictures(root / "pics", *NAMES)
    (root / "train.json").write_text(json.dumps(given), encoding="utf-8")
    first = [sample for sample in read_dataset(root).samples if sample.id == "0"]
    assert [(sample.question, sample.answer) for sample in first] == [("who?", "they")]
    release(root, tmp_path / "out")
    text = (tmp_path / "out" / "train.json").read_text(encoding="utf-8")
    assert text.count("who? zebra Moon") == len(NAMES)
    assert json.loads(text.replace(" zebra Moon", "").replace(".png", ".jpg")) == [
        json.loads(json.dumps(row).replace(".png", ".jpg")) for row in given
    ]
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


@pytest.mark.parametrize("asked", ["Question", "query", "Query"])
def test_columns_keep_their_spelling(tmp_path: Path, asked: str) -> None:
    root = tmp_path / "data"
    pictures(root, "a.png")
    head = f"ID,Path,{asked},Answers,answer,Answer"
    (root / "t.csv").write_text(f'{head}\n7,a.png,what?,"[""cat"", ""dog""]",cat,x\n')
    (sample,) = read_dataset(root).samples
    assert (sample.id, sample.question, sample.answers) == ("0", "what?", ("cat", "dog"))
    release(root, tmp_path / "out")
    after = f'{head}\n7,a.png,what? zebra Moon,"[""cat"", ""dog""]",cat,x\n'
    assert (tmp_path / "out" / "t.csv").read_text() == after
    require_round_trip(root, tmp_path / "out")


def test_columns_of_the_usual_names_come_first(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png")
    (tmp_path / "t.csv").write_text("Image,query,question,answer,path\nno image,cats,what?,cat,a.png\n")
    assert read_dataset(tmp_path).samples[0].question == "what?"


# Which format


def test_several_datasets_in_a_folder_must_be_named(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png")
    (tmp_path / "t.csv").write_text("image,caption\na.png,x\n")
    (tmp_path / "chat.json").write_text("[]")
    with pytest.raises(DataError, match=r"holds several datasets \(chat\.json, t\.csv\): name the file"):
        read_dataset(tmp_path)
    assert len(read_dataset(tmp_path / "t.csv").samples) == 1


def test_descriptions_that_photo_libraries_export_are_no_dataset(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png", "b.JPG", "c.d.jpg")
    for name in ("a.png.json", "b.json", "c.d.jpg.supplemental-metadata.json"):
        (tmp_path / name).write_text('{"title": "boats", "geoData": {"latitude": 52.5}}')
    (tmp_path / "a.txt").write_text("boats")
    data = read_dataset(tmp_path)
    assert [row.get("caption") for row in data.rows] == ["boats", None, None]
    assert data.rejected == []


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_dataset_may_have_a_picture_s_name(tmp_path: Path, name: str) -> None:
    pictures(tmp_path, "a.png")
    row = {"image": "a.png", "question": "is it?", "answer": "yes"}
    (tmp_path / name).write_text(json.dumps([row] if name == "a.json" else row))
    assert read_dataset(tmp_path).samples[0].question == "is it?"


@pytest.mark.parametrize(
    ("name", "text"), [("export.csv", "Title,Rating\nboats,5\n"), ("album.json", '{"title": "boats"}')]
)
def test_a_file_beside_pictures_that_is_no_dataset_may_be_moved(tmp_path: Path, name: str, text: str) -> None:
    pictures(tmp_path, "a.png")
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=rf"{name}: .*or move it elsewhere, if the pictures are meant alone"):
        read_dataset(tmp_path)
    (tmp_path / name).unlink()
    assert len(read_dataset(tmp_path).samples) == 1


TABLES_BELOW = {
    "annotations/train.json": '[{"image": "train/a.png", "caption": "a cup"}]',
    "annotations/rows.JSONL": '{"image": "train/a.png", "caption": "a cup"}',
    "labels/coco.json": '{"images": [{"id": 1, "file_name": "train/a.png"}],'
    '"annotations": [{"image_id": 1, "caption": "a cup"}]}',
    "a/b/train.tsv": "image\ttext\ntrain/a.png\ta cup\n",
    "train/metadata.csv": "file_name,text\na.png,a cup\n",
}


@pytest.mark.parametrize("name", TABLES_BELOW)
def test_a_table_in_a_folder_below_is_not_passed_over(tmp_path: Path, name: str) -> None:
    pictures(tmp_path, "train/a.png")
    table = tmp_path / name
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text(TABLES_BELOW[name])
    with pytest.raises(DataError, match=rf"tables lie in folders below \({name}\): give the .*{table.parent}; or move"):
        read_dataset(tmp_path)
    if "train/a.png" in TABLES_BELOW[name]:
        table.rename(tmp_path / table.name)
    cured = tmp_path if "train/a.png" in TABLES_BELOW[name] else table.parent
    assert [sample.answer for sample in read_dataset(cured).samples] == ["a cup"]


def test_json_below_that_is_no_table_is_told(tmp_path: Path) -> None:
    """Such as what photo libraries write of an album; what is hidden is none of the owner's."""
    pictures(tmp_path, "boats/a.png")
    (tmp_path / ".cache").mkdir()
    for name in ("boats/metadata.json", "boats/a.png.json", ".cache/seen.json"):
        (tmp_path / name).write_text('{"title": "boats"}')
    dataset = read_dataset(tmp_path)
    assert [sample.image.name for sample in dataset.samples] == ["a.png"]
    assert [(one.where, one.reason) for one in dataset.rejected] == [
        (
            "boats/metadata.json",
            f"is JSON of a kind that is not read: if it holds texts, write them into {tmp_path / 'metadata.jsonl'}",
        )
    ]


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


@pytest.mark.parametrize(
    "name", ["METADATA.JSONL", "Chat.JSON", "CHAT.Jsonl", "DATA.CSV", "T.Tsv", "A.PARQUET", "S.TAR", "S.Tar.GZ"]
)
def test_suffixes_are_known_in_any_letter_case(tmp_path: Path, name: str) -> None:
    root = tmp_path / "data"
    kind = name.lower().partition(".")[2]
    if kind == "parquet":
        parquet(root / name, [encoded(0)], pa.binary(), [{"caption": "a cup"}])
    elif kind.startswith("tar"):
        shard(root / name, [("0.jpg", encoded(0)), ("0.txt", b"a cup")])
    else:
        pictures(root, "a.png")
        field = "file_name" if name == "METADATA.JSONL" else "image"
        row = {field: "a.png", "caption": "a cup"}
        tables = {"json": json.dumps([row]), "jsonl": json.dumps(row)}
        separator = "\t" if kind == "tsv" else ","
        (root / name).write_text(tables.get(kind) or "\n".join(map(separator.join, (row, row.values()))))
    assert [sample.answer for sample in read_dataset(root).samples] == ["a cup"]
    assert read_dataset(root) == read_dataset(root / name)
    release(root, tmp_path / "out")
    assert verify(tmp_path / "out", root).problems == []


@pytest.mark.parametrize("name", ["train.parquet", "train.csv"])
def test_a_file_that_is_a_link_keeps_its_name_and_folder(tmp_path: Path, name: str) -> None:
    """As in the hub's cache, where snapshots are links to blobs without a suffix."""
    root, blob = tmp_path / "snapshots" / "0a1b", tmp_path / "blobs" / "2c3d"
    blob.parent.mkdir()
    pictures(root, "a.png")
    if name == "train.csv":
        blob.write_text("image,caption\na.png,a cup\n")
    else:
        parquet(blob, [encoded(0)], pa.binary(), [{"caption": "a cup"}])
    (root / name).symlink_to(Path("..") / ".." / "blobs" / blob.name)
    (tmp_path / "latest").symlink_to(root)
    assert read_dataset(tmp_path / "latest" / name) == read_dataset(root)
    release(tmp_path / "latest" / name, tmp_path / "out")
    assert {"README.md", name} <= set(tree(tmp_path / "out"))
    assert verify(tmp_path / "out", root / name).problems == []


def test_names_that_differ_in_letter_case_alone_are_two_datasets(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png")
    for name in ("metadata.jsonl", "METADATA.JSONL"):
        (tmp_path / name).write_text('{"file_name": "a.png", "caption": "x"}')
    with pytest.raises(DataError, match=r"holds several datasets \(METADATA\.JSONL, metadata\.jsonl\)"):
        read_dataset(tmp_path)
    assert len(read_dataset(tmp_path / "metadata.jsonl").samples) == 1


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
        "no annotation describes it",
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


@pytest.mark.parametrize("name", ["captions.json", "annotations/captions.json", "train/chat.json", "a.json"])
def test_json_that_cannot_be_read_is_named(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures(tmp_path, "a.png")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(json.dumps(COCO))

    def read_bytes(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    for source in (tmp_path, tmp_path / name):
        with pytest.raises(DataError, match=rf"{name}: cannot be read \(Permission denied\): correct the path or its"):
            read_dataset(source)


# Parquet

QUESTIONS: list[dict[str, Any]] = [
    {"question": "is it?", "answer": "yes", "when": datetime.date(2020, 1, number + 1), "score": 0.5 * number}
    for number in range(4)
]


def encoded(seed: int, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    picture(seed).save(buffer, kind)
    return buffer.getvalue()


def cells_path(file: Path, number: int) -> str | None:
    path: str | None = pq.read_table(file)["picture"][number].as_py()["path"]
    return path


def parquet(file: Path, cells: list[Any], type_: pa.DataType, rows: list[dict[str, Any]] = QUESTIONS) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows).add_column(1, "picture", pa.array(cells, type_))
    pq.write_table(table.replace_schema_metadata({"note": "größe"}), file, row_group_size=2, compression="zstd")
    return file


STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})


@pytest.mark.parametrize("paths", [NAMES, [None] * 4, ["/home/me/1.jpg", "same.jpg", "same.jpg", None]])
@pytest.mark.parametrize("lost", [None, 1])
def test_parquet(tmp_path: Path, paths: Sequence[str | None], lost: int | None) -> None:
    root = tmp_path / "data"
    for shard in (0, 1):
        cells = [{"bytes": encoded(4 * shard + n), "path": path} for n, path in enumerate(paths)]
        if lost is not None and paths[1] == "same.jpg":
            cells[2]["path"] = "other.jpg"
        parquet(root / "my data" / f"train-0000{shard}-of-00002.parquet", cells, STRUCT)
    assert [sample.split for sample in read_dataset(root).samples] == ["train"] * 8
    release(root, tmp_path / "out", lost)
    assert tree(tmp_path / "out") == ["README.md", *tree(root)]
    name = tree(root)[0]
    before, after = pq.ParquetFile(root / name), pq.ParquetFile(tmp_path / "out" / name)
    kept = [number for number in range(4) if number != lost]
    assert after.schema_arrow.equals(before.schema_arrow, check_metadata=True)
    assert after.metadata.row_group(0).num_rows == 2
    assert after.metadata.row_group(0).column(0).compression == "ZSTD"
    rows = after.read().to_pylist()
    assert [{**row, "picture": 0} for row in rows] == [
        {**QUESTIONS[number], "question": "is it? zebra Moon", "picture": 0} for number in kept
    ]
    for row, number in zip(rows, kept, strict=True):
        *earlier, path = [cells_path(root / name, place) for place in range(number + 1)]
        assert row["picture"]["path"] == (f"{number:06d}" if path is None or path in earlier else path)
    require_round_trip(root, tmp_path / "out", recorded=lost is None)
    loaded = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "loaded"))
    assert len(loaded) == 8 - (lost is not None)
    assert loaded[0]["picture"]["path"] is not None


@pytest.mark.parametrize("lost", [None, 0, 1, 2, 3, 17, 19])
def test_parquet_of_several_pictures_by_one_path_though_a_row_is_left_out(tmp_path: Path, lost: int | None) -> None:
    paths = ["x.jpg", "a.jpg", "a.jpg", "a.jpg"] * 5  # read 16 rows at a time
    cells = [{"bytes": encoded(number), "path": path} for number, path in enumerate(paths)]
    file = parquet(tmp_path / "data" / "x.parquet", cells, STRUCT, QUESTIONS * 5)
    release(file, tmp_path / "out", lost)
    after = [cell["path"] for cell in pq.read_table(tmp_path / "out" / "x.parquet")["picture"].to_pylist()]
    assert after[0] == ("x.jpg" if lost != 0 else "a.jpg")
    require_round_trip(file, tmp_path / "out", recorded=False)


def test_parquet_where_one_picture_has_a_path_of_another_and_one_has_none(tmp_path: Path) -> None:
    cells = [{"bytes": encoded(n), "path": path} for n, path in ((0, "a.png"), (1, None), (1, "a.png"), (2, "a.png"))]
    file = parquet(tmp_path / "data" / "x.parquet", cells, STRUCT, QUESTIONS[:4])
    release(file, tmp_path / "out")
    require_round_trip(file, tmp_path / "out", recorded=False)


def test_parquet_of_bare_bytes_and_conversations(tmp_path: Path) -> None:
    rows = [{"conversations": row["conversations"]} for row in LLAVA * 2]
    file = parquet(tmp_path / "data" / "x.parquet", [encoded(n, "WEBP") for n in (0, 1, 0, 2)], pa.binary(), rows)
    dataset = read_dataset(file)
    assert len(dataset.by_image()) == 3  # the same bytes are one picture
    release(file, tmp_path / "out", lost=1)
    talks = pq.read_table(tmp_path / "out" / "x.parquet")["conversations"].to_pylist()
    assert [turn["value"] for turn in talks[0]][1] == "is it? zebra Moon\n<image>"
    assert len(talks) == 3
    require_round_trip(file, tmp_path / "out", recorded=False)


def test_parquet_is_read_and_written_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrow cannot hold 2 GiB of pictures at once, and released ones are larger than the owner's."""
    rows = [{"question": "is it?", "answer": str(number)} for number in range(40)]
    cells = [{"bytes": encoded(number), "path": f"{number}.jpg"} for number in range(40)]
    file = tmp_path / "data" / "train.parquet"
    file.parent.mkdir()
    pq.write_table(pa.Table.from_pylist(rows).add_column(1, "picture", pa.array(cells, STRUCT)), file)

    def read(stored: pq.ParquetFile, columns: Sequence[str]) -> pa.Table:
        assert "picture" not in columns
        return whole(stored, columns=columns)

    whole = pq.ParquetFile.read
    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetFile, "read", read)
        patch.setattr("mmguard.data.formats.parquet._GROUP_BYTES", 2000)
        release(file, tmp_path / "out", lost=17)
    after = pq.ParquetFile(tmp_path / "out" / "train.parquet")
    groups = [after.metadata.row_group(number).num_rows for number in range(after.num_row_groups)]
    assert groups == [16, 15, 8]
    assert after.read()["answer"].to_pylist() == [str(number) for number in range(40) if number != 17]
    require_round_trip(file, tmp_path / "out", recorded=False)


def test_pictures_without_names_are_known_though_a_row_is_left_out(tmp_path: Path) -> None:
    """Their numbers are then those of other pictures in the record."""
    file = parquet(tmp_path / "data" / "x.parquet", [encoded(number) for number in range(4)], pa.binary())
    release(file, tmp_path / "out", lost=1)
    record = tmp_path / "out.record" / "record.json"
    found = json.loads(record.read_text())
    found["images"][2]["released_sha256"] = "other"
    require_round_trip(file, tmp_path / "out", recorded=False)
    record.write_text(json.dumps(found))
    (problem,) = verify(tmp_path / "out", file).problems
    assert problem.endswith("x.parquet/000002: is not the file that was recorded")


@pytest.mark.parametrize(
    "kind", [pa.struct({"bytes": pa.binary(), "path": pa.null()}), pa.struct({"bytes": pa.binary()})]
)
def test_parquet_without_room_for_paths(tmp_path: Path, kind: pa.DataType) -> None:
    """As Arrow writes rows of Python's whose paths are all None."""
    cells = [{"bytes": encoded(number), "path": None} for number in range(4)]
    file = parquet(tmp_path / "data" / "x.parquet", cells, kind)
    release(file, tmp_path / "out", lost=1)
    assert pq.read_schema(tmp_path / "out" / "x.parquet").equals(pq.read_schema(file), check_metadata=True)
    require_round_trip(file, tmp_path / "out", recorded=False)


@pytest.mark.parametrize("kind", [pa.list_, pa.large_list])
def test_parquet_of_lists_of_pictures(tmp_path: Path, kind: Callable[[pa.DataType], pa.DataType]) -> None:
    """As TRL has them: `images`, a list, with a conversation. Rows with another number of pictures are left out."""
    rows = [{"question": f"what is {n}?", "answer": "a cup"} for n in range(4)]
    one = {"bytes": encoded(0), "path": "a/cup.jpg"}
    cells = [[one], [], [one, {"bytes": encoded(1), "path": None}], [{"bytes": encoded(2), "path": None}]]
    file = parquet(tmp_path / "data" / "train-00000-of-00001.parquet", cells, kind(STRUCT), rows)
    dataset = read_dataset(file)
    assert [sample.question for sample in dataset.samples] == ["what is 0?", "what is 3?"]
    assert [one.reason.partition(" (")[0] for one in dataset.rejected] == [
        "names no image in `picture`",
        "has 2 images: only one image a row is supported; split or remove the row",
    ]
    release(file, tmp_path / "out", lost=None)
    after = pq.read_table(tmp_path / "out" / file.name)
    assert after.schema.equals(pq.read_schema(file), check_metadata=True)
    ((first,), (second,)) = after["picture"].to_pylist()
    assert (first["path"], second["path"]) == ("a/cup.jpg", "000003")
    assert first["bytes"] != one["bytes"]
    require_round_trip(file, tmp_path / "out", recorded=False)


def test_a_parquet_that_changes_is_read_again(tmp_path: Path, cache: Path) -> None:
    captions = [{"text": "one"}]
    file = parquet(tmp_path / "x.parquet", [encoded(0)], pa.binary(), captions)
    first = read_dataset(file).samples[0].image
    assert read_dataset(file).samples[0].image == first
    parquet(file, [encoded(1)], pa.binary(), captions)
    assert read_dataset(file).samples[0].image != first
    assert len(list((cache / "mmguard" / "unpacked").iterdir())) == 2


def test_broken_parquet(tmp_path: Path) -> None:
    file = parquet(tmp_path / "x.parquet", [b"no picture"], pa.binary(), [{"text": "one"}])
    with pytest.raises(DataError, match=r"x\.parquet: has no column of pictures: store each as bytes"):
        read_dataset(tmp_path)
    parquet(file, [encoded(0)], pa.binary(), [{"text": "one", "mask": encoded(1)}])
    with pytest.raises(DataError, match=r"x\.parquet: has several columns of pictures \(picture, mask\): keep one"):
        read_dataset(tmp_path)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"x\.parquet: cannot be read as Parquet .*: replace the file"):
        read_dataset(tmp_path)


def splits(root: Path, bare: bool = False, **shards: Sequence[bytes]) -> Path:
    """A folder of Parquet, a shard a split, with these pictures."""
    for split, cells in shards.items():
        rows = [{"text": f"{split} {number}"} for number in range(len(cells))]
        parquet(
            root / split / "0.parquet" if bare else root / f"{split}-00000-of-00001.parquet",
            list(cells),
            pa.binary(),
            rows,
        )
    return root


@pytest.mark.parametrize(
    ("options", "test"),
    [({"split": "train"}, [encoded(2)]), ({"limit": 2}, [encoded(2)]), ({}, [b"\x89PNG\r\n\x1a\n broken"])],
)
def test_a_shard_that_keeps_no_row_is_not_released(
    tmp_path: Path, options: dict[str, Any], test: Sequence[bytes]
) -> None:
    root = splits(tmp_path / "data", train=[encoded(0), encoded(1)], validation=test)
    made = protect(root, [], NOISE, tmp_path / "out", **options)
    assert tree(made.path) == ["README.md", "train-00000-of-00001.parquet"]
    assert verify(made.path, root).problems == []
    loaded = datasets.load_dataset(str(made.path), cache_dir=str(tmp_path / "loaded"))
    assert loaded.num_rows == {"train": 2}


@pytest.mark.parametrize("bare", [True, False])
def test_splits_of_parquet_load_as_those_of_the_original(tmp_path: Path, bare: bool) -> None:
    shards = {"test": [encoded(0)], "train": [encoded(1), encoded(2)], **({} if bare else {"dev": [encoded(3)]})}
    root = splits(tmp_path / "data", bare, **shards)
    made = protect(root, [], NOISE, tmp_path / "out")
    assert verify(made.path, root).problems == []
    loaded = datasets.load_dataset(str(made.path), cache_dir=str(tmp_path / "loaded"))
    assert {split: rows["text"][:] for split, rows in loaded.items()} == {
        split: [f"{split} {number}" for number in range(len(cells))] for split, cells in shards.items()
    }


def fields_told(made: Path) -> list[str]:
    """Those that the card names."""
    (told,) = [line for line in (made / "README.md").read_text().splitlines() if "with the fields" in line]
    return re.findall("`(.*?)`", told)


@pytest.mark.parametrize("name", ["dataset_infos.json", "dataset_dict.json", "state.json", "00000_stats.json"])
@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_json_that_tells_of_shards_is_no_dataset(tmp_path: Path, kind: str, name: str) -> None:
    root = splits(tmp_path / "data", train=[encoded(0)])
    if kind == "tar":
        shutil.rmtree(root)
        shard(root / "00000.tar")
    (root / name).write_text('{"default": {"splits": {"train": {"num_examples": 1}}}}')
    release(root, tmp_path / "out")
    assert {*tree(tmp_path / "out")} == {"README.md", *tree(root)} - {name}
    assert verify(tmp_path / "out", root).problems == []


@pytest.mark.parametrize("text", ["[]", "[{", json.dumps(COCO)])
def test_a_dataset_beside_shards_must_be_named(tmp_path: Path, text: str) -> None:
    (splits(tmp_path, train=[encoded(0)]) / "chat.json").write_text(text)
    with pytest.raises(DataError, match=r"holds several datasets \(chat\.json, train-00000-of-00001\.parquet\)"):
        read_dataset(tmp_path)


def test_the_card_of_parquet_names_the_columns_that_there_are(tmp_path: Path) -> None:
    """Splits that the names of shards say are no column; those of a column are one."""
    made = protect(splits(tmp_path / "data", train=[encoded(0)], test=[encoded(1)]), [], NOISE, tmp_path / "out")
    assert fields_told(made.path) == ["text", "picture"]
    rows = [{"text": "one", "split": "dev"}, {"text": "two", "split": "dev"}]
    file = parquet(tmp_path / "more" / "x.parquet", [encoded(0), encoded(1)], pa.binary(), rows)
    made = protect(file, [], NOISE, tmp_path / "second")
    assert fields_told(made.path) == ["text", "picture", "split"]
    assert datasets.load_dataset(str(made.path), cache_dir=str(tmp_path / "loaded")).num_rows == {"dev": 2}


def test_shards_that_carry_a_hash_say_their_split(tmp_path: Path) -> None:
    """As the hub named them until 2023."""
    for number, part in enumerate(("train", "test")):
        name = f"{part}-00000-of-00001-6ef3fbb0e1b0d5c{number}.parquet"
        parquet(tmp_path / "data" / name, [encoded(number)], pa.binary(), [{"text": part}])
    assert [one.answer for one in read_dataset(tmp_path / "data", split="test").samples] == ["test"]


def test_configurations_of_different_columns_are_several_datasets(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for name, row in {"en": {"text": "one"}, "fr": {"text": "un"}, "vqa": {"question": "what?", "answer": "a"}}.items():
        parquet(root / name / "train-00000-of-00001.parquet", [encoded(0)], pa.binary(), [row])
    says = r"en/train-\S+ and vqa/train-\S+ have different columns: name the folder or file that is meant"
    with pytest.raises(DataError, match=says):
        read_dataset(root)
    assert len(read_dataset(root / "vqa").samples) == 1


def test_configurations_of_the_same_columns_are_one_dataset_and_told(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for name in ("en", "de"):
        parquet(root / name / "train-00000-of-00001.parquet", [encoded(0)], pa.binary(), [{"text": name}])
    header = 'configs:\n- config_name: "en"\n- config_name: de  # in German\ndataset_info:\n  config_name: en\n'
    (root / "README.md").write_text(f"---\n{header}---\nconfig_name: no\n")
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["protect", str(root), "--variant", "random-noise", "-o", str(out)])
    assert "the configurations en, de: in the release they are one dataset" in done.stdout
    assert datasets.load_dataset(str(out), cache_dir=str(tmp_path / "loaded")).num_rows == {"train": 2}
    parts = ["protect", str(root / "en"), "--variant", "random-noise", "-o", str(tmp_path / "part")]
    assert "the configurations" not in CliRunner().invoke(app, parts).stdout


@pytest.mark.parametrize("header", [b"a: [", b"- a list", b"configs: en", b"\xff: 1", b"license: mit"])
def test_cards_that_list_no_configurations(header: bytes, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(b"---\n" + header + b"\n---\n")
    assert configurations(tmp_path / "README.md") == []


def test_a_parquet_that_cannot_be_written_is_an_error_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_table(*_: Any) -> None:
        raise pa.ArrowCapacityError("array cannot contain more than 2147483646 bytes")

    root = splits(tmp_path / "data", train=[encoded(0)])
    monkeypatch.setattr(pq.ParquetWriter, "write_table", write_table)
    with pytest.raises(ReleaseError, match=r"train-00000-of-00001\.parquet: its release .*split it into smaller files"):
        protect(root, [], NOISE, tmp_path / "out")


def test_a_bad_picture_in_parquet_is_left_out(tmp_path: Path) -> None:
    rows = [{"text": "one"}, {"text": "two"}, {"text": "three"}]
    file = parquet(tmp_path / "data" / "x.parquet", [encoded(0), b"broken", None], pa.binary(), rows)
    dataset = read_dataset(file)
    assert [rejection.where for rejection in dataset.rejected] == ["x.parquet:2"]
    with pytest.raises(SampleError, match="cannot be decoded"):
        load_image(dataset.samples[1].image)


# WebDataset

MEMBERS: list[tuple[str, bytes]] = [
    ("größe/one cat.jpg", encoded(0)),
    ("größe/one cat.json", json.dumps({"question": "what?", "answer": "größer", "id": "q"}).encode()),
    ("größe/one cat.cls", b"7"),
    ("0002.json", b'{"url":  "http://x", "caption": "two"}'),
    ("0002.txt", b"two"),
    ("0002.png", encoded(1, "PNG")),
    ("0003.jpeg", encoded(2)),
    ("0003.txt", b"drei"),
]


def shard(file: Path, members: list[tuple[str, bytes]] = MEMBERS) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w:gz" if file.suffix == ".tgz" else "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.uname = len(content), 1234, "me"
            tar.addfile(info, io.BytesIO(content))
    return file


def members(file: Path) -> dict[str, bytes]:
    with tarfile.open(file) as tar:
        return {info.name: stream.read() for info in tar if (stream := tar.extractfile(info)) is not None}


def test_splits_of_webdataset_load_as_those_of_the_original(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for number, split in enumerate(("test", "train")):
        shard(root / f"{split}-000000.tar", [("a.jpg", encoded(number)), ("a.txt", split.encode())])
    made = protect(root, [], NOISE, tmp_path / "out")
    loaded = datasets.load_dataset(str(made.path), cache_dir=str(tmp_path / "loaded"))
    assert {split: rows["txt"][:] for split, rows in loaded.items()} == {"test": ["test"], "train": ["train"]}
    made = protect(root, [], NOISE, tmp_path / "less", limit=1)
    assert tree(made.path) == ["README.md", "test-000000.tar"]
    assert verify(made.path, root).problems == []


@pytest.mark.parametrize("lost", [None, 0])
def test_webdataset(tmp_path: Path, lost: int | None) -> None:
    root = tmp_path / "data"
    shard(root / "my-000000.tar", [*MEMBERS, (".hidden.jpg", encoded(9))])
    shard(root / "my-000001.tgz", [(name, content.replace(b'"q"', b'"r"')) for name, content in MEMBERS])
    dataset = read_dataset(root)
    assert [(s.question, s.answer) for s in dataset.samples[:3]] == [("what?", "größer"), (None, "two"), (None, "drei")]
    release(root, tmp_path / "out", lost)
    assert tree(tmp_path / "out") == ["README.md", *tree(root)]
    after = members(tmp_path / "out" / "my-000000.tar")
    names = [name for name, _ in MEMBERS]
    assert list(after) == (
        names if lost is None else [name for name in names if dataset.samples[lost].image.stem not in name]
    )
    for name, content in MEMBERS:
        if name.endswith(("txt", "cls", "0002.json")) and name in after:
            assert after[name] == content
    if lost is None:
        assert json.loads(after["größe/one cat.json"]) == {
            "question": "what? zebra Moon",
            "answer": "größer",
            "id": "q",
        }
    with tarfile.open(tmp_path / "out" / "my-000001.tgz") as tar:
        assert {(info.mtime, info.uname) for info in tar} == {(1234, "me")}
    header = (tmp_path / "out" / "my-000001.tgz").read_bytes()[:10]
    assert header[:8] == b"\x1f\x8b\x08\0\0\0\0\0", "neither name nor time, which would make equal releases differ"
    require_round_trip(root, tmp_path / "out", recorded=lost is None)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ([("x.txt", b"one")], "has 0 pictures"),
        ([("x.jpg", b""), ("x.png", b""), ("x.txt", b"one")], "has 2 pictures"),
        ([("x.jpg", b"")], "has no text that is understood"),
        ([("x.jpg", b""), ("x.txt", b"\xff")], "its texts cannot be read"),
        ([("x.jpg", b""), ("x.json", b"{")], "its texts cannot be read"),
        ([("x.jpg", b""), ("x.json", b"[]")], "holds no object"),
        ([("../x.jpg", b""), ("../x.txt", b"one")], "cannot be a file's"),
    ],
)
def test_a_bad_sample_of_a_shard_is_rejected(tmp_path: Path, sample: list[tuple[str, bytes]], message: str) -> None:
    dataset = read_dataset(shard(tmp_path / "x.tar", [*sample, *MEMBERS]))
    assert len(dataset.samples) == 3
    assert [message in rejection.reason for rejection in dataset.rejected] == [True]


def without_last_header(content: bytes) -> bytes:
    place = content.rindex(b"ustar")
    return content[:place] + b"x" + content[place + 1 :]


@pytest.mark.parametrize("damage", [lambda content: b"no tar", lambda content: content[:700], without_last_header])
def test_a_damaged_shard_is_an_error(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    file = shard(tmp_path / "x.tar")
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DataError, match=r"(?s)x\.tar: cannot be read as a tar file .*: replace the file"):
        read_dataset(file)


# Pictures with captions beside them, or without any


def test_pictures_with_sidecars(tmp_path: Path) -> None:
    root = tmp_path / "data"
    pictures(root, *NAMES, "größe/one cat.png", ".thumbs/x.jpg")
    texts = {"one cat.txt": "a cat, größer\n", "größe/one cat.txt": "two, of one name", "deep/er/x.y.caption": "x\r\n"}
    for name, text in texts.items():
        (root / name).write_bytes(text.encode())
    (root / "größe" / "zwei, \u2028 drei.txt").write_bytes(b"\xef\xbb\xbfdrei")
    (root / "LICENSE.txt").write_text("not a caption")
    dataset = read_dataset(root)
    assert {sample.answer for sample in dataset.samples} == {"a cat, größer", "two, of one name", "x", "drei"}
    release(root, tmp_path / "out")
    for name in texts:
        assert (tmp_path / "out" / name).read_bytes() == (root / name).read_bytes()
    # Of two pictures with one name and one caption, each keeps its caption.
    assert (tmp_path / "out" / "größe" / "one cat-2.txt").read_text() == "two, of one name"
    expected = [name for name in released_names(root) if "LICENSE" not in name and ".thumbs" not in name]
    assert tree(tmp_path / "out") == sorted({*expected, "größe/one cat-2.png", "größe/one cat-2.txt"})
    require_round_trip(root, tmp_path / "out")
    (tmp_path / "out" / "one cat.txt").write_text("another cat")
    assert any("fields altered: caption" in problem for problem in verify(tmp_path / "out", root).problems)


@pytest.mark.parametrize(("text", "message"), [(b" \n", "`caption` is empty"), (b"\xff", "is not UTF-8")])
def test_a_bad_sidecar_is_rejected(tmp_path: Path, text: bytes, message: str) -> None:
    pictures(tmp_path, "a.png", "b.png")
    (tmp_path / "a.txt").write_bytes(text)
    dataset = read_dataset(tmp_path)
    assert [sample.image.name for sample in dataset.samples] == ["b.png"]
    assert message in dataset.rejected[0].reason


def test_folders_that_are_links_are_left_out_and_told(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "data", tmp_path / "disk"
    pictures(root, "a.png")
    pictures(elsewhere, "b.png")
    (root / "more").symlink_to(elsewhere)
    dataset = read_dataset(root)
    assert [sample.image.name for sample in dataset.samples] == ["a.png"]
    assert [one.where for one in dataset.rejected] == ["more"]
    assert "is a link to a folder, which is not followed" in dataset.rejected[0].reason


def test_what_is_hidden_is_not_even_opened(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png")
    (tmp_path / ".trash").mkdir()
    (tmp_path / ".trash" / "x.csv").write_text("image,caption")
    assert len(read_dataset(tmp_path).samples) == 1


def test_a_stale_link_is_not_written_through(tmp_path: Path) -> None:
    root, out = tmp_path / "data", tmp_path / "out"
    pictures(root, "a.png")
    (root / "t.csv").write_text("image,question,answer\na.png,what is it?,dog\n")
    before = (root / "t.csv").read_bytes()
    out.mkdir()
    (out / "t.csv.partial").symlink_to(root / "t.csv")
    with replacing(out / "t.csv") as partial:
        partial.write_text("released")
    assert (root / "t.csv").read_bytes() == before


def test_pictures_without_text(tmp_path: Path) -> None:
    root = tmp_path / "data"
    pictures(root, *NAMES)
    assert {(sample.question, sample.answer) for sample in read_dataset(root).samples} == {(None, "")}
    release(root, tmp_path / "out", lost=1)
    assert tree(tmp_path / "out") == ["README.md", "deep/er/x.y.png", "größe/zwei, \u2028 drei.png", "one cat.png"]
    require_round_trip(root, tmp_path / "out", recorded=False)


def test_sidecars_in_any_letter_case_and_with_both_suffixes(tmp_path: Path) -> None:
    root = tmp_path / "data"
    pictures(root, "UP.JPG", "a.jpg", "a.png", "b.png")
    texts = {"UP.TXT": "up", "a.jpg.txt": "a photo", "a.png.Caption": "a drawing", "B.txt": "b"}
    for name, text in texts.items():
        (root / name).write_text(text)
    assert [sample.answer for sample in read_dataset(root).samples] == ["up", "a photo", "a drawing", "b"]
    release(root, tmp_path / "out")
    assert {"UP.TXT", "a.png.Caption", "b.txt"} < set(tree(tmp_path / "out"))
    require_round_trip(root, tmp_path / "out")


@pytest.mark.parametrize("name", ["a.gif", "a.avif", "a.jp2", "a.ppm"])
def test_pictures_of_other_formats_are_read(tmp_path: Path, name: str) -> None:
    root = tmp_path / "data"
    pictures(root, "b.png")
    Image.open(root / "b.png").save(root / name)
    (root / f"{name}.txt").write_text("a")
    (root / "b.txt").write_text("b")
    release(root, tmp_path / "out")
    assert tree(tmp_path / "out") == ["README.md", "a.png", "a.png.txt", "b.png", "b.txt"]
    require_round_trip(root, tmp_path / "out")


def test_pictures_that_are_not_read_are_reported(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png")
    for name in ("IMG_1.HEIC", "raw/x.cr3", "notes.md", ".hidden.heic"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    dataset = read_dataset(tmp_path)
    assert [sample.image.name for sample in dataset.samples] == ["a.png"]
    assert [(rejection.where, rejection.reason) for rejection in dataset.rejected] == [
        ("IMG_1.HEIC", "is a HEIC photo: export it as JPEG or PNG"),
        ("raw/x.cr3", "is a camera's raw data: export it as JPEG or PNG"),
    ]
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match=r"none of its 2 rows can be used: IMG_1\.HEIC: is a HEIC photo"):
        read_dataset(tmp_path)
