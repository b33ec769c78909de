"""The six benchmarks, made small: parquet files with the hub's columns, read by `datasets` as it reads the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from datasets import Features, Image, List, Value
from PIL import Image as Pillow

import tiny
from mmguard.auditing.arms import pixel_digest
from mmguard.auditing.run import audit
from mmguard.config import AuditConfig, ProtectConfig
from mmguard.data.benchmarks import BENCHMARKS, NAMES, find
from mmguard.data.readers import read_dataset
from mmguard.data.tasks import score, target_text, user_text
from mmguard.errors import DataError
from mmguard.protection.run import protect
from mmguard.release.verify import verify
from mmguard.types import Sample

TEXT, WORDS = Value("string"), List(Value("string"))
FEATURES = {
    "xai-org/RealworldQA": {"image": Image(), "question": TEXT, "answer": TEXT},
    "Lin-Chen/MMStar": {
        "index": Value("int64"),
        "question": TEXT,
        "image": Image(),
        "answer": TEXT,
        "category": TEXT,
        "l2_category": TEXT,
        "meta_info": {"source": TEXT, "split": TEXT, "image_path": TEXT},
    },
    "derek-thomas/ScienceQA": {
        "image": Image(),
        "question": TEXT,
        "choices": WORDS,
        "answer": Value("int8"),
        "hint": TEXT,
        **dict.fromkeys(["task", "grade", "subject", "topic", "category", "skill", "lecture", "solution"], TEXT),
    },
    "flaviagiammarino/vqa-rad": {"image": Image(), "question": TEXT, "answer": TEXT},
    "lmms-lab/textvqa": {
        "image_id": TEXT,
        "question_id": Value("int32"),
        "question": TEXT,
        "question_tokens": WORDS,
        "image": Image(),
        "image_width": Value("int32"),
        "image_height": Value("int32"),
        "flickr_original_url": TEXT,
        "flickr_300k_url": TEXT,
        "answers": WORDS,
        "image_classes": WORDS,
        "set_name": TEXT,
        "ocr_tokens": WORDS,
    },
    "HuggingFaceM4/DocumentVQA": {
        "questionId": TEXT,
        "question": TEXT,
        "question_types": WORDS,
        "image": Image(),
        "docId": Value("int64"),
        "ucsf_document_id": TEXT,
        "ucsf_document_page_no": TEXT,
        "answers": WORDS,
    },
}
FEATURES["lmms-lab/DocVQA"] = FEATURES["HuggingFaceM4/DocumentVQA"] | {"data_split": TEXT}


class Hub:
    """A folder that stands for the hub."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, hub_id: str, config: str = "default", **splits: list[dict[str, Any]]) -> None:
        """Stores rows by split; columns that a row lacks are null, as they may be on the hub."""
        features = Features(FEATURES[hub_id])
        folder = self._root / hub_id
        files = []
        for split, rows in splits.items():
            full = [dict.fromkeys(features) | row for row in rows]
            datasets.Dataset.from_list(full, features=features).to_parquet(folder / config / f"{split}.parquet")
            files.append({"split": split, "path": f"{config}/{split}.parquet"})
        card = json.dumps({"configs": [{"config_name": config, "data_files": files}]})  # JSON is YAML
        (folder / "README.md").write_text(f"---\n{card}\n---\n", encoding="utf-8")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    load = datasets.load_dataset
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda name, config, split: load(
            str(tmp_path / "hub" / name), config, split=split, cache_dir=tmp_path / "arrow"
        ),
    )
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return Hub(tmp_path / "hub")


def picture(number: int) -> Pillow.Image:
    return Pillow.fromarray(np.random.default_rng(number).integers(0, 256, (6, 5, 3), dtype=np.uint8))


def sampled(hub_id: str, split: str) -> list[Sample]:
    return read_dataset(hub_id, split=split).samples


FILLER = range(100, 130)
"""Pictures enough that a part by image is not empty."""


def both_parts(name: str) -> tuple[list[Sample], list[Sample]]:
    return read_dataset(name).samples, read_dataset(name, part="test").samples


