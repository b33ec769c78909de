"""`mmguard protect --dry-run`: it says what the run would do, leaves the disk alone, and is about right."""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from PIL import Image
from typer.testing import CliRunner

import tiny
from mmguard.cli import app
from mmguard.config import ImageFormat, ProtectConfig
from mmguard.data.readers import read_dataset
from mmguard.errors import ConfigError, DataError, ReleaseError
from mmguard.protection import estimate as module
from mmguard.protection import survey as surveying
from mmguard.protection.estimate import _extrapolated, _few, _Round, _spread
from mmguard.protection.run import protect
from mmguard.protection.survey import Survey, survey

FAST = ProtectConfig(rounds=2, inner_steps=1, pgd_steps=2, top_c=4, eps=6, trigger_words=2, batch_size=4)
FLAGS = ("--rounds", "1", "--inner-steps", "1", "--pgd-steps", "1", "--top-c", "2", "--trigger-words", "2")


@pytest.fixture(scope="module")
def model() -> str:
    return str(tiny.built("llava"))


def write(root: Path, rows: list[dict[str, str]], sizes: dict[str, tuple[int, int]]) -> Path:
    root.mkdir()
    for name, size in sizes.items():
        Image.effect_noise(size, 80).convert("RGB").save(root / name)
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Two pictures with three questions, one with captions only, one that is broken and one that is missing."""
    question = {"question": "what is it?", "answer": "red"}
    rows = [
        {"file_name": "a.png", **question},
        {"file_name": "a.png", **question},
        {"file_name": "b.png", **question},
        {"file_name": "c.png", "caption": "a red cup"},
        {"file_name": "c.png", "caption": "a cup"},
        {"file_name": "broken.png", **question},
        {"file_name": "missing.png", **question},
    ]
    root = write(tmp_path / "mixed", rows, {"a.png": (40, 40), "b.png": (32, 32), "c.png": (30, 20)})
    (root / "broken.png").write_bytes(b"not an image")
    return root


def listing(root: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder with its time and size."""
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in [root, *root.rglob("*")]}


