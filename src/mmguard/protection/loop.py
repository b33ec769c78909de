"""Algorithm 1 of MMGuard: alternate between adapting the surrogates and perturbing images and texts."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mmguard.config import ProtectConfig
from mmguard.data.carrier import carrier_for
from mmguard.data.images import Picture, load_image, load_picture
from mmguard.data.tasks import target_text
from mmguard.data.text import place_within
from mmguard.errors import SampleError, SurrogateError
from mmguard.lvlm.prompt import Example
from mmguard.perturb import image as pgd
from mmguard.perturb import jpeg as encoder
from mmguard.perturb import trigger as hotflip
from mmguard.perturb.budget import ImageBudget, apply, to_unit
from mmguard.perturb.objective import Reference
from mmguard.perturb.trigger import Trigger
from mmguard.protection.ensemble import Ensemble
from mmguard.protection.journal import Journal
from mmguard.runtime.memory import is_out_of_memory, release_memory
from mmguard.runtime.prefetch import prefetched
from mmguard.types import Sample

Stage = Literal["Adapting", "Perturbing", "Searching"]
"""What a round consists of: adapting the surrogates, PGD on the images, HotFlip on the triggers."""
Advance = Callable[[Stage, float], None]
"""Says that so many more units of a stage's `work` are done."""


@dataclass
class Item:
    """One image with all its samples: they share δ and are optimised together."""

    path: Path
    samples: list[Sample]
    delta: Tensor
    """Present δ, int8 `(3, H, W)`; changed in place."""
    triggers: list[Trigger] = field(default_factory=list)
    """Present trigger of every sample; empty for captions."""
    places: list[int | None] = field(default_factory=list)
    """After how many words of its question each trigger stands; None for the end."""
    seen: pgd.Seen = pgd.as_it_is
    """What a reader of the released file sees: JPEG changes pictures once more."""
    lost: SampleError | None = None
    """Why its original could not be read any more, if so: nothing further is done with it."""

    @property
    def examples(self) -> list[Example]:
        """The samples with their present triggers, as a surrogate is trained on them."""
        return [
            Example(sample.question, target_text(sample), sample.options, trigger, place)
            for sample, trigger, place in zip(self.samples, self.triggers, self.places, strict=True)
        ]

    def original(self) -> Tensor:
        """The owner's image, uint8 `(3, H, W)`, read anew: originals are not all kept in memory."""
        return load_image(self.path)

    def protected(self) -> Tensor:
        """The image as it would be encoded now, uint8 `(3, H, W)`."""
        return apply(self.original(), self.delta)


def optimise(
    items: Sequence[Item],
    ensemble: Ensemble,
    config: ProtectConfig,
    advance: Advance = lambda stage, amount: None,
    journal: Journal | None = None,
) -> None:
    """Algorithm 1, in place on δ and triggers of the items.

    Args:
        items: what to protect.
        ensemble: the surrogates.
        config: R rounds of Q inner steps, PGD steps and trigger search.
        advance: called whenever an inner step is done, the surrogates are adapted, or a batch is through a stage.
        journal: keeps what is done, and what an earlier run left there is not done again; nothing is kept without one.
    """
    journal, recompute = journal or Journal(), ensemble.recompute
    groups = list(batches(items, config.batch_size))
    through = [journal.restore(number, group) for number, group in enumerate(groups)]
    _tell_of_earlier(through, groups, config, advance)
    try:
        with ensemble.adaptable():
            for round_ in range(min(through), config.rounds):
                size = config.batch_size
                _adapt(items, ensemble, config, round_, advance, journal)
                left = [(number, group) for number, group in enumerate(groups) if through[number] <= round_]
                with ensemble.adapted():
                    advance("Adapting", 1)
                    for (number, group), originals in prefetched(left, lambda job: _originals(job[1])):
                        present, done = [i for i in group if i.lost is None], _once(advance, len(group))
                        size = _protect(present, originals, ensemble, config, size, done)
                        journal.keep(number, group, round_ + 1)
    finally:
        ensemble.recompute = recompute


