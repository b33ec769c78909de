"""From a dataset to a release: the owner's side of the program."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from mmguard.config import ProtectConfig
from mmguard.data.readers import read_dataset
from mmguard.errors import ConfigError, DataError, SampleError
from mmguard.lvlm.captions import captions, with_captions
from mmguard.lvlm.choose import choose_surrogate
from mmguard.lvlm.surrogate import Surrogate, load_surrogate
from mmguard.perturb.trigger import Trigger
from mmguard.protection.deltas import DeltaFile
from mmguard.protection.ensemble import Ensemble
from mmguard.protection.loop import Item, optimise, start
from mmguard.release.writer import Release, ReleaseWriter
from mmguard.runtime.progress import progress
from mmguard.types import Dataset, Rejection

_WRITERS = 4


def protect(
    dataset: str | Path | Dataset,
    surrogates: Sequence[str | Surrogate] = ("auto",),
    config: ProtectConfig | None = None,
    out: str | Path | None = None,
    *,
    split: str | None = None,
    limit: int | None = None,
    device: str = "auto",
    show_progress: bool = False,
) -> Release:
    """Protects a dataset and writes the release.

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
        show_progress: a bar with the time that remains, on standard error.

    Returns:
        What was written. Samples that could not be protected are in its `failed`, and not in the release.

    Raises:
        ConfigError: settings that exclude each other.
        DataError: the dataset cannot be read, or nothing in it can be protected.
        SurrogateError: a surrogate cannot be loaded or used.
        ReleaseError: the release cannot be written.
    """
    config = config or ProtectConfig()
    data = dataset if isinstance(dataset, Dataset) else read_dataset(dataset, split, limit)
    _require_something_to_do(data, config)
    source = str(dataset) if not isinstance(dataset, Dataset) else str(data.root)
    chosen = [_chosen(s, device) for s in surrogates] if config.needs_models else []
    names = [s.name if isinstance(s, Surrogate) else s for s in chosen]
    # Before the models: a folder that cannot be written should be known in a second, not after a download.
    out = Path(out) if out is not None else Path(f"{Path(source).name.replace(':', '-')}-release")
    writer = ReleaseWriter(out, data, config, names, source=source, split=split, limit=limit)
    models = [s if isinstance(s, Surrogate) else load_surrogate(s, device) for s in chosen]
    ensemble = Ensemble(models, config) if models else None
    said, speechless = _captions(data, models[0], config.batch_size) if config.optimised else ({}, [])
    data = with_captions(data, said)

    deltas = DeltaFile(writer.deltas)
    items, failed = _start(data, config, ensemble, deltas, speechless)
    if config.optimised and ensemble is not None:
        with progress("Protecting", len(items) * config.rounds, show_progress) as advance:
            optimise(items, ensemble, config, advance)

    def write(item: Item) -> None:
        try:
            if item.lost is None:
                writer.write_image(item.path, item.protected())
        except SampleError as error:
            item.lost = error

    # Encoding PNG leaves the interpreter's lock alone: threads share out the work. A few: each holds whole images.
    with progress("Writing", len(items), show_progress) as advance, ThreadPoolExecutor(_WRITERS) as pool:
        for _ in pool.map(write, items):
            advance(1)
    failed += [Rejection(str(item.path), str(item.lost)) for item in items if item.lost is not None]
    triggers: dict[str, Trigger] = {}
    places: dict[str, int | None] = {}
    for item in items:
        item.delta = torch.empty(0)  # lets go of the file
        if item.lost is None:
            triggers |= {sample.id: trigger for sample, trigger in zip(item.samples, item.triggers, strict=True)}
            places |= {sample.id: place for sample, place in zip(item.samples, item.places, strict=True)}
    captioned = {s.id: s.answer for item in items if item.lost is None for s in item.samples if item.path in said}
    return writer.finish(triggers, failed, captioned, places)


def _chosen(surrogate: str | Surrogate, device: str) -> str | Surrogate:
    if isinstance(surrogate, Surrogate):
        return surrogate
    return choose_surrogate(device).name if surrogate == "auto" else str(surrogate)


def _captions(data: Dataset, model: Surrogate, batch_size: int) -> tuple[dict[Path, str], list[Rejection]]:
    """The model's captions of pictures without text, and those that it says nothing of."""
    said = captions(model, [path for path, samples in data.by_image().items() if not samples[0].answer], batch_size)
    nothing = f"has no text, and {model.name} says nothing of it: give it a caption, or take another surrogate"
    return said, [Rejection(str(path), nothing) for path, text in said.items() if not text]


def _start(
    data: Dataset,
    config: ProtectConfig,
    ensemble: Ensemble | None,
    deltas: DeltaFile,
    speechless: Sequence[Rejection],
) -> tuple[list[Item], list[Rejection]]:
    vocabulary = ensemble.vocabulary() if ensemble else ()
    items, failed = [], list(speechless)
    for path, samples in data.by_image().items():
        try:
            items.append(start(path, samples, config, vocabulary))
            if config.perturbs_images:
                deltas.append(items[-1].delta)
            items[-1].delta = items[-1].delta.new_zeros(1, 1, 1).expand_as(items[-1].delta)
        except SampleError as error:
            failed.append(Rejection(str(path), str(error)))
    if not items:
        reasons = "; ".join(rejection.reason for rejection in failed[:3])
        raise DataError(f"{data.root}: none of its {len(failed)} images can be protected: {reasons}")
    if config.perturbs_images:
        for item, delta in zip(items, deltas.mapped(), strict=True):
            item.delta = delta
    return items, failed


def _require_something_to_do(data: Dataset, config: ProtectConfig) -> None:
    if not config.perturbs_images and not config.inserts_triggers:
        raise ConfigError(
            f"variant {config.variant} with eps {config.eps} and {config.trigger_words} trigger words changes nothing: "
            "raise the budget or choose another variant"
        )
    if not config.perturbs_images and all(sample.question is None for sample in data.samples):
        raise ConfigError(
            f"variant {config.variant} protects questions, and {data.root} has captions only, which are targets: "
            "choose a variant that perturbs images"
        )
