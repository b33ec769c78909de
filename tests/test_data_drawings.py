"""Laboratory tasks by name: what is asked, that it is the same everywhere, and the folder it is drawn into."""

from __future__ import annotations

import hashlib
import os
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

import pretrain_zoo
from mmguard.data import drawings as tasks
from mmguard.data.images import load_image
from mmguard.data.readers import read_dataset
from mmguard.errors import DataError
from mmguard.zoo.drawings import DOMAINS, HELD_OUT, TASKS, task_sample


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "mmguard" / "drawings"


def pixels(name: str) -> list[bytes]:
    return [load_image(sample.image).numpy().tobytes() for sample in read_dataset(name).samples]


@pytest.mark.parametrize("domain", TASKS)
def test_every_answer_is_held_out(domain: str) -> None:
    samples = read_dataset(f"drawings:{domain}:train:60").samples
    assert len({sample.image for sample in samples}) == 60, "one question a picture"
    assert load_image(samples[0].image).shape == (3, 96, 96)
    assert {sample.split for sample in samples} == {"train"}
    answers = Counter(sample.answer for sample in samples)
    assert set(answers) <= HELD_OUT
    assert len(answers) >= 4
    assert max(answers.values()) <= 30, "no answer is right most of the time"
    assert all((domain == "choices") == bool(sample.options) for sample in samples)


def test_what_is_drawn_depends_on_domain_split_and_number_alone(cache: Path) -> None:
    few, more = (read_dataset(f"drawings:scenes:train:{count}") for count in (3, 5))
    assert few.rows == more.rows[:3]
    assert pixels("drawings:scenes:train:3") == pixels("drawings:scenes:train:5")[:3]
    # The generator as Python's documentation pins it down, and what it decides before any library draws.
    image, question = task_sample(random.Random("scenes:train:0"), "scenes", (96, 96))
    assert few.rows[0] == {
        "file_name": "images/0000.png", "question": question.text, "answer": question.answer, "split": "train"
    }  # fmt: skip
    assert np.array_equal(np.asarray(image), load_image(few.samples[0].image).permute(1, 2, 0).numpy())


@pytest.mark.parametrize("domain", TASKS)
def test_train_and_test_share_no_picture(domain: str) -> None:
    train, test = (pixels(f"drawings:{domain}:{split}:40") for split in ("train", "test"))
    assert len({*train, *test}) == 80


def test_the_split_is_the_one_that_is_asked_for() -> None:
    assert read_dataset("drawings:science:3") == read_dataset("drawings:science:train:3")
    assert read_dataset("drawings:science:3", part="test") == read_dataset("drawings:science:test:3")
    assert read_dataset("drawings:science:3", split="test") == read_dataset("drawings:science:test:3")
    with pytest.raises(DataError, match="choose one of train"):
        read_dataset("drawings:science:train:3", split="test")


def test_five_hundred_pictures_without_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_SIZE", (16, 16))
    assert len(read_dataset("drawings:medical:test").samples) == 500


@pytest.mark.parametrize(
    "name", ["drawings", "drawings:maps", "drawings:scenes:val", "drawings:scenes:0", "drawings:scenes:5:train"]
)
def test_names_are_checked(name: str, cache: Path) -> None:
    with pytest.raises(DataError, match=rf"{name}: write drawings:DOMAIN.* scenes, choices, science, medical,"):
        read_dataset(name)
    assert not cache.exists()


# The folder


def folders(cache: Path) -> list[str]:
    return sorted(str(path.relative_to(cache)) for path in cache.glob("*/*"))


def test_drawn_once_and_again_for_other_code(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tasks.drawings_folder("drawings:medical:train:2", "train")
    written = (folder / "metadata.jsonl").stat().st_mtime_ns
    assert tasks.drawings_folder("drawings:medical:2", "train") == folder
    assert (folder / "metadata.jsonl").stat().st_mtime_ns == written
    monkeypatch.setattr(tasks, "_version", lambda: "other")
    assert tasks.drawings_folder("drawings:medical:2", "train") == cache / "other" / "medical-train-2"
    assert len(folders(cache)) == 2


def test_code_and_libraries_make_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "versions", lambda *names: dict.fromkeys(names, "0"))
    assert tasks._version.__wrapped__() != tasks._version()


def test_drawn_twice_at_once_is_one_folder(cache: Path) -> None:
    """Both find no folder, both draw; the slower one takes what the faster one has put there."""
    name = "drawings:documents:train:4"
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: tasks.drawings_folder(name, "train"), range(4)))
    assert len(set(found)) == 1
    assert len(folders(cache)) == 1, "nothing half-drawn is left"
    assert len(read_dataset(name).samples) == 4


def test_interrupted_drawing_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(image: Image.Image, path: Path) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", broken)
        with pytest.raises(DataError, match=r"No space left.*free space"):
            read_dataset("drawings:scenes:2")
    assert folders(cache) == []
    assert len(read_dataset("drawings:scenes:2").samples) == 2


# Pretraining


def test_pretraining_draws_what_it_always_drew() -> None:
    """The zoo's weights were made with these drawings: laboratory tasks must not move their random stream."""
    rng, drawn = random.Random(0), hashlib.sha256()
    for _ in range(300):
        image, questions = pretrain_zoo.draw(rng)
        drawn.update(repr((tuple(image.shape), questions)).encode())
    drawn.update(repr(rng.getstate()).encode())
    assert drawn.hexdigest() == "c2cf7dfa1ab3c655d842e5c60e96273abd966f628f73b5aa1fa1b7a17d09b255"


@pytest.mark.parametrize(
    ("domain", "mean"),
    [
        ("scenes", 142.5925), ("choices", 155.9521), ("science", 208.8185), ("medical", 73.3077),
        ("scene-text", 124.1003), ("documents", 225.4375),
    ],
)  # fmt: skip
def test_pretraining_pictures_look_as_they_did(domain: str, mean: float) -> None:
    """To a twentieth of a level, which leaves room for other versions of Pillow's font renderer and of FFTs."""
    rng = random.Random(1)
    levels = [np.asarray(DOMAINS[domain](rng, (96, 96))[0]).mean() for _ in range(30)]
    assert np.mean(levels) == pytest.approx(mean, abs=0.05)
