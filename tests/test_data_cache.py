"""What is kept of datasets on this machine: shown, removed, and filled again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import datasets
import pytest
from typer.testing import CliRunner

from mmguard.cli import app
from mmguard.data.cache import cached, clear, root, sizes
from mmguard.errors import DataError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "mmguard"


def fill(into: Path) -> None:
    (into / "a.png").write_bytes(b"12345")


def call(*arguments: str) -> dict[str, object]:
    done = CliRunner().invoke(app, ["cache", *arguments, "--json"])
    assert done.exit_code == 0
    return dict(json.loads(done.stdout))


def test_what_is_kept_is_shown_and_removed(folder: Path) -> None:
    assert call() == {"folder": str(folder), "bytes": {}, "removed": False}
    for name in ("unpacked/one", "unpacked/two", "remote/three"):
        cached(name, fill)
    assert call()["bytes"] == {"remote": 5, "unpacked": 10}
    (folder.parent / "of others").mkdir()
    assert call("--clear") == {"folder": str(folder), "bytes": {"remote": 5, "unpacked": 10}, "removed": True}
    assert [path.name for path in folder.parent.iterdir()] == ["of others"]
    assert call("--clear")["bytes"] == {}
    assert (cached("unpacked/one", fill) / "a.png").read_bytes() == b"12345"


def test_people_are_told_in_one_line(folder: Path) -> None:
    cached("unpacked/one", lambda into: (into / "a.png").write_bytes(bytes(1_500_000)))
    assert CliRunner().invoke(app, ["cache"]).stdout == f"{folder}: holds unpacked 1.5 MB.\n"
    assert CliRunner().invoke(app, ["cache", "--clear"]).stdout == f"{folder}: removed unpacked 1.5 MB.\n"
    assert CliRunner().invoke(app, ["cache"]).stdout == f"{folder}: holds nothing.\n"


def test_what_cannot_be_removed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    cached("unpacked/one", fill)

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path / "unpacked"))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(DataError, match=r"unpacked: cannot be removed \(Permission denied\)"):
        clear()
    assert sizes() == {"unpacked": 5}
    assert root().is_dir()
