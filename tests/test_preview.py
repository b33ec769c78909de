"""`mmguard protect --preview`: a page that shows what a release would hold, and that nobody takes for one."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import tiny
from mmguard.cli import app
from mmguard.config import ProtectConfig
from mmguard.data import readers
from mmguard.data.readers import read_dataset
from mmguard.errors import ConfigError, DataError, ReleaseError
from mmguard.protection.preview import preview
from mmguard.protection.run import protect
from mmguard.release.publish import publish
from mmguard.release.verify import verify

FAST = ProtectConfig(rounds=1, inner_steps=1, pgd_steps=2, top_c=4, eps=6, trigger_words=2, batch_size=4)
EVIL = "what is <script>alert(1)</script> here?"


@pytest.fixture(scope="module")
def model() -> str:
    return str(tiny.built("llava"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three pictures: one with two questions, one with a caption, one with a question that is no good HTML."""
    root = tmp_path / "photos"
    root.mkdir()
    for name in "abc":
        Image.effect_noise((40, 32), 80).convert("RGB").save(root / f"{name}.png")
    rows = [
        {"file_name": "a.png", "question": "what is it?", "answer": "red"},
        {"file_name": "a.png", "question": "is it a cup?", "answer": "yes"},
        {"file_name": "b.png", "caption": "a blue cup"},
        {"file_name": "c.png", "question": EVIL, "answer": "<b>"},
    ]
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def pictures(page: str) -> list[np.ndarray]:
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    return [np.asarray(Image.open(BytesIO(base64.b64decode(one))).convert("RGB")).astype(int) for one in found]


def test_the_page_shows_what_a_release_of_the_same_samples_holds(photos: Path, tmp_path: Path, model: str) -> None:
    made = preview(photos, [model], FAST, tmp_path / "preview", samples=4)
    assert (made.images, made.samples, made.failed) == (3, 4, [])
    page = made.page.read_text()
    release = protect(photos, [model], FAST, tmp_path / "release")
    record = json.loads((release.record / "record.json").read_text())
    marked = [mark.split() for mark in re.findall("<mark>(.*?)</mark>", page)]
    assert marked == [entry["words"] for entry in record["samples"] if entry["words"]]
    assert len(marked) == 3
    images = pictures(page)
    for number, name in enumerate("abc"):
        before, after, difference = images[3 * number : 3 * number + 3]
        assert np.array_equal(before, np.asarray(Image.open(photos / f"{name}.png")))
        assert np.array_equal(after, np.asarray(Image.open(release.path / f"{name}.png")))
        assert 0 < abs(after - before).max() <= 6
        assert np.array_equal(difference, np.clip((after - before) * 16 + 128, 0, 255))


