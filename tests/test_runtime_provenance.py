"""Versions and commit: of our own checkout, and of no other that we happen to lie in."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmguard.runtime import provenance


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    provenance.commit.cache_clear()
    yield
    provenance.commit.cache_clear()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = tmp_path / "src" / "mmguard"
    (package / "runtime").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (tmp_path / ".gitignore").write_text("venv\n")
    monkeypatch.setattr(provenance, "__file__", str(package / "runtime" / "provenance.py"))
    for command in ("init -q", "add .", "-c user.name=a -c user.email=a@b.c commit -q -m one"):
        subprocess.run(["git", "-C", str(tmp_path), *command.split()], check=True)
    return tmp_path


def test_commit_and_whether_files_were_changed(repository: Path) -> None:
    head = subprocess.run(
        ["git", "-C", str(repository), "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    assert provenance.commit() == head
    (repository / "src" / "mmguard" / "__init__.py").write_text("changed = True\n")
    provenance.commit.cache_clear()
    assert provenance.commit() == f"{head}-dirty"


def test_an_environment_within_another_repository(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = repository / "venv" / "mmguard" / "runtime"
    installed.mkdir(parents=True)
    (installed.parent / "__init__.py").write_text("")
    monkeypatch.setattr(provenance, "__file__", str(installed / "provenance.py"))
    assert provenance.commit() is None


def test_no_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert provenance.commit() is None


def test_versions() -> None:
    from mmguard import __version__

    assert provenance.versions("mmguard") == {"mmguard": __version__}
