"""Workers on Ray: whatever their number and whatever becomes of them, the release is that of one process."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from PIL import Image

import tiny
from mmguard.config import EngineConfig, ProtectConfig
from mmguard.protection import ray_engine
from mmguard.protection.run import protect
from mmguard.release.verify import verify
from mmguard.release.writer import Release
from test_protection_journal import contents

CONFIG = ProtectConfig(rounds=2, inner_steps=1, pgd_steps=2, top_c=4, trigger_words=2, batch_size=2)
ONE, TWO = EngineConfig("ray", workers=1), EngineConfig("ray", workers=2)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Workers on a CPU have one thread each; sums in another number of threads may differ in the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.build("llava", tmp_path_factory.mktemp("llava")))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures, one of them with two questions, one a JPEG."""
    folder = tmp_path_factory.mktemp("data")
    lines = []
    for number in range(6):
        generator = torch.Generator().manual_seed(number)
        pixels = torch.randint(0, 256, (32 + number, 40, 3), generator=generator, dtype=torch.uint8)
        name = f"{number}.{'jpg' if number == 3 else 'png'}"
        Image.fromarray(pixels.numpy()).save(folder / name)
        lines.append({"file_name": name, "question": f"what is number {number}?", "answer": "red"})
    lines.append(lines[0] | {"question": "what else is there?"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def whole(data: Path, llava: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The release that the local engine makes."""
    out = tmp_path_factory.mktemp("whole") / "release"
    return contents(protect(data, [llava], CONFIG, out, device="cpu").path)


@pytest.fixture(scope="module")
def started() -> Iterator[None]:
    """Ray for two workers, for all tests that do not start it themselves."""
    ray_engine._connect(TWO)
    yield
    ray.shutdown()


def protected(data: Path, llava: str, out: Path, engine: EngineConfig, config: ProtectConfig = CONFIG) -> Release:
    return protect(data, [llava], config, out, device="cpu", engine=engine)


@pytest.mark.parametrize("engine", [ONE, TWO], ids=["one", "two"])
def test_any_number_of_workers_makes_the_same_release(
    engine: EngineConfig, data: Path, llava: str, whole: dict[str, str], tmp_path: Path, started: None
) -> None:
    release = protected(data, llava, tmp_path / "release", engine)
    assert contents(release.path) == whole
    assert verify(release.path, data).ok


def test_what_an_encoder_leaves_of_a_picture_is_seen_by_workers_too(
    data: Path, llava: str, tmp_path: Path, started: None
) -> None:
    config = replace(CONFIG, rounds=1, format="keep", variant="crs", trigger_place="inside")
    local = protected(data, llava, tmp_path / "local" / "release", EngineConfig(), config)
    side_by_side = protected(data, llava, tmp_path / "ray" / "release", TWO, config)
    assert contents(local.path) == contents(side_by_side.path)
    assert side_by_side.pictures["formats"]["JPEG"] == 1


@pytest.fixture
def hurt(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[ray_engine.RayEngine], None]], None]:
    """Does something to the engine as soon as so many batches have been given to workers."""
    given: list[int] = []
    give = ray_engine.RayEngine._give

    def at(number: int, harm: Callable[[ray_engine.RayEngine], None]) -> None:
        def wrapped(self: ray_engine.RayEngine, *arguments: Any) -> None:
            give(self, *arguments)
            given.append(1)
            if len(given) == number:
                harm(self)

        monkeypatch.setattr(ray_engine.RayEngine, "_give", wrapped)

    return at


def last(engine: ray_engine.RayEngine) -> Any:
    """The worker that was given a batch last."""
    return list(engine._busy.values())[-1][0]


def kill_process(engine: ray_engine.RayEngine) -> None:
    """SIGKILL, as by a system that is short of memory."""
    (process,) = [actor["pid"] for actor in _actors() if actor["actor_id"] == last(engine)._actor_id.hex()]
    os.kill(process, signal.SIGKILL)


def _actors() -> list[dict[str, Any]]:
    from ray._private.state import actors

    return [{"actor_id": name, "pid": facts["Pid"]} for name, facts in actors().items()]


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("harm", [lambda engine: ray.kill(last(engine)), kill_process], ids=["actor", "process"])
def test_a_lost_worker_changes_nothing(
    harm: Any, number: int, data: Path, llava: str, whole: dict[str, str], tmp_path: Path, started: None, hurt: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    hurt(number, harm)
    release = protected(data, llava, tmp_path / "release", TWO)
    assert contents(release.path) == whole
    assert "a worker was lost, its batch is done again" in caplog.text
