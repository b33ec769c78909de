"""Batches side by side on Ray: on the processors of this machine, or on those of a cluster.

The driver, which is the process that the user started, reads originals, adapts the surrogates and keeps the journal.
Workers are Ray actors, each with surrogates of its own, and need no file system in common. If one is lost, its batch is
done again from what it began with.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from typing import Any

import ray
import torch
from ray._private import ray_constants
from ray.exceptions import RayError, RayTaskError
from torch import Tensor

from mmguard.config import EngineConfig, ProtectConfig
from mmguard.data.images import picture_of, read_file
from mmguard.errors import ConfigError, EngineError, SampleError
from mmguard.perturb.trigger import Trigger
from mmguard.protection.batch import Item, originals, protect_batch, remaining, workload
from mmguard.protection.engine import Advance, Job
from mmguard.protection.ensemble import Ensemble
from mmguard.protection.prepare import ensemble_of
from mmguard.runtime.devices import device_of
from mmguard.runtime.memory import release_memory
from mmguard.runtime.prefetch import prefetched
from mmguard.runtime.provenance import versions

_log = logging.getLogger(__name__)

_PATIENCE = 3
"""How often every worker may be lost, with no batch done in between, before the run gives up."""
_PACKAGES = ("mmguard", "torch", "torchvision", "transformers", "peft", "pillow")
"""Where these differ, machines do not compute the same."""

Task = tuple[Job, list[bytes]]
"""A batch, and the files of its originals."""
Outcome = tuple[Tensor, list[Trigger], SampleError | None]
"""δ and triggers of an item, and why it is lost, if so."""


class Worker:
    """An ensemble in a process of its own.

    Args:
        surrogates: names to load.
        config: what to do with batches.
        device: where models run.
    """

    def __init__(self, surrogates: Sequence[str], config: ProtectConfig, device: str) -> None:
        self._surrogates, self._config, self._device = surrogates, config, device
        self._adapters: list[Any] = []
        self._merged = ExitStack()

    def begin(self, required: dict[str, str]) -> None:
        """Loads the surrogates.

        Raises:
            ConfigError: other versions of packages are installed here than the driver has.
            SurrogateError: a surrogate cannot be loaded.
        """
        differing = [
            f"{name} {here} instead of {required[name]}"
            for name, here in versions(*_PACKAGES).items()
            if here != required[name]
        ]
        if differing:
            node = ray.util.get_node_ip_address()
            raise ConfigError(f"engine ray: {node} has {', '.join(differing)}: install the same versions everywhere")
        if self._device == "cpu":
            torch.set_num_threads(1)  # workers share out the cores
        ensemble = ensemble_of(self._surrogates, self._config, self._device)
        assert ensemble is not None
        self._ensemble: Ensemble = ensemble
        self._size = ensemble.at_once(self._config.batch_size)
        self._adaptable = self._ensemble.adaptable()
        self._adaptable.__enter__()  # for the life of the process

    def protect(self, adapters: list[Any], batch: list[Item], contents: list[bytes]) -> list[Outcome]:
        """The outer problem for one batch.

        Args:
            adapters: reference to the weights of this round, in a list: as it is, it would be fetched for every batch.
            batch: its items.
            contents: the file of each one's original.
        """
        if adapters != self._adapters:
            self._merged.close()
            self._ensemble.readapt(ray.get(adapters[0]))
            self._merged.enter_context(self._ensemble.adapted())
            self._adapters = adapters
        files = {item.path: content for item, content in zip(batch, contents, strict=True)}
        pictures = originals(batch, lambda path: picture_of(files[path], path))
        self._size = protect_batch(remaining(batch), pictures, self._ensemble, self._config, self._size)
        return [(item.delta, item.triggers, item.lost) for item in batch]

    def rest(self) -> None:
        """Gives back what memory it does not use: the driver may adapt on this GPU now."""
        release_memory()


class RayEngine:
    """A pool of workers, each of which does one batch after the other. It goes on with those that it has.

    Args:
        workers: how many.
        options: what Ray reserves for each.
        arguments: of `Worker`.
    """

    def __init__(self, workers: int, options: dict[str, float], arguments: tuple[Any, ...]) -> None:
        self._actor: Any = ray.remote(**options)(Worker)
        self._arguments = arguments
        self._versions = versions(*_PACKAGES)
        self._patience = _PATIENCE * workers
        self._losses = 0
        self._idle: list[Any] = []
        self._busy: dict[Any, tuple[Any, Task | None]] = {}
        """Workers and what they do, by the reference of its result; no task while they begin."""
        for _ in range(workers):
            self._hire()

    def protect(
        self, jobs: Sequence[Job], ensemble: Ensemble, config: ProtectConfig, advance: Advance
    ) -> Generator[Job, None, None]:
        adapters = [ray.put(ensemble.adaptation())]
        advance("Adapting", 1)
        again: list[Task] = []
        left = len(jobs)
        # A worker may share the driver's GPU: each has it in turn.
        with ensemble.on_cpu(), closing(prefetched(jobs, lambda job: originals(job[1], read_file))) as tasks:
            while left:
                while self._idle and (task := again.pop() if again else next(tasks, None)) is not None:
                    self._give(task, adapters)
                task, outcomes = self._ended()
                if task is not None and outcomes is None:
                    again.append(task)
                elif task is not None and outcomes is not None:
                    left -= 1
                    job = task[0]
                    _put(job[1], outcomes, config)
                    for stage, images in workload(job[1], config).items():
                        advance(stage, images)
                    yield job
            resting = [worker.rest.remote() for worker in self._idle]
            ray.wait(resting, num_returns=len(resting))  # what is lost meanwhile is noticed with its next batch

    @property
    def present(self) -> int:
        """Workers that have begun."""
        return len(self._idle) + sum(task is not None for _, task in self._busy.values())

    def close(self) -> None:
        """Ends all workers."""
        for worker in [*self._idle, *(worker for worker, _ in self._busy.values())]:
            ray.kill(worker)

    def _hire(self) -> None:
        worker = self._actor.remote(*self._arguments)
        self._busy[worker.begin.remote(self._versions)] = worker, None

    def _give(self, task: Task, adapters: list[Any]) -> None:
        (_, batch), contents = task
        # Copies: pickle would take a view of the mapped file with all of the file.
        present = [replace(item, delta=item.delta.clone()) for item in remaining(batch)]
        worker = self._idle.pop()
        self._busy[worker.protect.remote(adapters, present, contents)] = worker, task

    def _ended(self) -> tuple[Task | None, list[Outcome] | None]:
        """Waits until any worker has done what it had to do: its task, if it had one, and what came of it, if anything.

        Raises:
            EngineError: workers were lost too often.
            Exception: that of a worker.
        """
        (reference,), _ = ray.wait(list(self._busy), num_returns=1)
        worker, task = self._busy.pop(reference)
        try:
            outcomes: list[Outcome] | None = ray.get(reference)
        except RayTaskError as error:
            raise error.cause from None
        except RayError as error:  # whatever else there is: the worker, its node or the way there is lost
            ray.kill(worker)
            self._losses += 1
            cause = " ".join(str(error).split())
            if self._losses >= self._patience:
                raise EngineError(
                    f"engine ray: {self._losses} workers were lost with no batch done in between ({cause}): where "
                    "memory was not enough take fewer workers, then run again; what is done so far stays"
                ) from error
            _log.warning("a worker was lost, its batch is done again: %s", cause)
            self._hire()
            return task, None
        self._idle.append(worker)
        if task is not None:
            self._losses = 0
        return task, outcomes


def _put(batch: Sequence[Item], outcomes: Sequence[Outcome], config: ProtectConfig) -> None:
    """Puts what a worker made of a batch into its items."""
    for item, (delta, triggers, lost) in zip(remaining(batch), outcomes, strict=True):
        if config.perturbs_images:  # else all of δ is one zero
            item.delta.copy_(delta)
        item.triggers, item.lost = triggers, lost


@contextmanager
def ray_engine(
    choice: EngineConfig, surrogates: Sequence[str], config: ProtectConfig, device: str
) -> Iterator[RayEngine]:
    """Workers on Ray until the end of the block, and Ray itself where nobody started it before.

    Args:
        choice: how many workers, with what, and where.
        surrogates: names that every worker can load.
        config: what to do with batches.
        device: where the driver's models run; workers have the like.

    Raises:
        ConfigError: there is no such cluster, it has no room for the workers, or they have not what the driver has.
    """
    kind = device_of(device).type
    gpus = float(kind == "cuda") if choice.gpus_per_worker is None else choice.gpus_per_worker
    if (gpus > 0) != (kind == "cuda"):
        raise ConfigError(
            f"engine ray: workers with {gpus:g} GPUs and a driver on {kind} would not compute the same: give "
            f"{'--gpus-per-worker 1' if kind == 'cuda' else '--gpus-per-worker 0, or run where there is a GPU'}"
        )
    ours = not ray.is_initialized()
    if ours:
        _connect(choice)
    try:
        _require_room(choice.workers, gpus)
        engine = RayEngine(choice.workers, {"num_cpus": 1, "num_gpus": gpus}, (list(surrogates), config, kind))
        with closing(engine):
            yield engine
    finally:
        if ours:
            ray.shutdown()


def _connect(choice: EngineConfig) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if choice.address is None:
        with _on_loopback():
            ray.init("local", num_cpus=choice.workers, include_dashboard=False, **quiet)
        return
    try:
        ray.init(choice.address, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"address {choice.address}: no Ray cluster to be reached there ({error}): start one with "
            "`ray start --head`, or leave the address out"
        ) from error


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Has a Ray that is started within listen on 127.0.0.1 alone: who can reach it can run any code.

    The address as an argument would be replaced by that of the network card. This is what Ray's own switch
    `RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER` sets, which counts only before Ray is imported.
    """
    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _require_room(workers: int, gpus: float) -> None:
    """Refuses more workers than there is ever a place for: they would be waited for in silence."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    places = [min(node.get("CPU", 0), _shares(node.get("GPU", 0), gpus) if gpus else workers) for node in nodes]
    if (room := sum(map(int, places))) < workers:
        needs = f"one processor and {gpus:g} GPUs" if gpus else "one processor"
        raise ConfigError(f"workers {workers}: Ray has room for {room}, of {needs} each: give fewer, or add nodes")


def _shares(there: float, gpus: float) -> int:
    """How many workers with so many GPUs each, or a share of one, a node's GPUs are enough for: no share is of two."""
    return int(there // gpus) if gpus >= 1 else int(there) * int(1 / gpus)
