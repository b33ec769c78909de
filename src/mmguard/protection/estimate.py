"""What a protection costs, from one round that is timed on a few of its pictures."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

from mmguard.config import ProtectConfig
from mmguard.data import formats
from mmguard.data.images import load_picture, picture_of
from mmguard.lvlm.captions import with_captions
from mmguard.protection.batch import Item, Stage
from mmguard.protection.ensemble import Ensemble
from mmguard.protection.loop import optimise
from mmguard.protection.prepare import begin, captions_of
from mmguard.protection.run import WRITERS
from mmguard.release.layout import budgets
from mmguard.release.pictures import store
from mmguard.release.writer import working_bytes
from mmguard.runtime.executor import cores
from mmguard.runtime.progress import progress
from mmguard.types import Dataset

_PATIENCE = 20.0
"""Seconds that the longer of the timed rounds may take."""
_QUESTIONS = 2
"""Questions of each picture, at most, that a round is timed with."""

Element = TypeVar("Element")


@dataclass(frozen=True)
class Estimate:
    """Time and room that a protection takes."""

    seconds: dict[str, float]
    """By stage, in the order in which they begin; without loading models."""
    method: str
    """How they were measured."""
    release_bytes: int
    """Size of the release."""
    working_bytes: int
    """What the record folder needs besides while the protection runs."""


@dataclass(frozen=True)
class _Round:
    """Seconds that parts of a round take."""

    step: float
    """One inner step."""
    merge: float
    """Putting the adapters to use."""
    sample: float
    """PGD on one sample, all steps."""
    question: float
    """The trigger search for one question."""


@dataclass(frozen=True)
class _Files:
    """What pictures take on the way from disk to disk, by pixel."""

    reading: float
    writing: float
    """Seconds in one thread."""
    bytes: float


def estimate(
    data: Dataset,
    pixels: Mapping[Path, int],
    ensemble: Ensemble | None,
    config: ProtectConfig,
    show_progress: bool = False,
) -> Estimate:
    """Times one round on a few pictures, and multiplies.

    Args:
        data: what would be protected; its images can be read.
        pixels: of every image.
        ensemble: the surrogates, which come back exactly as they were; None if the variant needs none.
        config: settings of the protection.
        show_progress: show a bar.
    """
    few = _few(data, pixels, config)
    began = time.perf_counter()
    said = captions_of(few, ensemble, config)
    captioning = (time.perf_counter() - began) / max(1, len(said))
    # Where the model says nothing, any words do to measure with.
    few = with_captions(few, {path: text or "a picture" for path, text in said.items()})
    items, _ = begin(few, config, ensemble)
    optimised: dict[str, float] = {}
    timed = 0
    if config.optimised and ensemble is not None:
        round_, timed = _measured_round(items, ensemble, config, show_progress)
        optimised = _extrapolated(round_, data, config)
    files, size = _measured_files(items, config), sum(pixels.values())
    wordless = len({sample.image for sample in data.samples if not sample.answer})
    contained = formats.named(data.format).contains
    pictures = round(files.bytes * size)
    return Estimate(
        seconds={
            "Reading": files.reading * size,
            **({"Captioning": captioning * wordless} if said else {}),
            **optimised,
            "Writing": files.writing * size / min(WRITERS, cores()),
        },
        method=_method(timed, len(items), config),
        release_bytes=pictures + (0 if contained else sum(f.stat().st_size for f in data.files)),
        working_bytes=working_bytes(data, config, size, pictures),
    )


def _few(data: Dataset, pixels: Mapping[Path, int], config: ProtectConfig) -> Dataset:
    """At most a batch of pictures from small to large, with questions if there are any."""
    groups = data.by_image()
    asked = [path for path, samples in groups.items() if any(sample.question is not None for sample in samples)]
    paths = _spread(sorted(asked or groups, key=lambda path: pixels[path]), config.batch_size)
    return replace(data, samples=[sample for path in paths for sample in groups[path][:_QUESTIONS]])


def _spread(elements: Sequence[Element], number: int) -> list[Element]:
    """So many elements, or all, at equal distances."""
    number = min(number, len(elements))
    return [elements[(2 * k + 1) * len(elements) // (2 * number)] for k in range(number)]


def _measured_round(
    items: Sequence[Item], ensemble: Ensemble, config: ProtectConfig, show_progress: bool
) -> tuple[_Round, int]:
    """A round on as many pictures as patience allows, and their number."""
    light = replace(config, pgd_steps=min(config.pgd_steps, 1), top_c=1)
    with progress("Timing a round", 3, show_progress) as advance:
        _time_round(_spread(items, 1), ensemble, light)  # the first of anything takes longer
        advance(1)
        began = time.perf_counter()
        alone = _time_round(_spread(items, 1), ensemble, config)
        number = int(_PATIENCE / (time.perf_counter() - began))
        advance(1)
        some = _spread(items, max(1, number))
        several = _time_round(some, ensemble, config) if len(some) > 1 else alone
        advance(1)
        return several, len(some)


def _time_round(items: Sequence[Item], ensemble: Ensemble, config: ProtectConfig) -> _Round:
    spent: dict[Stage, list[float]] = {"Adapting": [], "Perturbing": [], "Searching": []}
    last = time.perf_counter()

    def told(stage: Stage, amount: float) -> None:
        nonlocal last
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        spent[stage].append(now - last)
        last = now

    # Of two inner steps the second counts: with the first, adapters are put in.
    optimise(items, ensemble, replace(config, rounds=1, inner_steps=0 if config.inner_steps == 0 else 2), told)
    *steps, merge = spent["Adapting"]
    samples = [sample for item in items for sample in item.samples]
    questions = sum(sample.question is not None for sample in samples)
    return _Round(
        step=steps[-1] / min(config.inner_batch_size, len(samples)) * config.inner_batch_size if steps else 0.0,
        merge=merge,
        sample=sum(spent["Perturbing"]) / len(samples),
        question=sum(spent["Searching"]) / max(1, questions),
    )


def _extrapolated(round_: _Round, data: Dataset, config: ProtectConfig) -> dict[str, float]:
    """Seconds of all rounds on the whole dataset."""
    seconds = {"Adapting": config.rounds * (config.inner_steps_for(len(data.samples)) * round_.step + round_.merge)}
    if config.perturbs_images:
        seconds["Perturbing"] = config.rounds * round_.sample * len(data.samples)
    if config.inserts_triggers:
        questions = sum(sample.question is not None for sample in data.samples)
        seconds["Searching"] = config.rounds * round_.question * questions
    return seconds


def _measured_files(items: Sequence[Item], config: ProtectConfig) -> _Files:
    reading = writing = 0.0
    pixels = size = 0
    for item in items:
        began = time.perf_counter()
        picture = load_picture(item.path)
        read = time.perf_counter()
        # As run and writer do it: the original twice, and what was written once.
        protected, _ = item.protected(), item.original()
        stored = store(item.path, picture, protected, config, budgets(config)[0])
        picture_of(stored.content, item.path)
        writing += time.perf_counter() - read
        reading += read - began
        pixels += picture.image.shape[1] * picture.image.shape[2]
        size += len(stored.content)
    return _Files(reading / pixels, writing / pixels, size / pixels)


def _method(timed: int, written: int, config: ProtectConfig) -> str:
    files = f"reading and writing were timed on {written} pictures"
    if not timed:
        return f"{files}, and multiplied by the pixels there are."
    return (
        f"One round was timed on {timed} of the pictures, with at most {_QUESTIONS} questions each, after a warm-up, "
        f"and multiplied by the samples, questions and inner steps there are and by {config.rounds} rounds; {files}."
    )
