"""Which weights a name stands for: told by what is in the files, not by where or when they were written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest

from mmguard import zoo
from mmguard.errors import ConfigError, SurrogateError
from mmguard.lvlm.weights import model_folder, recommended, weights_digest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tmp_path / "model"
    (model / "sub").mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "sub" / "weights").write_bytes(bytes(3_000_000))
    return model


def test_a_copy_is_the_same_and_a_touched_file_too(folder: Path, tmp_path: Path) -> None:
    before = weights_digest(str(folder))
    copy = shutil.copytree(folder, tmp_path / "copy")
    os.utime(copy / "config.json", (1, 1))
    assert weights_digest(str(copy)) == before


@pytest.mark.parametrize(("name", "content"), [("sub/weights", bytes(2_999_999) + b"\1"), ("sub/more", b"")])
def test_another_byte_or_file_is_another_model(folder: Path, name: str, content: bytes) -> None:
    before = weights_digest(str(folder))
    (folder / name).write_bytes(content)
    assert weights_digest(str(folder)) != before


def test_zoo() -> None:
    assert weights_digest("zoo:llava-tiny") == weights_digest(str(model_folder("zoo:llava-tiny")))
    with pytest.raises(SurrogateError, match="no such model"):
        weights_digest("zoo:gpt-tiny")


def test_on_the_hub_it_is_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert model_folder("owner/name") is None
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: SimpleNamespace(sha="c0ffee"))
    assert weights_digest("owner/name") == "c0ffee"


def test_without_a_network_it_is_the_commit_in_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def cached(name: str, file: str) -> str | None:
        return f"/cache/models--owner--name/snapshots/c0ffee/{file}" if name == "owner/name" else None

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    assert weights_digest("owner/name") == "c0ffee"
    assert weights_digest("owner/other") is None


@pytest.mark.parametrize("name", ["no/such/folder", "no such model"])
def test_what_is_no_model_has_none(name: str) -> None:
    assert weights_digest(name) is None


def test_the_zoo_and_it_alone_recommends_how_to_fine_tune(folder: Path) -> None:
    for name in zoo.NAMES:
        assert recommended(f"zoo:{name}")["lora"]["lr"] > 0
    assert recommended(str(folder)) == recommended("owner/model") == {}


@pytest.mark.parametrize("card", ["[", "[]", '{"recommended": []}', '{"recommended": {"lora": {"lr": "fast"}}}'])
def test_a_card_that_cannot_be_read_is_named(folder: Path, card: str) -> None:
    (folder / "mmguard.json").write_text(card)
    with pytest.raises(
        ConfigError, match=r"model/mmguard\.json: not a model card of mmguard .*remove it or restore it"
    ):
        recommended(str(folder))