def _adapt(
    items: Sequence[Item], ensemble: Ensemble, config: ProtectConfig, round_: int, advance: Advance, journal: Journal
) -> None:
    """The inner problem, or what an earlier run made of it."""
    if (weights := journal.adaptation(round_)) is not None:
        ensemble.readapt(weights)
        advance("Adapting", config.inner_steps)
        return
    ensemble.adapt(_inner_batches(items, config, round_, advance), seed=config.seed + round_)
    journal.keep_adaptation(round_, ensemble.adaptation())


def work(items: Sequence[Item], config: ProtectConfig) -> dict[Stage, int]:
    """How much each stage has to do in all, as `optimise` counts it; a stage with nothing to do is not in it."""
    # Putting the adapters to use counts as one more step.
    units: dict[Stage, int] = {"Adapting": config.rounds * (config.inner_steps + 1)}
    if config.perturbs_images:
        units["Perturbing"] = config.rounds * len(items)
    if config.inserts_triggers:
        units["Searching"] = config.rounds * len(items)
    return units


def _tell_of_earlier(
    through: Sequence[int], groups: Sequence[Sequence[Item]], config: ProtectConfig, advance: Advance
) -> None:
    """Tells of the rounds that batches are through from an earlier run."""
    images = sum(rounds * len(group) for rounds, group in zip(through, groups, strict=True))
    done: dict[Stage, int] = {"Adapting": min(through) * (config.inner_steps + 1)}
    done |= {"Perturbing": images, "Searching": images}
    for stage in work([], config).keys() & done.keys():
        advance(stage, done[stage])


def _once(advance: Advance, amount: float) -> Callable[[Stage], None]:
    """Tells of a batch's stages that they are done, each once, however often memory made it try."""
    told: set[Stage] = set()

    def done(stage: Stage) -> None:
        if stage not in told:
            told.add(stage)
            advance(stage, amount)

    return done


def _originals(batch: Sequence[Item]) -> list[Picture]:
    """The originals of the items that are not lost; an item whose file cannot be read any more is from now on."""
    images = []
    for item in batch:
        try:
            if item.lost is None:
                images.append(load_picture(item.path))
        except SampleError as error:
            item.lost = error
    return images


