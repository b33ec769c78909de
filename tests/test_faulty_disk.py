"""Every call that a protection makes to the disk fails once: an error says so, and the next run ends as if none had."""

from __future__ import annotations

import json
import multiprocessing
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tiny
from faulty_disk import FAULTS, KILL, FaultyDisk
from mmguard.config import ProtectConfig
from mmguard.data.images import load_image
from mmguard.errors import DataError, ReleaseError
from mmguard.lvlm.surrogate import Surrogate
from mmguard.protection import run
from mmguard.protection.run import protect
from mmguard.release import layout
from mmguard.release.verify import verify
from mmguard.release.writer import Release
from test_protection_journal import contents

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="pathlib keeps its own `open` before Python 3.11")

NOISE = ProtectConfig(variant="random-noise")
CRS = ProtectConfig(variant="crs", rounds=1, inner_steps=1, pgd_steps=1, top_c=2, trigger_words=2, batch_size=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures, one in a folder of its own."""
    folder = tmp_path_factory.mktemp("data")
    rows = tiny.pictures_of_noise(folder, 3)
    (folder / "sub").mkdir()
    (folder / "2.png").rename(folder / "sub" / "2.png")
    rows[2]["file_name"] = "sub/2.png"
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def one_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "WRITERS", 1)  # so that calls always come in the same order


class Case:
    """One protection on one disk."""

    def __init__(self, folder: Path, data: Path, llava: Surrogate, config: ProtectConfig) -> None:
        self.folder, self.data, self.config, self._llava = folder, data, config, llava

    def protect(self, name: str) -> Release:
        surrogates = [self._llava] if self.config.optimised else []
        return protect(self.data, surrogates, self.config, self.folder / name / "release")

    def faulty(self, name: str, number: int, fault: str, **options: bool) -> tuple[Release | None, FaultyDisk]:
        """A protection on a disk that fails at a call: what came of it, and the disk."""
        (self.folder / name).mkdir()
        with pytest.MonkeyPatch.context() as patch:
            disk = FaultyDisk(self.folder / name, patch, number, fault, **options)
            try:
                return self.protect(name), disk
            except ReleaseError as error:
                said = str(error)
        assert "cannot be written" in said, disk.calls[-1]
        assert "run again; what was written so far stays" in said
        return None, disk

    def killed(self, name: str, number: int) -> None:
        """A protection in a process that is killed at a call."""
        torch.set_num_threads(1)
        self.faulty(name, number, KILL)


@pytest.fixture(params=[NOISE, pytest.param(CRS, marks=pytest.mark.slow)], ids=["noise", "crs"])
def case(request: pytest.FixtureRequest, tmp_path: Path, data: Path, llava: Surrogate) -> Case:
    return Case(tmp_path, data, llava, request.param)


@pytest.mark.parametrize("fault", FAULTS)
def test_any_call_may_fail(case: Case, fault: str) -> None:
    originals = contents(case.data)
    whole = contents(case.protect("whole").path)
    _, counted = case.faulty("counted", 0, fault)
    assert {call.split()[0] for call in counted.calls} >= {"open", "write", "fsync", "replace", "mkdir", "unlink"}
    failed = 0
    for number in range(1, len(counted.calls) + 1):
        release, disk = case.faulty(str(number), number, fault)
        out, where = case.folder / str(number) / "release", f"call {number} ({disk.calls[number - 1]})"
        assert contents(case.data) == originals, where
        for picture in out.rglob("*.png"):
            assert not load_image(picture).equal(load_image(case.data / picture.relative_to(out))), where
        if release is None:
            failed += 1
            release = case.protect(str(number))
        assert contents(out) == whole, where
        assert release.failed == [], where
        assert not list(out.parent.rglob("*.partial")), where
    assert failed > len(counted.calls) * 0.8, "what fails is told"


def test_all_is_on_the_disk_before_a_release_is_complete(case: Case) -> None:
    """Else a power loss could leave a file without its bytes where nothing is done again."""
    release, disk = case.faulty("counted", 0, "EIO")
    assert release is not None
    until_then = disk.calls[: disk.calls.index("unlink unfinished")]
    assert until_then.index("fsync unfinished.partial") < until_then.index("open DO_NOT_PUBLISH.txt.partial")
    for path in (release.path, *release.path.rglob("*"), *release.record.iterdir()):
        written = [number for number, call in enumerate(until_then) if call == f"replace {path.name}.partial"]
        assert f"fsync {path.name}" in until_then[max(written, default=0) :], path
        assert written or path.is_dir()


def test_the_process_may_be_killed_at_any_call(case: Case) -> None:
    originals = contents(case.data)
    whole = contents(case.protect("whole").path)
    calls = case.faulty("counted", 0, KILL)[1].calls
    for number, call in enumerate(calls, 1):
        process = multiprocessing.get_context("fork").Process(target=case.killed, args=(str(number), number))
        process.start()
        process.join()
        out, where = case.folder / str(number) / "release", f"call {number} ({call})"
        assert process.exitcode == -signal.SIGKILL, where
        assert contents(case.data) == originals, where
        for picture in out.rglob("*.png"):
            assert not load_image(picture).equal(load_image(case.data / picture.relative_to(out))), where
        record = layout.record_folder(out)
        if (record / layout.UNFINISHED).exists() or not (record / layout.RECORD).exists():
            assert case.protect(str(number)).failed == [], where
        assert contents(out) == whole, where
        assert not list(out.parent.rglob("*.partial")), where
    print(f"killed at each of {len(calls)} calls")


def test_the_system_may_write_less_than_it_was_given(case: Case) -> None:
    whole = contents(case.protect("whole").path)
    release, disk = case.faulty("short", 0, "EIO", short=True)
    assert release is not None
    assert contents(release.path) == whole
    assert len(disk.calls) > len(case.faulty("counted", 0, "EIO")[1].calls), "writes were halved"


def test_any_read_of_an_original_may_fail(data: Path, tmp_path: Path, llava: Surrogate) -> None:
    originals, number, lost = contents(data), 0, 0
    while True:
        number += 1
        with pytest.MonkeyPatch.context() as patch:
            disk = FaultyDisk(data, patch, number, "EIO", reads=True)
            try:
                release = protect(data, [llava], replace(CRS, variant="text"), tmp_path / str(number))
            except DataError as error:
                said = str(error)
                release = None
        if release is None:
            assert "metadata.jsonl" in disk.calls[-1], disk.calls[-1]
            assert "Input/output error" in said
            continue
        assert contents(data) == originals
        if len(disk.calls) < number:
            break
        left_out = [Path(one.where).name for one in release.failed]
        # What is read to estimate sizes alone costs nothing.
        assert left_out in ([], [disk.calls[number - 1].split()[1]]), "no other than could not be read"
        assert all("Input/output error" in one.reason for one in release.failed)
        assert not [name for name in left_out if list(release.path.rglob(name))]
        assert release.images == 3 - len(left_out)
        assert verify(release.path, data).ok
        lost += len(left_out)
    assert number > 20
    assert lost >= 3
    assert release.failed == []
