"""From a dataset to a release: the owner's side of the program."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from mmguard.config import EngineConfig, ProtectConfig
from mmguard.data.readers import read_dataset
from mmguard.errors import SampleError
from mmguard.lvlm.captions import with_captions
from mmguard.lvlm.surrogate import Surrogate
from mmguard.perturb.trigger import Trigger
from mmguard.protection.batch import Item
from mmguard.protection.decoys import assign
from mmguard.protection.deltas import DeltaFile
from mmguard.protection.engine import Engine, engine_of
from mmguard.protection.journal import FileJournal
from mmguard.protection.loop import inner_steps, optimise, work
from mmguard.protection.prepare import (
    begin,
    captions_of,
    chosen,
    ensemble_of,
    names_of,
    require_something_to_do,
    speechless,
)
from mmguard.protection.sharing import share
from mmguard.release.writer import Release, ReleaseWriter
from mmguard.runtime.progress import Told, progress, stages
from mmguard.types import Dataset, Rejection

WRITERS = 4
"""Threads that encode and write pictures."""


def protect(
    dataset: str | Path | Dataset,
    surrogates: Sequence[str | Surrogate] = ("auto",),
    config: ProtectConfig | None = None,
    out: str | Path | None = None,
    *,
    split: str | None = None,
    limit: int | None = None,
    device: str = "auto",
    engine: EngineConfig | None = None,
    show_progress: bool | Told = False,
) -> Release:
    """Protects a dataset and writes the release. What an earlier run of the same left unfinished is finished.

    Args:
        dataset: whatever `read_dataset` reads, or one that was read already. It is never modified. Pictures without
            text are protected against the first surrogate's own captions.
        surrogates: hub ids, local folders, `zoo:NAME`, `auto`, or loaded surrogates, which come back exactly as they
            were. Several make an ensemble (Eq. 31).
        config: settings; the defaults if not given.
        out: folder of the release; the private record goes beside it, to `OUT.record`. If not given, the dataset's name
            with `-release` behind it, in the current folder.
        split: protect only this split.
        limit: protect only the first so many images.
        device: `auto`, `cpu`, `cuda`…
        engine: who does the work; this process if not given. Ray takes names of surrogates only.
        show_progress: a bar with the time that remains for each stage, on standard error; or a function that is told
            how far each stage is.

    Returns:
        What was written. Samples that could not be protected are in its `failed`, and not in the release.

    Raises:
        ConfigError: settings that exclude each other.
        DataError: the dataset cannot be read, or nothing in it can be protected.
        SurrogateError: a surrogate cannot be loaded or used.
        EngineError: workers are lost again and again.
        ReleaseError: the release cannot be written, another run is writing it, or an unfinished one is not of the same.
    """
    config = config or ProtectConfig()
    data = dataset if isinstance(dataset, Dataset) else read_dataset(dataset, split, limit)
    require_something_to_do(data, config)
    source = str(dataset) if not isinstance(dataset, Dataset) else str(data.root)
    needed = chosen(surrogates, config, device)
    # Before the models: a folder that cannot be written should be known in a second, not after a download.
    out = Path(out) if out is not None else default_folder(source)
    writer = ReleaseWriter(out, data, config, names_of(needed), source=source, split=split, limit=limit)
    with closing(writer), engine_of(engine or EngineConfig(), needed, config, device) as workers:
        return _fill(writer, data, needed, config, device, workers, show_progress)


def _fill(
    writer: ReleaseWriter,
    data: Dataset,
    needed: Sequence[str | Surrogate],
    config: ProtectConfig,
    device: str,
    engine: Engine,
    show_progress: bool | Told,
) -> Release:
    """Protects and writes, going on from where an earlier run stopped."""
    ensemble = ensemble_of(needed, config, device)
    journal = FileJournal(writer.state, config.perturbs_images)
    said = captions_of(data, ensemble, config, show_progress, journal)
    data = with_captions(data, said)

    failed = speechless(said, names_of(needed))
    items, unreadable = begin(data, config, ensemble, DeltaFile(writer.deltas), failed, show_progress)
    failed += unreadable
    if config.misleads:
        assign(items, data.samples)
    adaptation: dict[str, Any] = {}
    if config.optimised and ensemble is not None:
        with stages(work(items, config), show_progress) as told:
            optimise(items, ensemble, config, told, journal, engine)
        # Settings may leave both to the data and the models.
        rates = {member.surrogate.name: member.inner_lr for member in ensemble.members}
        adaptation = {"inner_steps": inner_steps(items, config), "inner_lr": rates}
    share(items, config.trigger_scope)

    def write(item: Item) -> None:
        try:
            if item.lost is None:
                writer.write_image(item.path, item.protected())
        except SampleError as error:
            item.lost = error

    # Encoding PNG leaves the interpreter's lock alone: threads share out the work. A few: each holds whole images.
    with progress("Writing", len(items), show_progress) as advance, ThreadPoolExecutor(WRITERS) as pool:
        for _ in pool.map(write, items):
            advance(1)
    failed += [Rejection(str(item.path), str(item.lost)) for item in items if item.lost is not None]
    triggers: dict[str, Trigger] = {}
    places: dict[str, int | None] = {}
    decoys: dict[str, str] = {}
    for item in items:
        item.delta = torch.empty(0)  # lets go of the file
        if item.lost is None:
            triggers |= {sample.id: trigger for sample, trigger in zip(item.samples, item.triggers, strict=True)}
            places |= {sample.id: place for sample, place in zip(item.samples, item.places, strict=True)}
            decoys |= {sample.id: decoy for sample, decoy in zip(item.samples, item.decoys, strict=config.misleads)}
    captioned = {s.id: s.answer for item in items if item.lost is None for s in item.samples if item.path in said}
    return writer.finish(triggers, failed, captioned, places, adaptation, decoys)


def default_folder(source: str) -> Path:
    """Where a release goes if nobody says: the dataset's name with `-release` behind it, in the current folder."""
    return Path(f"{Path(source).name.replace(':', '-')}-release")