def test_the_page_shows_jpeg_files_as_they_are_decoded(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    Image.linear_gradient("L").convert("RGB").save(root / "a.jpg", quality=85)
    config = ProtectConfig(variant="random-noise", eps=6, format="keep")
    before, after, _ = pictures(preview(root, [], config, tmp_path / "preview", samples=1).page.read_text())
    release = protect(root, [], config, tmp_path / "release")
    assert release.pictures["formats"] == {"JPEG": 1}
    assert np.array_equal(after, np.asarray(Image.open(release.path / "a.jpg")))
    assert 0 < abs(after - before).max() <= 6


def test_the_page_stands_alone_and_escapes(photos: Path, tmp_path: Path, model: str) -> None:
    page = preview(photos, [model], FAST, tmp_path / "preview", samples=4).page.read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert all(address.startswith("data:image/png;") for address in re.findall(r'(?:src|href)="([^"]*)"', page))
    assert "<title>Preview, not a release</title>" in page
    assert "Do not publish it" in page
    assert "No question: the text is the answer, and stays." in page
    assert "The first 4 samples (3 images)" in page


@pytest.mark.parametrize(("samples", "images"), [(1, 1), (2, 1), (3, 2), (99, 3)])
def test_only_the_first_samples_are_protected(
    samples: int, images: int, photos: Path, tmp_path: Path, model: str
) -> None:
    made = preview(photos, [model], FAST, tmp_path / "preview", samples=samples)
    assert (made.samples, made.images) == (min(samples, 4), images)
    assert len(pictures(made.page.read_text())) == 3 * images


def test_a_limit_holds_as_well(photos: Path, tmp_path: Path, model: str) -> None:
    assert preview(photos, [model], FAST, tmp_path / "p", samples=4, limit=1).samples == 2


def test_what_misleads_is_sought_in_all_of_the_dataset_which_is_read_once(
    photos: Path, tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = '{"file_name": "none.png", "question": "what is it?", "answer": "green"}\n'
    metadata = photos / "metadata.jsonl"
    metadata.write_text(broken + metadata.read_text() + broken)
    opened: list[Path] = []
    open_path = readers.formats.open_path
    monkeypatch.setattr(readers.formats, "open_path", lambda path: (opened.append(path), open_path(path))[1])
    aims: list[str] = []
    monkeypatch.setattr("mmguard.protection.preview.optimise", lambda items, *_: aims.extend(items[0].decoys))
    made = preview(photos, [model], replace(FAST, variant="mislead"), tmp_path / "p", samples=1)
    assert opened == [photos]
    assert aims == ["<b>"], "the only answer that is not right of this picture"
    assert (made.images, made.samples) == (1, 1)
    assert [one.where for one in made.failed] == ["metadata.jsonl:1"], "what comes later is not of the first"


def test_words_between_words_are_marked_where_they_stand(photos: Path, tmp_path: Path) -> None:
    config = ProtectConfig(variant="random-words", trigger_words=2, trigger_place="inside")
    page = preview(photos, [str(tiny.built("llava"))], config, tmp_path / "p", samples=1).page.read_text()
    assert re.search(r"<p>what(?: is)? <mark>[a-zA-Z]+ [a-zA-Z]+</mark>(?: is)? it\? → red</p>", page)


def test_nothing_takes_it_for_a_release(photos: Path, tmp_path: Path, model: str) -> None:
    folder = tmp_path / "preview"
    preview(photos, [model], FAST, folder, samples=2)
    assert [path.name for path in folder.iterdir()] == ["preview.html"]
    assert not (tmp_path / "preview.record").exists()
    with pytest.raises(ReleaseError):
        verify(folder, photos)
    with pytest.raises(DataError):
        read_dataset(folder)
    with pytest.raises(ReleaseError, match="so that it is no release"):
        publish(folder, "owner/name")
    with pytest.raises(ReleaseError, match="is not empty"):
        protect(photos, [model], FAST, folder)


def test_a_folder_with_anything_else_is_left_alone(photos: Path, tmp_path: Path, model: str) -> None:
    release = protect(photos, [], ProtectConfig(variant="random-noise"), tmp_path / "release")
    with pytest.raises(ReleaseError, match="something else than a preview"):
        preview(photos, [model], FAST, release.path, samples=1)
    with pytest.raises(ReleaseError, match="overlaps the dataset"):
        preview(photos, [model], FAST, photos / "preview", samples=1)
    assert verify(release.path, photos).ok


def test_a_later_preview_takes_an_earlier_ones_place(photos: Path, tmp_path: Path, model: str) -> None:
    preview(photos, [model], FAST, tmp_path / "p", samples=1)
    second = preview(photos, [model], FAST, tmp_path / "p", samples=4)
    assert "The first 4 samples" in second.page.read_text()


def test_no_samples_is_no_preview(photos: Path, tmp_path: Path, model: str) -> None:
    with pytest.raises(ConfigError, match="give 1 or more samples"):
        preview(photos, [model], FAST, tmp_path / "p", samples=0)


def test_the_command_line_without_a_folder_and_with_a_broken_picture(
    photos: Path, tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "c.png").write_bytes(b"no image")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path)
    flags = ("--rounds", "1", "--inner-steps", "1", "--pgd-steps", "1", "--top-c", "2")
    result = CliRunner().invoke(app, ["protect", str(photos), "--preview", "4", "--surrogate", model, *flags, "--json"])
    assert result.exit_code == 3
    found = json.loads(result.stdout)
    page = Path(found["preview"])
    assert page.parent.parent == tmp_path / "temporary"
    assert page.parent.name.startswith("mmguard-preview-")
    assert (found["images"], found["samples"]) == (2, 3)
    assert "cannot be decoded" in found["failed"][0]["reason"]
    assert "cannot be decoded" in page.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "temporary"]