def call(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_what_would_be_done_is_said_and_nothing_is_written(
    mixed: Path, tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = listing(tmp_path)
    code, out, _ = call("protect", mixed, "--dry-run", "--surrogate", model, *FLAGS, "--json")
    assert listing(tmp_path) == before
    assert code == 3  # as the run's: something would be left out
    found = json.loads(out)
    counted = ("samples", "images", "without_question", "triggers", "captions", "wordless", "shards")
    assert [found[name] for name in counted] == [5, 3, 1, 3, 2, 0, 1]
    assert found["surrogates"] == [model]
    assert (found["device"], found["format"]) == ("cpu", "image-folder")
    assert found["out"] == str(tmp_path / "mixed-release")
    reasons = {os.path.basename(one["where"]): one["reason"] for one in found["left_out"]}
    assert "missing.png is not in" in reasons["metadata.jsonl:7"]
    assert "cannot be decoded" in reasons["broken.png"]
    assert found["cost"]["working_bytes"] == 2 * 3 * (40 * 40 + 32 * 32 + 30 * 20)
    assert list(found["cost"]["seconds"]) == ["Loading", "Reading", "Adapting", "Perturbing", "Searching", "Writing"]
    assert "One round was timed on 2 of the pictures" in found["cost"]["method"]


def test_people_get_tables(mixed: Path, tmp_path: Path, model: str) -> None:
    code, out, _ = call("protect", mixed, "-o", tmp_path / "out", "--dry-run", "--surrogate", model, *FLAGS)
    assert code == 3
    text = " ".join(out.split())
    for said in ("images without a question │ 1 ", "questions that get a trigger │ 3 ", "captions left untouched │ 2 "):
        assert said in text
    assert "broken.png" in re.sub(r"[│\s]", "", out)  # a long path is broken anywhere
    assert "about" in text
    assert "Dry run: nothing was written. One round was timed on" in text


def test_a_whole_dataset_is_exit_code_0(tmp_path: Path, model: str) -> None:
    code, _, _ = call("protect", "easy-vqa:train:2", "-o", tmp_path / "o", "--dry-run", "--surrogate", model, *FLAGS)
    assert code == 0
    assert not (tmp_path / "o").exists()


def test_variants_say_what_they_leave(mixed: Path, tmp_path: Path, model: str) -> None:
    noise = survey(mixed, [model], ProtectConfig(variant="random-noise"), tmp_path / "o")
    assert (noise.triggers, noise.surrogates) == (0, [])
    assert list(noise.cost.seconds) == ["Reading", "Writing"]
    text = survey(
        mixed, [model], ProtectConfig(variant="text", rounds=1, inner_steps=1, top_c=2, trigger_words=1), tmp_path / "o"
    )
    assert (text.triggers, text.cost.working_bytes) == (3, 0)
    assert "Perturbing" not in text.cost.seconds


def test_pictures_without_text_are_counted_and_captioned_for_the_estimate(tmp_path: Path, model: str) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    for number in range(3):
        Image.effect_noise((40, 40), 80).convert("RGB").save(root / f"{number}.png")
    found = survey(root, [model], FAST, tmp_path / "o")
    assert (found.wordless, found.captions, found.triggers, found.without_question) == (3, 0, 0, 3)
    assert found.cost.seconds["Captioning"] > 0
    assert found.cost.seconds["Searching"] == 0


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rows = [{"file_name": f"{n}.png", "question": "what is it?", "answer": "red"} for n in range(16)]
    return write(tmp_path / "photos", rows, {f"{n}.png": (30 + 2 * n, 40) for n in range(16)})


def test_the_estimate_is_right_within_a_factor(
    photos: Path, tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Time of this process's threads on a processor: what else the machine does in the meantime does not count.
    for timing in (module, surveying):
        monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=time.process_time))
    found = survey(photos, [model], FAST, tmp_path / "release")
    began = time.process_time()
    release = protect(photos, [model], FAST, tmp_path / "release")
    spent = time.process_time() - began
    assert spent / 4 < found.seconds < 4 * spent
    size = sum(path.stat().st_size for path in release.path.rglob("*"))
    assert size / 1.5 < found.cost.release_bytes < 1.5 * size
    assert found.free_bytes > found.cost.release_bytes


def test_the_estimate_follows_the_format(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    for number in range(3):
        Image.linear_gradient("L").convert("RGB").save(root / f"{number}.jpg", quality=80)
    sizes = {}
    for name in ("keep", "png"):
        config = ProtectConfig(variant="random-noise", format=cast("ImageFormat", name))
        sizes[name] = survey(root, [], config, tmp_path / name).cost.release_bytes
        release = protect(root, [], config, tmp_path / name)
        assert release.pictures["bytes"] / 1.1 < sizes[name] < 1.1 * release.pictures["bytes"]
    assert sizes["keep"] < sizes["png"] / 2


def test_contained_pictures_need_room_twice(tmp_path: Path) -> None:
    import datasets

    image = Image.effect_noise((40, 40), 80).convert("RGB")
    rows = {"image": [image] * 2, "question": ["what is it?"] * 2, "answer": ["red"] * 2}
    root = tmp_path / "data"
    root.mkdir()
    kind = datasets.Features(
        {"image": datasets.Image(), **dict.fromkeys(("question", "answer"), datasets.Value("string"))}
    )
    table = datasets.Dataset.from_dict(rows, features=kind)
    for part in range(2):
        table.select([part]).to_parquet(str(root / f"train-{part}.parquet"))
    found = survey(root, [], ProtectConfig(variant="random-noise"), tmp_path / "o")
    assert (found.format, found.shards, found.images) == ("parquet", 2, 2)
    assert found.cost.working_bytes == max(2 * 3 * 40 * 40, found.cost.release_bytes)


@pytest.mark.parametrize("inner_steps", [0, 1, 7])
def test_a_round_is_multiplied(inner_steps: int, mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ProtectConfig(rounds=3, inner_steps=inner_steps)
    seconds = _extrapolated(_Round(step=1.0, merge=0.5, sample=10.0, question=100.0), read_dataset(mixed), config)
    # broken.png is not told from others here: six samples, four of them questions.
    assert seconds == {"Adapting": 3 * (inner_steps + 0.5), "Perturbing": 3 * 60.0, "Searching": 3 * 400.0}


def test_patience_bounds_what_is_timed(
    photos: Path, tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 1e-9)
    assert "timed on 1 of the pictures" in survey(photos, [model], FAST, tmp_path / "o").cost.method


def test_pictures_are_taken_from_small_to_large_with_questions_first(mixed: Path) -> None:
    data = read_dataset(mixed)
    data = replace(data, samples=[sample for sample in data.samples if sample.image.name != "broken.png"])
    few = _few(
        data, {sample.image: sample.image.stat().st_size for sample in data.samples}, ProtectConfig(batch_size=2)
    )
    assert [sample.image.name for sample in few.samples] == ["b.png", "a.png", "a.png"]
    assert _spread([0, 1, 2, 3, 4, 5], 3) == [1, 3, 5]
    assert _spread([0, 1], 9) == [0, 1]


def test_it_refuses_what_the_run_would(mixed: Path, tmp_path: Path, model: str) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ReleaseError, match="is not empty"):
        survey(mixed, [model], FAST, tmp_path / "full")
    with pytest.raises(ReleaseError, match="overlaps the dataset"):
        survey(mixed, [model], FAST, mixed / "release")
    with pytest.raises(ConfigError, match="changes nothing"):
        survey(mixed, [model], ProtectConfig(eps=0, trigger_words=0), tmp_path / "o")
    for name in "abc":
        (mixed / f"{name}.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="none of its 4 images can be protected"):
        survey(mixed, [model], FAST, tmp_path / "o")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--dry-run", "--preview", "2"), "exclude each other"),
        (("--dry-run", "--log", "run.log"), "--log is for protections"),
        (("--preview", "2", "--log", "run.log"), "--log is for protections"),
        ((), "--out OUT"),
        (("--preview", "0"), "should be greater than or equal to 1"),
    ],
)
def test_flags_that_do_not_go_together(
    flags: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = call("protect", "easy-vqa:train:2", *flags)
    assert code == 2
    assert message in " ".join(err.replace("│", " ").split())
    assert list(tmp_path.iterdir()) == []


def test_a_survey_is_plain_data(mixed: Path, tmp_path: Path) -> None:
    found = survey(mixed, [], ProtectConfig(variant="random-noise"), tmp_path / "o")
    assert isinstance(found, Survey)
    values = json.loads(json.dumps(found.to_dict()))
    assert values["seconds"] == pytest.approx(sum(values["cost"]["seconds"].values()))
