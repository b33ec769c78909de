"""Workers on Ray: whatever their number and whatever becomes of them, the release is that of one process."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from ray._private.state import actors
from ray.cluster_utils import Cluster
from typer.testing import CliRunner

import tiny
from mmguard import cli
from mmguard.config import EngineConfig, ProtectConfig
from mmguard.errors import ConfigError, EngineError, SampleError, SurrogateError
from mmguard.lvlm.loading import load_surrogate
from mmguard.protection import batch as batches
from mmguard.protection import journal, ray_engine
from mmguard.protection.ensemble import Ensemble
from mmguard.protection.run import protect
from mmguard.release import layout
from mmguard.release.verify import verify
from mmguard.release.writer import Release
from test_protection_journal import Crash, at_write, contents

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
    lines = tiny.pictures_of_noise(folder, 6, jpeg=[3])
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


@pytest.mark.parametrize("engine", [pytest.param(ONE, marks=pytest.mark.slow), TWO], ids=["one", "two"])
def test_any_number_of_workers_makes_the_same_release(
    engine: EngineConfig, data: Path, llava: str, whole: dict[str, str], tmp_path: Path, started: None
) -> None:
    release = protected(data, llava, tmp_path / "release", engine)
    assert contents(release.path) == whole
    assert verify(release.path, data).ok


def test_what_an_encoder_leaves_of_a_picture_is_seen_by_workers_too(
    data: Path, llava: str, tmp_path: Path, started: None
) -> None:
    config = replace(CONFIG, rounds=1, format="keep", variant="crs", trigger_place="inside", trigger_scope="answer")
    local = protected(data, llava, tmp_path / "local" / "release", EngineConfig(), config)
    side_by_side = protected(data, llava, tmp_path / "ray" / "release", TWO, config)
    assert contents(local.path) == contents(side_by_side.path)
    assert side_by_side.pictures["formats"]["JPEG"] == 1


def test_workers_leave_pictures_alone_as_one_does(data: Path, llava: str, tmp_path: Path, started: None) -> None:
    config = replace(CONFIG, rounds=1, variant="text")
    local = protected(data, llava, tmp_path / "local" / "release", EngineConfig(), config)
    side_by_side = protected(data, llava, tmp_path / "ray" / "release", TWO, config)
    assert contents(local.path) == contents(side_by_side.path)


def test_workers_mislead_as_one_does(data: Path, llava: str, tmp_path: Path, started: None) -> None:
    config = replace(CONFIG, rounds=1, variant="mislead")
    local = protected(data, llava, tmp_path / "local" / "release", EngineConfig(), config)
    side_by_side = protected(data, llava, tmp_path / "ray" / "release", TWO, config)
    assert contents(local.path) == contents(side_by_side.path)


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
    os.kill(actors()[last(engine)._actor_id.hex()]["Pid"], signal.SIGKILL)


@pytest.mark.parametrize(
    ("number", "harm"),
    [
        pytest.param(1, lambda engine: ray.kill(last(engine)), marks=pytest.mark.slow),
        pytest.param(3, lambda engine: ray.kill(last(engine)), marks=pytest.mark.slow),
        pytest.param(1, kill_process, marks=pytest.mark.slow),
        (3, kill_process),
    ],
)
def test_a_lost_worker_changes_nothing(
    number: int, harm: Any, data: Path, llava: str, whole: dict[str, str], tmp_path: Path, started: None, hurt: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    hurt(number, harm)
    release = protected(data, llava, tmp_path / "release", TWO)
    assert contents(release.path) == whole
    assert "a worker was lost, its batch is done again" in caplog.text


def test_driver_and_workers_take_turns_on_a_gpu(
    data: Path, llava: str, tmp_path: Path, started: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "told"

    def tell(what: str) -> None:
        with told.open("a") as file:
            file.write(f"{what}\n")

    class Telling(ray_engine.Worker):
        def begin(self, required: dict[str, str]) -> None:
            super().begin(required)
            ray_engine.release_memory = lambda: tell("worker leaves")

    adapt, on_cpu = Ensemble.adapt, Ensemble.on_cpu

    def adapting(self: Ensemble, *given: Any) -> None:
        tell("driver adapts")
        adapt(self, *given)

    @contextmanager
    def away(self: Ensemble) -> Iterator[None]:
        tell("driver leaves")
        with on_cpu(self):
            yield

    monkeypatch.setattr(ray_engine, "Worker", Telling)
    monkeypatch.setattr(Ensemble, "adapt", adapting)
    monkeypatch.setattr(Ensemble, "on_cpu", away)
    protected(data, llava, tmp_path / "release", ONE)
    assert told.read_text().splitlines() == ["driver adapts", "driver leaves", "worker leaves"] * 2


def test_a_driver_comes_back_to_its_device(llava: str, monkeypatch: pytest.MonkeyPatch) -> None:
    surrogate = load_surrogate(llava, device="cpu")
    moved: list[Any] = []
    surrogate.device = torch.device("cuda")
    monkeypatch.setattr(surrogate.model, "to", moved.append)
    with Ensemble([surrogate], CONFIG).on_cpu():
        assert moved == ["cpu"]
    assert moved == ["cpu", surrogate.device]


def starving(told: Path, enough: int) -> type[ray_engine.Worker]:
    """A worker whose memory is enough for so many samples at a time, and only if activations are computed twice.

    A class of its own, so that it travels to the worker's process as it is.
    """

    class Starving(ray_engine.Worker):
        def begin(self, required: dict[str, str]) -> None:
            super().begin(required)
            work = batches._parts

            def parts(batch: Any, originals: Any, ensemble: Any, size: int) -> Any:
                with told.open("a") as file:
                    file.write(f"{size}{' again' if ensemble.recompute else ''}\n")
                if size > 1:
                    raise MemoryError  # as NumPy and Pillow do
                if size > enough or not ensemble.recompute:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
                return work(batch, originals, ensemble, size)

            batches._parts = parts

    return Starving


def test_a_worker_that_runs_out_of_memory_goes_on_with_less(
    data: Path, llava: str, whole: dict[str, str], tmp_path: Path, started: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "told"
    monkeypatch.setattr(ray_engine, "Worker", starving(told, enough=1))
    assert contents(protected(data, llava, tmp_path / "release", ONE).path) == whole
    tried = told.read_text().splitlines()
    # Three batches of two samples and one of one, which the next batch begins with twice the size of.
    assert tried == [*["2", "1", "1 again"] * 3, "2", "1 again"] * 2, "both rounds"


@pytest.mark.slow
def test_a_worker_with_no_memory_for_one_sample_says_so(
    data: Path, llava: str, tmp_path: Path, started: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_engine, "Worker", starving(tmp_path / "told", enough=0))
    with pytest.raises(SurrogateError, match=r"memory is not enough for it, even one sample at a time"):
        protected(data, llava, tmp_path / "release", ONE)


@pytest.mark.slow
def test_what_kills_every_worker_ends_the_run_and_what_is_done_stays(
    data: Path, llava: str, whole: dict[str, str], tmp_path: Path, started: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, give, given = tmp_path / "release", ray_engine.RayEngine._give, []

    def deadly(self: ray_engine.RayEngine, *arguments: Any) -> None:
        give(self, *arguments)
        given.append(1)
        if len(given) > 1:
            ray.kill(last(self))

    with monkeypatch.context() as patch:
        patch.setattr(ray_engine.RayEngine, "_give", deadly)
        with pytest.raises(EngineError, match=r"3 workers were lost .* what is done so far stays"):
            protected(data, llava, out, ONE)
    assert len(list((layout.record_folder(out) / layout.STATE).glob("batch-*"))) == 1
    assert contents(protected(data, llava, out, EngineConfig()).path) == whole


@pytest.mark.parametrize(
    ("first", "second"),
    [(TWO, EngineConfig()), pytest.param(EngineConfig(), TWO, marks=pytest.mark.slow)],
    ids=["ray", "local"],
)
def test_either_engine_finishes_what_the_other_began(
    first: EngineConfig, second: EngineConfig, data: Path, llava: str, whole: dict[str, str], tmp_path: Path,
    started: None, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    out = tmp_path / "release"
    with monkeypatch.context() as patch:
        patch.setattr(journal, "write_durably", at_write(6, False, Crash()))
        with pytest.raises(Crash):
            protected(data, llava, out, first)
    assert contents(protected(data, llava, out, second).path) == whole


def test_errors_of_workers_are_those_of_one_process(data: Path, tmp_path: Path, started: None) -> None:
    with pytest.raises(SurrogateError) as local:
        protected(data, "zoo:none", tmp_path / "local", EngineConfig())
    with pytest.raises(SurrogateError) as side_by_side:
        protected(data, "zoo:none", tmp_path / "ray", TWO)
    assert str(side_by_side.value) == str(local.value)
    error = pickle.loads(pickle.dumps(SampleError("1.png", "is no picture")))
    assert (str(error), error.where) == ("1.png: is no picture", "1.png")


def test_what_ray_cannot_do_is_refused(data: Path, llava: str, tmp_path: Path, started: None) -> None:
    with pytest.raises(ConfigError, match="give their names, or use engine local"):
        protect(data, [load_surrogate(llava, device="cpu")], CONFIG, tmp_path / "a", device="cpu", engine=TWO)
    with pytest.raises(ConfigError, match="workers 3: Ray has room for 2"):
        protected(data, llava, tmp_path / "b", EngineConfig("ray", workers=3))
    with pytest.raises(ConfigError, match="workers with 1 GPUs and a driver on cpu"):
        protected(data, llava, tmp_path / "c", EngineConfig("ray", gpus_per_worker=1))
    wrong: dict[str, Any]
    more = {"engine": "ray", "gpus_per_worker": 1.5}
    for wrong in ({"workers": 0}, {"workers": 2}, {"address": "auto"}, {"engine": "spark"}, more):
        with pytest.raises(ConfigError):
            EngineConfig(**wrong)


@pytest.mark.parametrize(("gpus", "room"), [(1, 3), (2, 1), (0.5, 5), (0.6, 3), (0.1, 9), (0, 9)])
def test_a_share_of_a_gpu_is_of_one_gpu(monkeypatch: pytest.MonkeyPatch, gpus: float, room: int) -> None:
    nodes = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 1.0, "GPU": 1.0}]
    monkeypatch.setattr(ray_engine.ray, "nodes", lambda: [{"Resources": one, "Alive": True} for one in nodes])
    with pytest.raises(ConfigError, match=f"workers {room + 1}: Ray has room for {room},"):
        ray_engine._require_room(room + 1, gpus)
    ray_engine._require_room(room, gpus)


def test_ray_listens_to_this_machine_alone(started: None) -> None:
    alive = [one for one in psutil.Process().children(recursive=True) if one.status() != psutil.STATUS_ZOMBIE]
    ours = [process for process in alive if "ray" in " ".join(process.cmdline())]
    sockets = [socket for process in ours for socket in process.net_connections("tcp")]
    listening = {socket.laddr.ip for socket in sockets if socket.status == psutil.CONN_LISTEN}
    assert listening
    assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}


def test_other_versions_are_refused(llava: str) -> None:
    here = ray_engine.versions(*ray_engine._PACKAGES)
    with pytest.raises(ConfigError, match=rf"has torch {here['torch'].replace('+', '.')} instead of 1.0: install"):
        ray_engine.Worker([llava], CONFIG, "cpu").begin(here | {"torch": "1.0"})


def test_without_ray_the_cure_is_said(data: Path, llava: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mmguard.protection.ray_engine")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'mmguard\[ray\]'"):
        protected(data, llava, tmp_path / "release", TWO)


def test_previews_and_dry_runs_take_no_workers(data: Path) -> None:
    result = CliRunner().invoke(cli.app, ["protect", str(data), "--dry-run", "--engine", "ray"])
    assert result.exit_code == 2
    assert "engine is for protections" in " ".join(result.stderr.split())


@pytest.mark.slow
def test_the_command_starts_ray_and_ends_it(data: Path, llava: str, whole: dict[str, str], tmp_path: Path) -> None:
    """In a process of its own, as nobody has started Ray there."""
    command = [
        sys.executable, "-m", "mmguard.cli", "protect", str(data), "-o", str(tmp_path / "release"),
        "--surrogate", llava, "--inner-steps", "1",
        "--rounds", "2", "--pgd-steps", "2", "--top-c", "4", "--trigger-words", "2", "--batch-size", "2",
        "--device", "cpu", "--engine", "ray", "--workers", "2", "--json",
    ]  # fmt: skip
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["images"] == 6
    # The folder of the whole release has another name, and the record other paths.
    released = {name: digest for name, digest in contents(tmp_path / "release").items() if ".record" not in name}
    assert released.items() <= whole.items()


@pytest.mark.slow
def test_a_lost_node_changes_nothing(data: Path, llava: str, whole: dict[str, str], tmp_path: Path, hurt: Any) -> None:
    ray.shutdown()  # the module's own
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    nodes = []

    def remove(engine: ray_engine.RayEngine) -> None:
        nodes.append({facts["Address"]["NodeID"] for facts in actors().values()})
        cluster.remove_node(second, allow_graceful=False)

    hurt(2, remove)
    try:
        release = protected(data, llava, tmp_path / "release", replace(TWO, address=cluster.address))
        assert contents(release.path) == whole
        assert len(nodes[0]) == 2
    finally:
        ray.shutdown()
        cluster.shutdown()
