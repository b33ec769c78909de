"""Algorithm 1 of MMGuard: alternate between adapting the surrogates and perturbing images and texts."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from math import ceil, cos, pi
from pathlib import Path

import torch
from torch import Tensor

from mmguard.config import AuditConfig, ProtectConfig
from mmguard.data.carrier import carrier_for
from mmguard.data.images import Picture, load_picture
from mmguard.data.text import place_within
from mmguard.errors import SampleError, SurrogateError
from mmguard.lvlm.prompt import Example
from mmguard.perturb import image as pgd
from mmguard.perturb import jpeg as encoder
from mmguard.perturb import trigger as hotflip
from mmguard.perturb.budget import ImageBudget, apply, to_unit
from mmguard.protection.batch import Item, Stage, TooLargeError, originals, workload
from mmguard.protection.engine import Advance, Engine, LocalEngine
from mmguard.protection.ensemble import Ensemble, Rate, constant_rate
from mmguard.protection.journal import Journal
from mmguard.types import Sample

_BATCH_PIXELS = 2**26
"""Five photographs of 12 megapixels: originals, protected images and gradients take about 40 bytes a pixel."""
_FULL_RANGE = 2**15
"""What the brightest level of a 16-bit picture is at least."""


def optimise(
    items: Sequence[Item],
    ensemble: Ensemble,
    config: ProtectConfig,
    advance: Advance = lambda stage, amount: None,
    journal: Journal | None = None,
    engine: Engine | None = None,
) -> None:
    """Algorithm 1, in place on δ and triggers of the items.

    Args:
        items: what to protect.
        ensemble: the surrogates.
        config: R rounds of Q inner steps, PGD steps and trigger search.
        advance: called whenever an inner step is done, the surrogates are adapted, or a batch is through a stage.
        journal: keeps what is done, and what an earlier run left there is not done again; nothing is kept without one.
        engine: who does the batches; this process if not given.

    Raises:
        SurrogateError: memory is enough for no image of the first batch that is done, or for no sample to adapt to.
    """
    journal, engine = journal or Journal(), engine or LocalEngine()
    groups = list(batches(items, config.batch_size))
    through = [journal.restore(number, group) for number, group in enumerate(groups)]
    _tell_of_earlier(through, groups, inner_steps(items, config), config, advance)
    fitted = any(through)  # what is lost before anything fitted is not kept
    with ensemble.adaptable():
        for round_ in range(min(through), config.rounds):
            _adapt(items, ensemble, config, round_, advance, journal)
            left = [(number, group) for number, group in enumerate(groups) if through[number] <= round_]
            with closing(engine.protect(left, ensemble, config, advance)) as done:
                for number, group in done:
                    fitted = fitted or not all(isinstance(item.lost, TooLargeError) for item in group)
                    if not fitted:  # nor would the others: better to know now than when all are lost
                        raise SurrogateError(f"{ensemble.name}: {group[0].lost}")
                    journal.keep(number, group, round_ + 1)


def _adapt(
    items: Sequence[Item], ensemble: Ensemble, config: ProtectConfig, round_: int, advance: Advance, journal: Journal
) -> None:
    """The inner problem, or what an earlier run made of it."""
    if (weights := journal.adaptation(round_)) is not None:
        ensemble.readapt(weights)
        advance("Adapting", inner_steps(items, config))
        return
    rate = warm_up_and_cosine(inner_steps(items, config)) if config.misleads else constant_rate
    ensemble.adapt(_inner_batches(items, config, round_, advance), config.seed + round_, rate)
    journal.keep_adaptation(round_, ensemble.adaptation())


def warm_up_and_cosine(steps: int) -> Rate:
    """Up in a tenth of so many steps, down in the others: a surrogate comes to know data better (research log)."""
    warm_up = ceil(AuditConfig.warmup * steps)

    def rate(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1 + cos(pi * (step - warm_up) / (steps - warm_up)))

    return rate


def work(items: Sequence[Item], config: ProtectConfig) -> dict[Stage, int]:
    """How much each stage has to do in all, as `optimise` counts it; a stage with nothing to do is not in it."""
    # Putting the adapters to use counts as one more step.
    units: dict[Stage, int] = {"Adapting": config.rounds * (inner_steps(items, config) + 1)}
    return units | {stage: config.rounds * images for stage, images in workload(items, config).items()}


def _tell_of_earlier(
    through: Sequence[int], groups: Sequence[Sequence[Item]], steps: int, config: ProtectConfig, advance: Advance
) -> None:
    """Tells of the rounds that batches are through from an earlier run.

    Of each stage at once: the first that a bar is told is where it begins, and says nothing of its speed.
    """
    earlier: Counter[Stage] = Counter({"Adapting": min(through) * (steps + 1)})
    for rounds, group in zip(through, groups, strict=True):
        earlier.update({stage: rounds * images for stage, images in workload(group, config).items()})
    for stage, amount in earlier.items():
        advance(stage, amount)


def inner_steps(items: Sequence[Item], config: ProtectConfig) -> int:
    """Q, as `optimise` takes it for these items."""
    return config.inner_steps_for(sum(len(item.samples) for item in items))


def _inner_batches(
    items: Sequence[Item], config: ProtectConfig, round_: int, advance: Advance
) -> Iterator[tuple[list[Example], list[Tensor]]]:
    """Q random batches of the samples as they are protected now, or, of surrogates that are to know the clean data, as
    they were; read one at a time."""
    rng = random.Random(f"{config.seed} inner {round_}")
    flat = [(item, number) for item in items for number in range(len(item.samples))]
    for _ in range(config.inner_steps_for(len(flat))):
        examples, images = [], []
        for item, number in rng.sample(flat, min(config.inner_batch_size, len(flat))):
            for original in originals([item], load_picture):
                examples.append(item.examples[number])
                if config.misleads:
                    images.append(to_unit(original.image))
                else:
                    images.append(item.seen(original.image, to_unit(apply(original.image, item.delta))))
        if examples:
            yield examples, images
        advance("Adapting", 1)


def batches(items: Sequence[Item], size: int) -> Iterator[list[Item]]:
    """Whole images, together at most `size` samples and `_BATCH_PIXELS` where no image alone has more."""
    batch: list[Item] = []
    for item in items:
        more = [*batch, item]
        if batch and (sum(len(i.samples) for i in more) > size or sum(i.pixels for i in more) > _BATCH_PIXELS):
            yield batch
            more = [item]
        batch = more
    if batch:
        yield batch


def start(path: Path, samples: Sequence[Sample], config: ProtectConfig, vocabulary: Sequence[str]) -> Item:
    """An item before the first round: δ and triggers drawn at random within their budgets.

    The draws depend on the seed and the sample's id alone, not on what else is protected.

    Raises:
        SampleError: the image cannot be read, or uses too few of its levels.
    """
    picture = load_picture(path)
    if config.perturbs_images:
        _require_range(picture, path)
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


def _require_range(picture: Picture, path: Path) -> None:
    """Refuses what δ, which is a share of all levels that a file can have, would drown."""
    if picture.deep is not None and (most := int(picture.deep.max())) < _FULL_RANGE:
        raise SampleError(
            str(path),
            f"16-bit gray that uses levels up to {most} of 65535, as 12-bit scans do, would be drowned by the "
            "perturbation: save it with 8 bits, in the window that it is looked at in",
        )


def _seed_of(seed: int, identifier: str) -> int:
    return random.Random(f"{seed} delta {identifier}").getrandbits(63)