def images(samples: list[Sample]) -> set[str]:
    return {pixel_digest(sample.image) for sample in samples}


def test_realworldqa(hub: Hub) -> None:
    rows = [
        {"image": picture(0), "question": "Which way?\n\nA. Left\nB. Right\nPlease answer directly.", "answer": "B"},
        {"image": picture(1), "question": "How many cars are there?", "answer": "2"},
        {"image": picture(2), "question": "Is it green?", "answer": "Yes"},
        {"image": picture(3), "question": "How many?", "answer": "One"},
        *({"image": picture(n), "question": f"{n}?", "answer": "no"} for n in FILLER),
    ]
    hub.put("xai-org/RealworldQA", test=rows)
    train, test = both_parts("realworldqa")
    asked = {one.question: one for one in train + test}
    letter, number, word, spelled = (asked[row["question"]] for row in rows[:4])
    assert [user_text(one.question, one.options) for one in (letter, number, word)] == [
        row["question"] for row in rows[:3]
    ]
    assert [target_text(one) for one in (letter, number, word)] == ["B", "2", "Yes"]
    assert [score(reply, letter) for reply in ("B", "b.", "B. Right", "A", "Right")] == [1, 1, 1, 0, 0]
    assert [score(reply, number) for reply in ("2", "Two.", "two cars", "3", "B")] == [1, 1, 0, 0, 0]
    assert [score(reply, word) for reply in ("yes", "Yes.", "no")] == [1, 1, 0]
    assert [score(reply, spelled) for reply in ("one", "1", "2")] == [1, 1, 0]


def test_mmstar(hub: Hub) -> None:
    question = "What is it?\nOptions: A: a dog, B: a cat, C: a cow, D: a hen"
    row = {"index": 7, "question": question, "image": picture(0), "answer": "C", "category": "coarse perception"}
    row["meta_info"] = {"source": "MMBench", "split": "val", "image_path": "images/7.jpg"}
    hub.put("Lin-Chen/MMStar", val=[row, *(row | {"image": picture(n)} for n in FILLER)])
    train, test = both_parts("mmstar")
    assert len(train + test) == len(images(train) | images(test)) == len(FILLER) + 1
    sample = test[0]
    assert (sample.question, target_text(sample), sample.options) == (question, "C", ())
    assert [score(reply, sample) for reply in ("C", "(c)", "C: a cow", "Option C", "A", "a cow")] == [1, 1, 1, 1, 0, 0]


def test_scienceqa(hub: Hub) -> None:
    row = {"question": "Which is a magnet?", "choices": ["wood", "iron", "wood"], "task": "closed choice"}
    hub.put(
        "derek-thomas/ScienceQA",
        train=[
            row | {"image": picture(0), "answer": 1, "hint": "Two passages."},
            row | {"image": None, "answer": 0, "hint": "No image."},
            row | {"image": picture(1), "answer": 2, "hint": ""},
        ],
        validation=[row | {"image": picture(2), "answer": 0, "hint": ""}],
        test=[row | {"image": picture(3), "answer": 1, "hint": ""}],
    )
    train, test = both_parts("scienceqa")
    assert read_dataset("scienceqa").rejected == []
    assert [(one.question, target_text(one)) for one in train] == [
        ("Two passages.\nWhich is a magnet?", "B"),
        ("Which is a magnet?", "C"),
    ]
    assert [(target_text(one), one.split) for one in test] == [("B", "test")]
    assert [one.split for one in sampled("derek-thomas/ScienceQA", "validation")] == ["validation"]
    assert user_text(train[1].question, train[1].options).splitlines()[1:4] == ["A. wood", "B. iron", "C. wood"]
    assert [score(reply, train[0]) for reply in ("B", "b. iron", "iron", "A", "wood")] == [1, 1, 1, 0, 0]


