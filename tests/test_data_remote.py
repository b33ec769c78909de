"""Datasets behind URLs, in fsspec's memory and local file systems."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from mmguard.config import ProtectConfig
from mmguard.data.readers import read_dataset
from mmguard.errors import DataError
from mmguard.protection.run import protect
from mmguard.release.verify import verify


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """All tests run offline; these reach for no network either, but for file systems that are none."""
    monkeypatch.setattr("mmguard.data.remote.is_offline_mode", lambda: False)


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryFileSystem]:
    """`memory://bucket/my photos`: two pictures, a table and a hidden file."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    system: MemoryFileSystem = fsspec.filesystem("memory")
    for name, colour in (("größe/a b.png", "red"), ("c.png", "blue")):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 6), colour).save(buffer, "PNG")
        system.pipe_file(f"/bucket/my photos/{name}", buffer.getvalue())
    system.pipe_file("/bucket/my photos/t.csv", "image,caption\ngröße/a b.png,one\nc.png,two\n".encode())
    system.pipe_file("/bucket/my photos/.secret", b"x")
    yield system
    system.rm("/bucket", recursive=True)


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were copied."""
    names: list[str] = []
    get = MemoryFileSystem.get_file

    def counted(self: Any, path: str, *args: Any, **kwargs: Any) -> None:
        names.append(path.rpartition("/")[2])
        get(self, path, *args, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, "get_file", counted)
    return names


@pytest.mark.parametrize("url", ["memory://bucket/my photos", "memory://bucket/my photos/t.csv"])
def test_a_folder_is_copied_once(memory: MemoryFileSystem, fetched: list[str], url: str) -> None:
    first, again = read_dataset(url), read_dataset(url)
    assert first == again
    assert [sample.answer for sample in first.samples] == ["one", "two"]
    assert first.root.name == "my photos"
    assert sorted(fetched) == ["a b.png", "c.png", "t.csv"]
    memory.pipe_file("/bucket/my photos/t.csv", b"image,caption\nc.png,three\n")
    assert [sample.answer for sample in read_dataset(url).samples] == ["three"]


def test_a_release_of_a_url_verifies(memory: MemoryFileSystem, tmp_path: Path) -> None:
    url = "memory://bucket/my photos"
    release = protect(url, [], ProtectConfig(variant="random-noise"), tmp_path / "out")
    assert json.loads((release.record / "record.json").read_text())["dataset"]["source"] == url
    assert (release.path / "größe" / "a b.png").is_file()
    assert verify(release.path, url).problems == []


def test_a_shard_is_copied_alone(memory: MemoryFileSystem, fetched: list[str]) -> None:
    memory.pipe_file("/bucket/x.parquet", b"no parquet")
    with pytest.raises(DataError, match=r"x\.parquet: cannot be read as Parquet"):
        read_dataset("memory://bucket/x.parquet")
    assert fetched == ["x.parquet"]


def test_an_interrupted_copy_leaves_nothing(
    memory: MemoryFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    get = MemoryFileSystem.get_file

    def broken(self: Any, path: str, *args: Any, **kwargs: Any) -> None:
        if path.endswith("t.csv"):
            raise ConnectionError("line is dead")
        get(self, path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "get_file", broken)
        with pytest.raises(DataError, match=r"t\.csv cannot be copied \(line is dead\): run again"):
            read_dataset("memory://bucket/my photos")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert len(read_dataset("memory://bucket/my photos").samples) == 2


def test_a_name_may_not_leave_the_copy(
    memory: MemoryFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "find", lambda *_, **__: {"/bucket/my photos/../../evil.csv": {}})
        with pytest.raises(DataError, match=r"evil\.csv cannot be a file's here"):
            read_dataset("memory://bucket/my photos")
    assert not (tmp_path / "cache").exists()


def test_local_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    Image.new("RGB", (8, 6)).save(tmp_path / "data" / "a.png")
    (tmp_path / "data" / "a.txt").write_text("black")
    assert read_dataset(f"file://{tmp_path / 'data'}").samples[0].answer == "black"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://nowhere/at/all", "no such file or folder, or an empty one"),
        ("gopher9://x/y", r"cannot be reached \(Protocol not known: gopher9"),
    ],
)
def test_urls_that_lead_nowhere(memory: MemoryFileSystem, url: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_dataset(url)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def url_to_fs(url: str) -> Any:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "url_to_fs", url_to_fs)
    with pytest.raises(DataError, match=r"s3://x/y: Install s3fs to access S3: `pip install` that package"):
        read_dataset("s3://x/y")
