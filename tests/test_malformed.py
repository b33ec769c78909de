"""Malformed input: the bad sample is left out with a clear message, and the rest of the run completes."""

from __future__ import annotations

import re
from pathlib import Path

import datasets
import pytest

from malformed import Case, quarantined, unreadable
from mmguard.config import ProtectConfig
from mmguard.errors import DataError
from mmguard.protection.run import protect
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
    (failure,) = release.failed
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
