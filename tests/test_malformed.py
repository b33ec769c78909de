"""Malformed input: the bad sample is left out with a clear message, and the rest of the run completes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import datasets
import pytest
from typer.testing import CliRunner

import tiny
from malformed import (
    GOOD_PICTURES,
    ODD,
    PAYLOAD,
    TEXT_FILES,
    Case,
    captioned,
    files,
    lines,
    picture,
    quarantined,
    strange_line,
    text_of,
    unreadable,
)
from mmguard.cli import app
from mmguard.config import ProtectConfig
from mmguard.errors import DataError
from mmguard.lvlm.loading import load_surrogate
from mmguard.lvlm.surrogate import Surrogate
from mmguard.protection.run import protect
from mmguard.protection.survey import survey
from mmguard.release.verify import verify

pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
NOISE = ProtectConfig(variant="random-noise", eps=4)
QUARANTINED, UNREADABLE = quarantined(), unreadable()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def built(case: Case, tmp_path: Path) -> Path:
    root = tmp_path / "data"
    root.mkdir()
    case.build(root)
    return root


def by_name(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


def test_no_case_is_there_twice() -> None:
    names = [case.name for case in (*QUARANTINED, *UNREADABLE)]
    assert len(set(names)) == len(names)
    assert len(names) >= 300


@by_name(QUARANTINED)
def test_the_bad_sample_is_left_out_and_the_rest_protected(case: Case, tmp_path: Path) -> None:
    root, out = built(case, tmp_path), tmp_path / "out"
    before = contents(root)
    release = protect(root, [], NOISE, out)
    assert contents(root) == before
    assert (release.images, release.samples) == (2, 2)
    failure, *others = release.failed
    assert all(re.match(r"captions\.json images", one.where) for one in others)  # COCO images whose caption is lost
    message = f"{failure.where}: {failure.reason}"
    assert re.search(case.says, message, re.DOTALL)
    assert len(message) < 1500
    assert verify(out, root).problems == []
    published = b"".join(contents(out).values())
    assert b"unwanted" not in published
    originals = (content for name, content in before.items() if not name.endswith((".txt", ".jsonl", ".json", ".csv")))
    assert not any(len(content) > 30 and content in published for content in originals)


@by_name(UNREADABLE)
def test_a_file_that_cannot_be_read_is_named(case: Case, tmp_path: Path) -> None:
    root = built(case, tmp_path)
    before = contents(root)
    with pytest.raises(DataError) as raised:
        protect(root, [], NOISE, tmp_path / "out")
    message = str(raised.value)
    assert re.search(case.says, message, re.DOTALL)
    assert case.name.partition(":")[0] in message
    assert contents(root) == before
    assert not (tmp_path / "out").exists()


def test_a_line_of_100_megabytes(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    row = {"file_name": "images/bad.png", "question": "unwanted" * 13_107_200, "answer": "yes"}
    strange_line(json.dumps(row).encode(), "metadata.jsonl", root)
    release = protect(root, [], NOISE, tmp_path / "out")
    assert release.images == 2
    assert [failure.reason.partition(",")[0] for failure in release.failed] == ["`question` has 104857600 characters"]


@pytest.mark.parametrize(("name", "content"), ODD.values(), ids=ODD)
def test_odd_pictures_are_protected_like_others(name: str, content: bytes, tmp_path: Path) -> None:
    root, out = tmp_path / "data", tmp_path / "out"
    files(root, {name: content, **GOOD_PICTURES})
    rows = [{"file_name": f"images/{picture}", "caption": "a good one"} for picture in (name, *GOOD_PICTURES)]
    (root / "metadata.jsonl").write_bytes(lines(rows))
    called = CliRunner().invoke(
        app, ["protect", str(root), "-o", str(out), "--variant", "random-noise", "--log", str(tmp_path / "log")]
    )
    assert called.exit_code == 0, called.output
    # Nothing that a name holds reaches the terminal, but for its own colours of the table.
    assert not re.search("[\u202e\udcff\r]|\x1b\\[2J", called.output)
    assert verify(out, root).problems == []
    published = contents(out)
    assert len(published) == 5
    assert not any(PAYLOAD[:25] in file for file in published.values())


@pytest.mark.parametrize(("write", "file", "change"), TEXT_FILES.values(), ids=TEXT_FILES)
def test_odd_text_files_are_read_like_others(
    write: Callable[[Path, Mapping[str, bytes]], None], file: str, change: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    root, out = tmp_path / "data", tmp_path / "out"
    write(root, GOOD_PICTURES)
    (root / file).write_bytes(change((root / file).read_bytes()))
    release = protect(root, [], NOISE, out)
    assert (release.images, release.failed) == (2, [])
    assert verify(out, root).problems == []


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Surrogate:
    return load_surrogate(tiny.build("qwen3_vl", tmp_path_factory.mktemp("qwen")), device="cpu")


FAST = ProtectConfig(variant="bph", rounds=1, inner_steps=1, pgd_steps=1, top_c=2, trigger_words=2)
SHAPES = {"long.png": picture(5, size=(900, 4)), "dot.png": picture(6, size=(1, 1)), **GOOD_PICTURES}


def test_what_a_surrogate_does_not_take_is_left_out(qwen: Surrogate, tmp_path: Path) -> None:
    """Its processor refuses very long pictures, a control token in a text would be read as one, and texts can be too
    long."""
    root, out = tmp_path / "data", tmp_path / "out"
    files(root, SHAPES)
    rows = [{"file_name": f"images/{name}", **text_of(name)} for name in SHAPES]
    # The others that ask about the same picture stay.
    rows.append(rows[-1] | {"id": "odd", "question": "what is <|im_end|> here?"})
    rows.append(rows[-1] | {"id": "endless", "question": "what is here? " * 2000})
    (root / "metadata.jsonl").write_bytes(lines(rows))
    foreseen = survey(root, [qwen], FAST, out)
    release = protect(root, [qwen], FAST, out)
    assert foreseen.left_out == release.failed
    assert (release.images, release.samples) == (foreseen.images, foreseen.samples) == (3, 3)
    reasons = {Path(failure.where).name: failure.reason for failure in release.failed}
    assert "900 x 4 pixels: " in reasons["long.png"]
    assert "takes no such image (absolute aspect ratio" in reasons["long.png"]
    assert "contains '<|im_end|>', a control token of the model: take it out" in reasons["odd"]
    assert reasons["endless"].startswith("a text of more than 4,096 tokens: ")
    assert reasons["endless"].endswith("was not made for it: shorten it, or split it")
    assert verify(out, root).problems == []


def test_pictures_that_cannot_be_captioned_are_left_out(qwen: Surrogate, tmp_path: Path) -> None:
    root, out = tmp_path / "data", tmp_path / "out"
    captioned(root, SHAPES)
    for file in root.glob("*.txt"):
        file.unlink()
    release = protect(root, [qwen], FAST, out)
    reasons = {Path(failure.where).name: failure.reason for failure in release.failed}
    assert "takes no such image" in reasons.pop("long.png")
    assert all("says nothing of it" in reason for reason in reasons.values())
    assert len(list(out.glob("*.png"))) == 3 - len(reasons) > 0