def _protect(
    batch: Sequence[Item],
    pictures: Sequence[Picture],
    ensemble: Ensemble,
    config: ProtectConfig,
    size: int,
    done: Callable[[Stage], None],
) -> int:
    """The outer problem for one batch: both sides, one after the other, with the surrogates held.

    Args:
        batch: whole images.
        pictures: the original of each.
        ensemble: the adapted surrogates.
        config: what to do.
        size: samples that go through a surrogate together.
        done: called after each side.

    Returns:
        The size that memory was enough for: half of the one before as often as it was not. Before it gives up, the
        surrogates compute activations twice instead of keeping them.

    Raises:
        SurrogateError: memory is not enough for one sample.
    """
    originals = [picture.image for picture in pictures]
    while True:
        try:
            parts = _parts(batch, originals, ensemble, size)
            deltas = [item.delta for item in batch]
            if config.perturbs_images:
                deltas = _perturb(batch, deltas, pictures, parts, ensemble, config)
                done("Perturbing")
            if config.inserts_triggers:
                _search_triggers(batch, deltas, originals, parts, ensemble)
                done("Searching")
            if config.perturbs_images:
                for item, delta in zip(batch, deltas, strict=True):
                    item.delta.copy_(delta)
            return size
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if size == 1 and ensemble.recompute:
                names = ", ".join(member.surrogate.name for member in ensemble.members)
                raise SurrogateError(
                    f"{names}: memory is not enough for {batch[0].path} or a picture near it, even one sample at a "
                    "time: take a smaller surrogate, smaller pictures, or a device with more memory"
                ) from error
        ensemble.recompute, size = size == 1 or ensemble.recompute, max(1, size // 2)
        parts = []
        release_memory()


def _inner_batches(
    items: Sequence[Item], config: ProtectConfig, round_: int, advance: Advance
) -> Iterator[tuple[list[Example], list[Tensor]]]:
    """Q random batches of the samples as they are protected now, read one at a time."""
    rng = random.Random(f"{config.seed} inner {round_}")
    flat = [(item, number) for item in items for number in range(len(item.samples))]
    for _ in range(config.inner_steps):
        examples, images = [], []
        for item, number in rng.sample(flat, min(config.inner_batch_size, len(flat))):
            for original in _originals([item]):
                examples.append(item.examples[number])
                images.append(item.seen(original.image, to_unit(apply(original.image, item.delta))))
        if examples:
            yield examples, images
        advance("Adapting", 1)


def batches(items: Sequence[Item], size: int) -> Iterator[list[Item]]:
    """Whole images, together at most `size` samples where no image alone has more."""
    batch: list[Item] = []
    for item in items:
        if batch and sum(len(i.samples) for i in batch) + len(item.samples) > size:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


@dataclass(frozen=True)
class _Part:
    """Samples of a batch that go through the surrogates together; PGD moves neither their texts nor their originals."""

    owners: list[int]
    """Number in the batch of each sample's image."""
    examples: list[Example]
    references: list[Reference]


def _parts(batch: Sequence[Item], originals: Sequence[Tensor], ensemble: Ensemble, size: int) -> list[_Part]:
    rows = [(k, example) for k, item in enumerate(batch) for example in item.examples]
    units = [to_unit(image) for image in originals]
    parts = []
    for start in range(0, len(rows), size):
        owners, examples = zip(*rows[start : start + size], strict=True)
        references = ensemble.references(examples, [units[k] for k in owners])
        parts.append(_Part(list(owners), list(examples), references))
    return parts


def _perturb(
    batch: Sequence[Item],
    deltas: Sequence[Tensor],
    pictures: Sequence[Picture],
    parts: Sequence[_Part],
    ensemble: Ensemble,
    config: ProtectConfig,
) -> list[Tensor]:
    """Outer problem, image: PGD steps with the triggers held."""
    originals = [picture.image for picture in pictures]
    budgets = [ImageBudget(config.eps, picture.alpha) for picture in pictures]

    def backward(protected: list[Tensor]) -> None:
        for part in parts:
            ensemble.backward(part.examples, [protected[k] for k in part.owners], part.references)

    moved = list(deltas)
    for _ in range(config.pgd_steps):
        moved = pgd.descend(backward, originals, moved, budgets, [item.seen for item in batch])
    return moved


def _search_triggers(
    batch: Sequence[Item],
    deltas: Sequence[Tensor],
    originals: Sequence[Tensor],
    parts: Sequence[_Part],
    ensemble: Ensemble,
) -> None:
    """Outer problem, text: HotFlip with the images held."""
    protected = [
        item.seen(image, to_unit(apply(image, delta)))
        for item, image, delta in zip(batch, originals, deltas, strict=True)
    ]
    found: list[list[Trigger]] = [[] for _ in batch]
    for part in parts:
        better = ensemble.search(part.examples, [protected[k] for k in part.owners], part.references)
        for k, trigger in zip(part.owners, better, strict=True):
            found[k].append(trigger)
    for item, triggers in zip(batch, found, strict=True):
        item.triggers = triggers


def start(path: Path, samples: Sequence[Sample], config: ProtectConfig, vocabulary: Sequence[str]) -> Item:
    """An item before the first round: δ and triggers drawn at random within their budgets.

    The draws depend on the seed and the sample's id alone, not on what else is protected.

    Raises:
        SampleError: the image cannot be read.
    """
    picture = load_picture(path)
    generator = torch.Generator().manual_seed(_seed_of(config.seed, samples[0].id))
    budget = ImageBudget(config.eps if config.perturbs_images else 0, picture.alpha)
    random_start = budget.random_signs if config.variant == "random-noise" else budget.random
    words = config.trigger_words if config.inserts_triggers else 0
    triggers = [
        hotflip.random_trigger(vocabulary, words, random.Random(f"{config.seed} trigger {sample.id}"))
        if sample.question is not None
        else ()
        for sample in samples
    ]
    places = [
        place_within(sample.question, random.Random(f"{config.seed} place {sample.id}"))
        if sample.question is not None and config.trigger_place == "inside"
        else None
        for sample in samples
    ]
    jpeg = carrier_for(path, config.format).jpeg if config.format in ("keep", "jpeg") else None
    seen = partial(encoder.seen, jpeg=jpeg, eps=budget.eps) if jpeg is not None else pgd.as_it_is
    return Item(path, list(samples), random_start(picture.image, generator), triggers, places, seen)


def _seed_of(seed: int, identifier: str) -> int:
    return random.Random(f"{seed} delta {identifier}").getrandbits(63)