def test_vqa_rad(hub: Hub) -> None:
    """Officially the same images are on both sides; here they are not, and none is lost."""
    rows = [{"image": picture(n), "question": f"Is {n} normal?", "answer": ("Yes", "pleural effusion")[n % 2]}
            for n in range(40)]  # fmt: skip
    again = [row | {"question": f"And {n}?"} for n, row in enumerate(rows[:20])]
    hub.put("flaviagiammarino/vqa-rad", train=rows, test=again)
    train, test = both_parts("vqa-rad")
    assert len(train) + len(test) == 60
    assert images(train).isdisjoint(images(test))
    assert len(images(train)) + len(images(test)) == 40
    assert 1 <= len(images(test)) <= 20
    closed, opened = (next(one for one in train if one.answer == answer) for answer in ("Yes", "pleural effusion"))
    assert [score(reply, closed) for reply in ("yes", "Yes.", "no", "yes it is")] == [1, 1, 0, 0]
    assert [score(reply, opened) for reply in ("Pleural effusion.", "a pleural effusion", "effusion")] == [1, 1, 0]


def test_textvqa(hub: Hub) -> None:
    row = {"image_id": "0a", "question": "what brand?", "set_name": "train", "ocr_tokens": ["PEPSI"]}
    answers = ["pepsi"] * 2 + ["Coca Cola"] * 3 + ["coke"] * 5
    hub.put(
        "lmms-lab/textvqa",
        train=[row | {"question_id": 0, "image": picture(0), "answers": answers}],
        validation=[row | {"question_id": 1, "image": picture(1), "answers": ["nokia"] * 9 + ["noki"]}],
        test=[row | {"question_id": 2, "image": picture(2), "answers": [""] * 10}],
    )
    (train,), (test,) = both_parts("textvqa")
    assert (target_text(train), train.answers) == ("coke", tuple(answers))
    scores = [score(reply, train) for reply in ("Coke", "coca-cola", "pepsi", "fanta")]
    assert scores == pytest.approx([1, 0.9, 0.6, 0])
    assert [score(reply, test) for reply in ("nokia", "noki")] == pytest.approx([1, 0.3])
    assert sampled("lmms-lab/textvqa", "test") == read_dataset("textvqa", part="test").samples


@pytest.mark.parametrize("name", ["docvqa", "HuggingFaceM4/DocumentVQA", "huggingfacem4/documentvqa"])
def test_docvqa(hub: Hub, name: str) -> None:
    row = {"question": "What date?", "question_types": ["form"], "docId": 5, "ucsf_document_id": "xfbc0228"}
    hub.put(
        "HuggingFaceM4/DocumentVQA",
        train=[row | {"questionId": "0", "image": picture(0), "answers": ["March 2, 1951", "3/2/51"]}],
        validation=[row | {"questionId": "1", "image": picture(1), "answers": ["1951"]}],
        test=[row | {"questionId": "2", "image": picture(2), "answers": None}],
    )
    (train,), (test,) = both_parts(name)
    assert (target_text(train), train.answers) == ("March 2, 1951", ("March 2, 1951", "3/2/51"))
    scores = [score(reply, train) for reply in ("march 2, 1951", "March 2 1951", "3/2/52", "May")]
    assert scores == pytest.approx([1, 12 / 13, 5 / 6, 0])
    assert [score(reply, test) for reply in ("1951", "1950", "1861", "2000")] == pytest.approx([1, 0.75, 0.5, 0])


def test_docvqa_without_a_training_split(hub: Hub) -> None:
    rows = [{"image": picture(n), "question": "q", "answers": [str(n)], "data_split": "val"} for n in range(30)]
    hub.put("lmms-lab/DocVQA", "DocVQA", validation=rows, test=[rows[0] | {"answers": None}])
    train, test = both_parts("lmms-lab/DocVQA")
    assert sorted(int(one.answer) for one in train + test) == list(range(30))
    assert train
    assert test


