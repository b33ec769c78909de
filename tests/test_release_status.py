"""The table of files at the end of a protection: complete, truthful, and short on the screen."""

from __future__ import annotations

import csv
import json
from io import StringIO
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

import tiny
from mmguard.config import ProtectConfig
from mmguard.protection.run import protect
from mmguard.release.status import FileStatus, to_csv
from mmguard.screen import duration, files_table, totals


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    root = tmp_path / "mixed"
    (root / "images").mkdir(parents=True)
    for name in ("a", "b"):
        Image.effect_noise((40, 40), 80).convert("RGB").save(root / "images" / f"{name}.png")
    (root / "images" / "broken.png").write_bytes(b"not an image")
    question = {"question": "what is it?", "answer": "red"}
    rows = [
        {"file_name": "images/a.png", **question},
        {"file_name": "images/a.png", **question},
        {"file_name": "images/b.png", "caption": "a cup"},
        {"file_name": "images/broken.png", **question},
        {"file_name": "images/broken.png", **question},
        {"file_name": "images/missing.png", **question},
    ]
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def test_every_file_is_there_once_with_what_became_of_it(mixed: Path, tmp_path: Path) -> None:
    config = ProtectConfig(variant="random-words", trigger_words=2)
    release = protect(mixed, [str(tiny.built("llava"))], config, tmp_path / "release", device="cpu")
    found = {file.file: file for file in release.files}
    assert len(found) == len(release.files) == 4
    assert found["images/a.png"] == FileStatus("images/a.png", "protected", 2, 0, 4)
    assert found["images/b.png"] == FileStatus("images/b.png", "unchanged", 1)
    broken, missing = found["images/broken.png"], found["metadata.jsonl:6"]
    assert (broken.status, broken.samples, missing.status) == ("left out", 2, "left out")
    assert "cannot be decoded" in broken.reason
    assert "missing.png is not in" in missing.reason
    with (tmp_path / "release.record" / "files.csv").open(newline="") as file:
        assert [row["file"] for row in csv.DictReader(file)] == list(found)
    assert not (release.path / "files.csv").exists()


def test_the_largest_change_of_a_picture_is_in_the_table(mixed: Path, tmp_path: Path) -> None:
    release = protect(mixed, [], ProtectConfig(variant="random-noise", eps=3), tmp_path / "release")
    found = {file.file: (file.status, file.change, file.words) for file in release.files}
    assert found["images/a.png"] == found["images/b.png"] == ("protected", 3, 0)


def test_any_name_and_reason_survives_the_file() -> None:
    names = ['a,"b".png', "two\nlines.png", "größe.png"]
    text = to_csv([FileStatus(name, "left out", 1, reason="no, really") for name in names])
    assert [row["file"] for row in csv.DictReader(StringIO(text, newline=""))] == names
    assert "\\udcff.png" in to_csv([FileStatus("\udcff.png", "protected", 1)])


def test_the_screen_shows_what_wants_attention_and_totals() -> None:
    files = [FileStatus(f"{n}.png", "protected", 2, 8, 5) for n in range(50)]
    files += [FileStatus("[bold]x.png", "left out", 1, reason="broken [/]")]
    assert totals(files) == {"left out": 1, "unchanged": 0, "protected": 50}
    table = files_table(files)
    assert len(table.rows) <= 20 + 1 + 3
    screen = StringIO()
    Console(width=80, file=screen).print(table)
    lines = screen.getvalue().splitlines()
    assert "[bold]x.png" in lines[3]
    assert "broken [/]" in lines[3]
    assert any("… and 31 more" in line for line in lines)
    last = [line.replace("│", " ").split() for line in lines[-4:-1]]
    assert last == [["1", "in", "all", "left", "out", "1"], ["0", "in", "all", "unchanged", "0"],
                    ["50", "in", "all", "protected", "100"]]  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min"),
     (273_700, "3 d 4 h")],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
