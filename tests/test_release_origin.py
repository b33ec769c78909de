"""What a release is made from: the same for the same, and another for anything that would change the release."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mmguard.config import ProtectConfig
from mmguard.data.readers import read_dataset
from mmguard.errors import ReleaseError
from mmguard.release import origin as module
from mmguard.release.origin import origin
from mmguard.release.writer import ReleaseWriter

GOOD = Path(__file__).parent / "data" / "good.png"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    data.mkdir()
    for name in "ab":
        shutil.copy(GOOD, data / f"{name}.png")
    _write(data, "what is it?")
    return data


def _write(data: Path, question: str) -> None:
    rows = [{"file_name": f"{name}.png", "question": question, "answer": "red"} for name in "ab"]
    (data / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_same_data_elsewhere_is_the_same(folder: Path, tmp_path: Path) -> None:
    config = ProtectConfig(weights=(0.5, 0.5))
    made = origin(read_dataset(folder), config, ["zoo:llava-tiny"])
    assert origin(read_dataset(shutil.copytree(folder, tmp_path / "copy")), config, ["zoo:llava-tiny"]) == made
    assert json.loads(json.dumps(made)) == made


def test_settings_models_their_order_rows_and_images_count(folder: Path) -> None:
    config = ProtectConfig()
    seen = [
        origin(read_dataset(folder), config, ["zoo:llava-tiny"]),
        origin(read_dataset(folder), replace(config, seed=1), ["zoo:llava-tiny"]),
        origin(read_dataset(folder), config, ["zoo:smolvlm-tiny"]),
        origin(read_dataset(folder), config, ["zoo:llava-tiny", "zoo:smolvlm-tiny"]),
        origin(read_dataset(folder), config, ["zoo:smolvlm-tiny", "zoo:llava-tiny"]),
        origin(read_dataset(folder, limit=1), config, ["zoo:llava-tiny"]),
    ]
    _write(folder, "what color is it?")
    seen.append(origin(read_dataset(folder), config, ["zoo:llava-tiny"]))
    (folder / "b.png").write_bytes(GOOD.read_bytes() + b"\0")
    seen.append(origin(read_dataset(folder), config, ["zoo:llava-tiny"]))
    assert len({json.dumps(one) for one in seen}) == len(seen)


def test_what_other_code_made_is_not_the_same(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def begin() -> None:
        ReleaseWriter(tmp_path / "release", read_dataset(folder), ProtectConfig(variant="random-noise"), ()).close()

    begin()
    begin()
    monkeypatch.setattr(module, "RELEASE_REVISION", module.RELEASE_REVISION + 1)
    with pytest.raises(ReleaseError, match="holds an unfinished release, and not of the same: revision: "):
        begin()