def test_a_limit_takes_images_of_the_part(hub: Hub) -> None:
    rows = [{"image": picture(n // 2), "question": f"{n}?", "answer": str(n)} for n in range(60)]
    hub.put("xai-org/RealworldQA", test=rows)
    train, test = both_parts("realworldqa")
    limited = read_dataset("realworldqa", limit=3).samples
    assert [one.answer for one in limited] == [one.answer for one in train[:6]]
    assert [one.answer for one in read_dataset("realworldqa", limit=1, part="test").samples] == [
        one.answer for one in test[:2]
    ]


def test_a_release_keeps_the_metric(hub: Hub, tmp_path: Path) -> None:
    """What a release holds are our fields beside the hub's: read from disk it is the same benchmark."""
    answers = ["coke"] * 7 + ["cola"] * 3
    hub.put("lmms-lab/textvqa", train=[{"image": picture(0), "question": "brand?", "answers": answers}])
    dataset = read_dataset("textvqa")
    (dataset.root / "metadata.jsonl").write_text(json.dumps(dataset.rows[0]), encoding="utf-8")
    (again,) = read_dataset(dataset.root).samples
    assert again == dataset.samples[0]
    assert score("cola", again) == pytest.approx(0.9)


def test_by_name_from_protection_to_audit(hub: Hub, tmp_path: Path) -> None:
    """The name alone says what to protect and what to test on, and the test is scored by the benchmark's metric."""
    answers = ["red"] * 3 + [f"shade {number}" for number in range(7)]
    parts = {
        split: [{"image": picture(n), "question": "colour?", "answers": answers} for n in numbers]
        for split, numbers in (("train", range(4)), ("validation", range(4, 8)))
    }
    hub.put("lmms-lab/textvqa", **parts)
    release = protect("textvqa", [], ProtectConfig(variant="random-noise"), tmp_path / "release")
    assert (release.samples, release.failed) == (4, [])
    assert verify(release.path, "textvqa").problems == []
    config = AuditConfig(seeds=1, epochs=25, batch_size=4, lr=1e-2, bootstrap=100)
    model = tiny.build("llava", tmp_path / "llava")
    report = audit(release.path, "textvqa", "textvqa", [str(model)], config, arms=[], device="cpu")
    assert (report.failures, report.warnings) == ((), ())
    assert report.provenance["test samples"] == 4
    assert report.findings[0].accuracy["clean"] == pytest.approx(0.9)


def test_unknown_metric(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "a.png")
    row = {"file_name": "a.png", "question": "q", "answer": "a"}
    for metric, used in ((None, True), ("anls", True), ("ANLS", False), (["vqa"], False)):
        (tmp_path / "metadata.jsonl").write_text(
            "\n".join(map(json.dumps, [row, row | {"metric": metric}])), encoding="utf-8"
        )
        dataset = read_dataset(tmp_path)
        assert len(dataset.samples) == 1 + used
    assert "`metric` ['vqa'] is unknown: choose from exact, letter, vqa, anls" in dataset.rejected[0].reason


def test_a_column_that_is_gone(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FEATURES, "derek-thomas/ScienceQA", {"image": Image(), "question": TEXT})
    hub.put("derek-thomas/ScienceQA", train=[{"image": picture(0), "question": "q"}])
    with pytest.raises(DataError, match=r"derek-thomas/ScienceQA: has no column 'hint' .*metadata\.jsonl"):
        read_dataset("scienceqa")


def test_a_local_folder_of_that_name_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(0).save(tmp_path / "a.png")
    (tmp_path / "docvqa").mkdir()
    picture(0).save(tmp_path / "docvqa" / "a.png")
    row = {"file_name": "a.png", "question": "mine?", "answer": "a"}
    (tmp_path / "docvqa" / "metadata.jsonl").write_text(json.dumps(row), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert read_dataset("docvqa").samples[0].question == "mine?"


def test_names() -> None:
    assert NAMES == ("realworldqa", "mmstar", "scienceqa", "vqa-rad", "textvqa", "docvqa")
    assert all(find(name).name == name for name in NAMES)
    assert {find(one.hub_id) for one in BENCHMARKS} == set(BENCHMARKS)
    assert {one.hub_id for one in BENCHMARKS} == set(FEATURES)
    assert find("owner/textvqa") is None
