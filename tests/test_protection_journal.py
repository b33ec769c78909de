"""A protection that was broken off goes on where it stood, and ends as if it had never been."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import psutil
import pytest
import torch
from PIL import Image
from rich.progress import Progress
from torch import Tensor
from tqdm import tqdm

import malformed
import tiny
from mmguard.config import ProtectConfig
from mmguard.data.images import load_image
from mmguard.data.readers import read_dataset
from mmguard.errors import ReleaseError, SampleError
from mmguard.lvlm.surrogate import Surrogate
from mmguard.protection import engine, journal, loop, prepare, run
from mmguard.protection.ensemble import Ensemble
from mmguard.protection.prepare import begin
from mmguard.protection.run import protect
from mmguard.release import layout, writer
from mmguard.release.verify import verify
from mmguard.runtime import durable, progress

CONFIG = ProtectConfig(rounds=2, inner_steps=2, pgd_steps=2, top_c=4, trigger_words=2, batch_size=2)
BATCHES, WRITES = 3, 2 * (1 + 3)
"""Of five images with one question each; files that the journal writes."""


class Crash(BaseException):
    """What no code of ours catches."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    lines = tiny.pictures_of_noise(folder, 5)
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def whole(data: Path, llava: Surrogate, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The release that was never broken off."""
    return contents(protect(data, [llava], CONFIG, tmp_path_factory.mktemp("whole") / "release").path)


def contents(release: Path) -> dict[str, str]:
    """Hashes of all files of a release and of its record, which a lock is no part of."""
    record = layout.record_folder(release)
    files = [*release.rglob("*"), *record.rglob("*")]
    return {
        path.relative_to(release.parent).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.is_file() and path.name != layout.LOCK
    }


def at_write(number: int, before: bool, error: BaseException) -> Callable[[Path, bytes], None]:
    """Writes as ever, until it fails before or after the write of that number."""
    calls = itertools.count(1)

    def write(path: Path, content: bytes) -> None:
        last = next(calls) == number
        if last and before:
            raise error
        durable.write_durably(path, content)
        if last:
            raise error

    return write


@pytest.mark.parametrize("number", range(1, WRITES + 1))
@pytest.mark.parametrize("before", [True, False])
def test_a_crash_at_any_step_changes_nothing(
    number: int, before: bool, data: Path, llava: Surrogate, whole: dict[str, str], tmp_path: Path, monkeypatch: Any
) -> None:
    out = tmp_path / "release"
    with monkeypatch.context() as patch:
        patch.setattr(journal, "write_durably", at_write(number, before, Crash()))
        with pytest.raises(Crash):
            protect(data, [llava], CONFIG, out)
    assert (layout.record_folder(out) / layout.UNFINISHED).is_file()
    assert not list(out.rglob("*.png"))
    protected: list[int] = []
    work = engine.protect_batch

    def counted(batch: Any, *rest: Any) -> int:
        protected.append(len(batch))
        return work(batch, *rest)

    monkeypatch.setattr(engine, "protect_batch", counted)
    release = protect(data, [llava], CONFIG, out)
    assert contents(release.path) == whole
    assert not (release.record / layout.STATE).exists()
    assert verify(release.path, data).ok
    kept = [write for write in range(1, WRITES + 1) if (write - 1) % (BATCHES + 1)]  # the others are adapters
    assert len(protected) == sum(write > number - before for write in kept)


def test_earlier_work_does_not_count_as_done_in_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told batch by batch it would: of 300 seconds a batch, minutes would remain of days."""
    now = 0.0
    monkeypatch.setattr(loop, "workload", lambda group, config: {"Perturbing": len(group)})
    made: list[Progress] = []

    def bars(*columns: Any, **options: Any) -> Progress:
        made.append(Progress(*columns, **options, get_time=lambda: now))
        return made[0]

    monkeypatch.setattr(progress, "Progress", bars)
    with progress.stages({"Adapting": 9, "Perturbing": 1500}, lambda share, name: None) as advance:
        loop._tell_of_earlier([1] * 400 + [0] * 100, [[None]] * 500, 2, CONFIG, advance)
        for _ in range(2):
            now += 300
            advance("Perturbing", 1)
    (perturbing,) = (task for task in made[0].tasks if task.description == "Perturbing")
    assert perturbing.time_remaining == pytest.approx(300 * (1500 - 402))


def test_a_crash_in_a_resumed_run_and_while_pictures_are_written(
    data: Path, llava: Surrogate, whole: dict[str, str], tmp_path: Path, monkeypatch: Any
) -> None:
    out = tmp_path / "release"
    for number in (2, 3):
        with monkeypatch.context() as patch:
            patch.setattr(journal, "write_durably", at_write(number, False, Crash()))
            with pytest.raises(Crash):
                protect(data, [llava], CONFIG, out)
    write_image, calls = writer.ReleaseWriter.write_image, itertools.count()

    def fails(self: Any, *given: Any) -> None:
        if next(calls) == 3:
            raise Crash
        write_image(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(writer.ReleaseWriter, "write_image", fails)
        with pytest.raises(Crash):
            protect(data, [llava], CONFIG, out)
    monkeypatch.setattr(engine, "protect_batch", lambda *given: pytest.fail("protected again"))
    assert contents(protect(data, [llava], CONFIG, out).path) == whole


def test_a_crash_when_the_perturbations_in_work_are_gone_changes_nothing(
    data: Path, llava: Surrogate, whole: dict[str, str], tmp_path: Path, monkeypatch: Any
) -> None:
    out = tmp_path / "release"

    def fails(*_: object) -> None:
        assert not (layout.record_folder(out) / layout.DELTAS).exists()
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(writer, "dataset_card", fails)
        with pytest.raises(Crash):
            protect(data, [llava], CONFIG, out)
    monkeypatch.setattr(engine, "protect_batch", lambda *given: pytest.fail("protected again"))
    assert contents(protect(data, [llava], CONFIG, out).path) == whole


def test_triggers_are_shared_alike_after_a_crash_behind_the_last_round(
    data: Path, llava: Surrogate, whole: dict[str, str], tmp_path: Path, monkeypatch: Any
) -> None:
    config = replace(CONFIG, trigger_scope="answer")
    shared = contents(protect(data, [llava], config, tmp_path / "shared" / "release").path)
    assert shared["release/metadata.jsonl"] != whole["release/metadata.jsonl"]
    out = tmp_path / "broken" / "release"
    with monkeypatch.context() as patch:
        patch.setattr(journal, "write_durably", at_write(WRITES, False, Crash()))
        with pytest.raises(Crash):
            protect(data, [llava], config, out)
    assert contents(protect(data, [llava], config, out).path) == shared


@pytest.mark.parametrize("variant", ["text", "image", "mislead"])
def test_variants_that_leave_one_side_alone_go_on_too(
    variant: str, data: Path, llava: Surrogate, tmp_path: Path, monkeypatch: Any
) -> None:
    config = replace(CONFIG, variant=variant)
    whole = contents(protect(data, [llava], config, tmp_path / "whole" / "release").path)
    out = tmp_path / "broken" / "release"
    with monkeypatch.context() as patch:
        patch.setattr(journal, "write_durably", at_write(6, False, Crash()))
        with pytest.raises(Crash):
            protect(data, [llava], config, out)
    size = sum(file.stat().st_size for file in (layout.record_folder(out) / layout.STATE).glob("batch-*"))
    assert (size > 5 * 3 * 32 * 40) == (variant != "text")
    assert contents(protect(data, [llava], config, out).path) == whole


@pytest.mark.parametrize("number", [1, 2, 3, 5])
@pytest.mark.parametrize("before", [True, False])
def test_pictures_without_text_are_not_captioned_again(
    number: int, before: bool, data: Path, llava: Surrogate, tmp_path: Path, monkeypatch: Any
) -> None:
    """On a GPU another caption may come out, and δ would belong to one that nobody has any more."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in data.glob("*.png"):
        shutil.copy(path, photos)
    (photos / "1.png").write_bytes(b"no picture")
    asked: list[str] = []

    def captions(model: Surrogate, paths: list[Path], batch_size: int) -> dict[Path, str]:
        asked.extend(path.name for path in paths)
        return {path: f"picture {path.stem}" for path in reversed(paths) if path.stem != "1"}

    monkeypatch.setattr(prepare, "captions", captions)
    whole = contents(protect(photos, [llava], CONFIG, tmp_path / "whole" / "release").path)
    assert asked == [f"{n}.png" for n in range(5)]
    out = tmp_path / "broken" / "release"
    with monkeypatch.context() as patch:
        patch.setattr(journal, "write_durably", at_write(number, before, Crash()))
        with pytest.raises(Crash):
            protect(photos, [llava], CONFIG, out)
    asked.clear()
    assert contents(protect(photos, [llava], CONFIG, out).path) == whole
    kept = min(number - before, BATCHES) * CONFIG.batch_size
    assert asked == [f"{n}.png" for n in range(5) if n >= kept or n == 1]  # what could not be read is tried again


def test_a_full_disk_costs_nothing_that_is_done(
    data: Path, llava: Surrogate, whole: dict[str, str], tmp_path: Path, monkeypatch: Any
) -> None:
    out = tmp_path / "release"
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as patch:
        patch.setattr(journal, "write_durably", at_write(5, True, full))
        with pytest.raises(ReleaseError, match=r"adapters.safetensors: cannot be written \(No space left on device\)"):
            protect(data, [llava], CONFIG, out)
    assert contents(protect(data, [llava], CONFIG, out).path) == whole


def test_a_partial_write_is_none(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "file"
    durable.write_durably(path, b"old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(OSError, match="Input/output"):
        durable.write_durably(path, b"new")
    assert path.read_bytes() == b"old"


@pytest.fixture
def broken(data: Path, llava: Surrogate, tmp_path: Path, monkeypatch: Any) -> Path:
    """An unfinished release."""
    out = tmp_path / "release"
    with monkeypatch.context() as patch:
        patch.setattr(journal, "write_durably", at_write(3, False, Crash()))
        with pytest.raises(Crash):
            protect(data, [llava], CONFIG, out)
    return out


def test_other_settings_do_not_go_on(broken: Path, data: Path, llava: Surrogate) -> None:
    state = contents(broken)
    with pytest.raises(ReleaseError) as refused:
        protect(data, [llava], replace(CONFIG, seed=1, eps=4), broken)
    assert "not of the same: config.eps: 8, now 4; config.seed: 0, now 1. Run again as before" in str(refused.value)
    assert contents(broken) == state


def test_other_data_do_not_go_on(broken: Path, data: Path, llava: Surrogate, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    changed.mkdir()
    for file in data.iterdir():
        (changed / file.name).write_bytes(file.read_bytes())
    Image.new("RGB", (40, 40)).save(changed / "2.png")
    with pytest.raises(ReleaseError, match="not of the same: the data has changed"):
        protect(changed, [llava], CONFIG, broken)


def test_pictures_do_not_take_what_others_left(data: Path, llava: Surrogate, tmp_path: Path) -> None:
    """As where a picture that was read then cannot be read now, and all behind it move up."""
    items, _ = begin(read_dataset(data), CONFIG, Ensemble([llava], CONFIG))
    kept = journal.FileJournal(tmp_path / "state", images=True)
    kept.keep(0, items[:2], 1)
    for others in (items[1:3], items[:1], items[:3]):
        before = [(item.delta.clone(), item.triggers) for item in others]
        assert kept.restore(0, others) == 0
        for item, (delta, triggers) in zip(others, before, strict=True):
            assert torch.equal(item.delta, delta)
            assert item.triggers == triggers
    assert kept.restore(0, items[:2]) == 1


def test_a_damaged_state_is_told(broken: Path, data: Path, llava: Surrogate) -> None:
    file = layout.record_folder(broken) / layout.STATE / "batch-000000.safetensors"
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ReleaseError, match=r"batch-000000.safetensors: cannot be read .* to begin anew"):
        protect(data, [llava], CONFIG, broken)


def _hold(data: Path, out: Path, llava: Surrogate, ready: Any) -> None:
    run._fill = lambda *given: (ready.set(), time.sleep(600))
    protect(data, [llava], CONFIG, out)


def test_two_processes_do_not_write_one_release(
    data: Path, llava: Surrogate, whole: dict[str, str], tmp_path: Path
) -> None:
    out, forks = tmp_path / "release", multiprocessing.get_context("fork")
    ready = forks.Event()
    other = forks.Process(target=_hold, args=(data, out, llava, ready))
    other.start()
    try:
        assert ready.wait(60)
        with pytest.raises(ReleaseError, match="another run is writing it: wait until it is done"):
            protect(data, [llava], CONFIG, out)
        other.kill()
        other.join()
        assert contents(protect(data, [llava], CONFIG, out).path) == whole
    finally:
        other.kill()
        other.join()


RUNS = 100


def _run(data: Path, out: Path, llava: Surrogate) -> None:
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own is shared with the parent, and stays locked by who is killed holding it
    protect(data, [llava], CONFIG, out)
    os._exit(0)


def finishes(data: Path, out: Path, llava: Surrogate, seconds: float) -> bool:
    """Protects in a process of its own, and kills it after so many seconds of a processor; whether it was done before.

    On a busy machine the same seconds by the clock would always end in the same stage.
    """
    process = multiprocessing.get_context("fork").Process(target=_run, args=(data, out, llava))
    process.start()
    used = psutil.Process(process.pid)
    while process.is_alive():
        with suppress(psutil.NoSuchProcess):
            if sum(used.cpu_times()[:2]) >= seconds:
                process.kill()
                break
        time.sleep(0.002)
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode == 0


def stage(out: Path) -> str:
    """How far a release is whose process was killed."""
    record = layout.record_folder(out)
    if not (record / layout.UNFINISHED).exists():
        return "finished" if (record / layout.RECORD).exists() else "begun"
    if (record / layout.RECORD).exists():
        return "all pictures written"
    if any(out.rglob("*.png*")) or any((record / layout.IMAGES).rglob("*.png*")):
        return "some pictures written"
    return "some batches done" if (record / layout.STATE).exists() else "begun"


def unprotected(out: Path, originals: list[Tensor]) -> list[Path]:
    """Pictures of a release, finished or not, that are as they were."""
    found = []
    for path in [*out.rglob("*.png*"), *(layout.record_folder(out) / layout.IMAGES).rglob("*.png*")]:
        with suppress(SampleError):  # a part of a file
            image = load_image(path)
            found += [path for original in originals if image.equal(original)]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("format_", ["image folder", "Parquet"])
def test_a_hundred_runs_that_are_killed(
    format_: str, data: Path, llava: Surrogate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is killed at a random moment, goes on, and may be killed again: the release is always the same one."""
    pictures = sorted(data.glob("*.png"))
    originals = [load_image(path) for path in pictures]
    if format_ == "Parquet":
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        (tmp_path / "data").mkdir()
        data = tmp_path / "data"
        malformed.parquet(data, {path.name: path.read_bytes() for path in pictures})
    before = contents(data)
    # The first run prepares what the next ones find in a cache.
    for name in ("first", "whole"):
        began = os.times()
        assert finishes(data, tmp_path / name / "release", llava, math.inf)
    ended, whole = os.times(), contents(tmp_path / "whole" / "release")
    duration = ended.children_user + ended.children_system - began.children_user - began.children_system
    rng, kills = random.Random(0), Counter[str]()
    for number in range(RUNS):
        out = tmp_path / str(number) / "release"
        while finishes(data, out, llava, rng.uniform(0, duration)):
            shutil.rmtree(out.parent)
        while (where := stage(out)) != "finished":
            kills[where] += 1
            assert unprotected(out, originals) == []
            if finishes(data, out, llava, rng.uniform(0, 2 * duration)):
                break
        else:
            # Killed while it removed what is not needed any more.
            kills[where] += 1
            for leftover in (layout.STATE, layout.IMAGES):
                shutil.rmtree(layout.record_folder(out) / leftover, ignore_errors=True)
        assert contents(out) == whole, f"run {number}, kills so far: {kills}"
        assert contents(data) == before
    print(f"{format_}: {RUNS} releases the same after {kills.total()} kills: {dict(kills)}")
