"""What a protection would do, found out without writing anything."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mmguard.config import ProtectConfig
from mmguard.data.images import load_image
from mmguard.data.readers import read_dataset
from mmguard.data.tasks import target_text
from mmguard.errors import SampleError
from mmguard.lvlm.prompt import Example
from mmguard.lvlm.surrogate import Surrogate
from mmguard.protection.ensemble import Ensemble
from mmguard.protection.estimate import Estimate, estimate
from mmguard.protection.prepare import chosen, ensemble_of, names_of, nothing_left, refusals, require_something_to_do
from mmguard.protection.run import WRITERS, default_folder
from mmguard.release.writer import require_place
from mmguard.runtime.devices import device_of
from mmguard.runtime.progress import progress
from mmguard.types import Dataset, Rejection


@dataclass(frozen=True)
class Survey:
    """A protection that was not made. Numbers of samples and images are of those that can be read."""

    format: str
    """Of the dataset, and so of the release."""
    shards: int
    """Its data files (tables, Parquet or WebDataset shards…); the release has as many."""
    samples: int
    images: int
    without_question: int
    """Images of which no sample has a question."""
    triggers: int
    """Questions that get a trigger."""
    captions: int
    """Samples whose text is a target and stays as it is."""
    wordless: int
    """Pictures without text."""
    left_out: list[Rejection]
    """What cannot be read, and why."""
    surrogates: list[str]
    """None if the variant needs none."""
    device: str
    out: Path
    """Where the release would be."""
    cost: Estimate
    free_bytes: int
    """What the disk has there."""

    @property
    def seconds(self) -> float:
        """The time in all."""
        return sum(self.cost.seconds.values())

    def to_dict(self) -> dict[str, Any]:
        """All fields and `seconds`, ready for JSON."""
        return {**asdict(self), "out": str(self.out), "seconds": self.seconds}


def survey(
    dataset: str | Path,
    surrogates: Sequence[str | Surrogate] = ("auto",),
    config: ProtectConfig | None = None,
    out: str | Path | None = None,
    *,
    split: str | None = None,
    limit: int | None = None,
    device: str = "auto",
    show_progress: bool = False,
) -> Survey:
    """Reads a dataset as `protect` would, every image included, and estimates what protecting it takes.

    Nothing is written, but a dataset or a model that lies elsewhere is fetched into the usual caches. Arguments and
    errors are those of `protect`: where it would refuse to begin, so does this.
    """
    config = config or ProtectConfig()
    data = read_dataset(dataset, split, limit)
    require_something_to_do(data, config)
    needed = chosen(surrogates, config, device)
    place = (Path(out) if out is not None else default_folder(str(dataset))).resolve()
    require_place(place, data, config)
    sizes, unreadable = _examine(data, show_progress)
    began = time.perf_counter()
    ensemble = ensemble_of(needed, config, device)
    loading = {"Loading": time.perf_counter() - began} if ensemble else {}
    if ensemble is not None and config.optimised:
        unreadable += _refused(data, sizes, ensemble)
    lost = {rejection.where for rejection in unreadable}
    pixels = {path: height * width for path, (height, width) in sizes.items() if str(path) not in lost}
    if not pixels:
        raise nothing_left(data, unreadable)
    rows = {sample.row for sample in data.samples if sample.id in lost}
    taken = [sample for sample in data.samples if sample.image in pixels and sample.row not in rows]
    readable = replace(data, samples=taken)
    cost = estimate(readable, pixels, ensemble, config, show_progress)
    asked = [sample for sample in readable.samples if sample.question is not None]
    wordless = {sample.image for sample in readable.samples if not sample.answer}
    return Survey(
        format=data.format,
        shards=len(data.files),
        samples=len(readable.samples),
        images=len(pixels),
        without_question=len(pixels) - len({sample.image for sample in asked}),
        triggers=len(asked) if config.inserts_triggers else 0,
        captions=len(readable.samples) - len(asked) - len(wordless),
        wordless=len(wordless),
        left_out=[*data.rejected, *unreadable],
        surrogates=names_of(needed),
        device=str(device_of(device)),
        out=place,
        cost=replace(cost, seconds=loading | cost.seconds),
        free_bytes=shutil.disk_usage(next(folder for folder in (place, *place.parents) if folder.exists())).free,
    )


def _examine(data: Dataset, show_progress: bool) -> tuple[dict[Path, tuple[int, int]], list[Rejection]]:
    """Decodes every image: `(H, W)` of those that can be read, and why the others cannot."""

    def look(path: Path) -> tuple[int, int] | Rejection:
        try:
            image = load_image(path)
        except SampleError as error:
            return Rejection(str(path), str(error))
        return image.shape[1], image.shape[2]

    sizes: dict[Path, tuple[int, int]] = {}
    unreadable: list[Rejection] = []
    paths = list(data.by_image())
    with progress("Reading", len(paths), show_progress) as advance, ThreadPoolExecutor(WRITERS) as pool:
        for path, found in zip(paths, pool.map(look, paths), strict=True):
            if isinstance(found, Rejection):
                unreadable.append(found)
            else:
                sizes[path] = found
            advance(1)
    return sizes, unreadable


def _refused(data: Dataset, sizes: Mapping[Path, tuple[int, int]], ensemble: Ensemble) -> list[Rejection]:
    """What a surrogate does not take: images for their shape, samples for what they say."""
    refused = []
    for path, samples in data.by_image().items():
        # Pictures without text get one from the surrogate itself.
        examples = [Example(s.question, target_text(s) or "a picture", s.options) for s in samples]
        try:
            if path in sizes:
                refused += refusals(samples, examples, sizes[path], ensemble)
        except SampleError as error:
            refused.append(Rejection(str(path), str(error)))
    return refused
