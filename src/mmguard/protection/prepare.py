"""What comes before Algorithm 1: settings that make sense, surrogates, captions, and items with a random start."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from mmguard.config import ProtectConfig
from mmguard.errors import ConfigError, DataError, SampleError
from mmguard.lvlm.captions import captions
from mmguard.lvlm.choose import Choice, choose_surrogate
from mmguard.lvlm.language import load_language_model
from mmguard.lvlm.loading import load_surrogate
from mmguard.lvlm.prompt import Example
from mmguard.lvlm.surrogate import Surrogate
from mmguard.protection.batch import Item
from mmguard.protection.decoys import decoys
from mmguard.protection.deltas import DeltaFile
from mmguard.protection.ensemble import Ensemble
from mmguard.protection.journal import Journal
from mmguard.protection.loop import start
from mmguard.release.layout import relative
from mmguard.runtime.devices import device_of
from mmguard.runtime.progress import Told, progress
from mmguard.types import Dataset, Rejection, Sample

Named = TypeVar("Named", str, str | Surrogate)


def require_something_to_do(data: Dataset, config: ProtectConfig) -> None:
    """Refuses a run that would change nothing, or whose pictures could be mistaken for nothing else.

    Raises:
        ConfigError: neither images nor questions would be changed, or there is one answer in all for `mislead`.
    """
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
    # A picture without text gets its answer later.
    known = all(sample.answer for sample in data.samples)
    if config.misleads and known and not decoys(data.samples):
        raise ConfigError(
            f"variant mislead: the answer is always {data.samples[0].answer!r}, and there is no other to mistake a "
            "picture for: take more samples or another variant"
        )


def chosen(
    surrogates: Sequence[Named],
    config: ProtectConfig,
    device: str,
    tell: Callable[[Choice], None] = lambda choice: None,
) -> list[Named | str]:
    """The surrogates that this run needs, with a choice for `auto`, which `tell` is told; none if it needs none."""
    if not config.needs_models:
        return []
    if "auto" not in surrogates:
        return list(surrogates)
    choice = choose_surrogate(device)
    tell(choice)
    return [choice.name if surrogate == "auto" else surrogate for surrogate in surrogates]


def names_of(surrogates: Sequence[str | Surrogate]) -> list[str]:
    """What the surrogates are called."""
    return [one.name if isinstance(one, Surrogate) else str(one) for one in surrogates]


def ensemble_of(surrogates: Sequence[str | Surrogate], config: ProtectConfig, device: str) -> Ensemble | None:
    """The surrogates and the language model for fluency, loaded where they are not; None if there are no surrogates.

    Raises:
        ConfigError: surrogates and settings do not go together.
        SurrogateError: one cannot be loaded or used.
    """
    models = [one if isinstance(one, Surrogate) else load_surrogate(str(one), device) for one in surrogates]
    language = load_language_model(config.fluency, device_of(device)) if models and config.fluency else None
    return Ensemble([model.limited(config.max_pixels) for model in models], config, language) if models else None


def captions_of(
    data: Dataset,
    ensemble: Ensemble | None,
    config: ProtectConfig,
    show_progress: bool | Told = False,
    journal: Journal | None = None,
) -> dict[Path, str]:
    """The first surrogate's captions of pictures without text, "" where it says nothing; none for controls.

    Args:
        data: what is protected.
        ensemble: the surrogates, if there are any.
        config: settings of the run.
        show_progress: show a bar, or tell a function.
        journal: keeps them, and of what an earlier run left there nothing is said again; nothing is kept without one.
    """
    wordless = [path for path, samples in data.by_image().items() if not samples[0].answer]
    if ensemble is None or not config.optimised or not wordless:
        return {}
    journal = journal or Journal()
    said: dict[Path, str] = {}
    with progress("Captioning", len(wordless), show_progress) as advance:
        for number, first in enumerate(range(0, len(wordless), config.batch_size)):
            batch = {relative(path, data).as_posix(): path for path in wordless[first : first + config.batch_size]}
            kept = journal.captions(number)
            if left := {name: path for name, path in batch.items() if name not in kept}:
                new = captions(ensemble.members[0].surrogate, list(left.values()), ensemble.at_once(config.batch_size))
                kept |= {name: new[path] for name, path in left.items() if path in new}
                journal.keep_captions(number, kept)
            said |= {path: kept[name] for name, path in batch.items() if name in kept}
            advance(len(batch))
    return said


def speechless(said: Mapping[Path, str], surrogates: Sequence[str]) -> list[Rejection]:
    """Pictures without text of which the surrogate says nothing either."""
    return [
        Rejection(
            str(path),
            f"has no text, and {surrogates[0]} says nothing of it: give it a caption, or take another surrogate",
        )
        for path, text in said.items()
        if not text
    ]


def nothing_left(data: Dataset, lost: Sequence[Rejection]) -> DataError:
    """What to raise where no image can be protected, with the first reasons."""
    reasons = "; ".join(rejection.reason for rejection in lost[:3])
    return DataError(f"{data.root}: none of its {len(lost)} images can be protected: {reasons}")


def refusals(
    samples: Sequence[Sample], examples: Sequence[Example], size: Sequence[int], ensemble: Ensemble
) -> list[Rejection]:
    """The samples of an image that a surrogate does not take for what they say; none if it takes all.

    Args:
        samples: of one image.
        examples: of each.
        size: `(H, W)` of the image.
        ensemble: the surrogates.

    Raises:
        SampleError: not one of them is taken.
    """
    height, width = size
    try:
        ensemble.require_takes(examples, (height, width))
        return []
    except SampleError as error:
        reason = error
    found = []
    for sample, example in zip(samples, examples, strict=True):
        try:
            ensemble.require_takes([example], (height, width))
        except SampleError as error:
            found.append(Rejection(sample.id, str(error)))
    if not _others(samples, found):
        raise reason
    return found


def _others(samples: Sequence[Sample], refused: Sequence[Rejection]) -> list[Sample]:
    """The samples of rows of which none is refused: a conversation is released whole, or not at all."""
    ids = {rejection.where for rejection in refused}
    rows = {sample.row for sample in samples if sample.id in ids}
    return [sample for sample in samples if sample.row not in rows]


def begin(
    data: Dataset,
    config: ProtectConfig,
    ensemble: Ensemble | None,
    deltas: DeltaFile | None = None,
    lost: Sequence[Rejection] = (),
    show_progress: bool | Told = False,
) -> tuple[list[Item], list[Rejection]]:
    """Every image that we and the surrogates can read, with δ and triggers drawn at random, and those that we cannot.

    Args:
        data: what to protect.
        config: its budgets and seed.
        ensemble: for the vocabulary that words are drawn from, and to judge what it cannot take.
        deltas: the file that δ lives in; in memory if not given.
        lost: what is left out already, for the message if nothing remains.
        show_progress: show a bar, or tell a function.

    Raises:
        DataError: no image can be read.
        ReleaseError: the file cannot be written.
    """
    vocabulary = ensemble.vocabulary() if ensemble else ()
    images = data.by_image()
    items, failed = [], []
    with progress("Reading", len(images), show_progress) as advance:
        for path, samples in images.items():
            try:
                item = start(path, samples, config, vocabulary)
                if ensemble is not None and config.optimised:
                    refused = refusals(item.samples, item.examples, item.delta.shape[1:], ensemble)
                    failed += refused
                    if refused:
                        item = start(path, _others(samples, refused), config, vocabulary)
                if deltas is not None:
                    if config.perturbs_images:
                        deltas.append(item.delta)
                    item.delta = item.delta.new_zeros(1, 1, 1).expand_as(item.delta)
                items.append(item)
            except SampleError as error:
                failed.append(Rejection(str(path), str(error)))
            advance(1)
    if not items:
        raise nothing_left(data, [*lost, *failed])
    if deltas is not None and config.perturbs_images:
        for item, delta in zip(items, deltas.mapped(), strict=True):
            item.delta = delta
    return items, failed
