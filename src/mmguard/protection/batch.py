"""One batch of images: the unit of optimisation, and what every engine does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeVar

from torch import Tensor

from mmguard.config import ProtectConfig
from mmguard.data.images import Picture, load_image
from mmguard.data.tasks import target_text
from mmguard.errors import SampleError
from mmguard.lvlm.prompt import Encoded, Example
from mmguard.perturb import image as pgd
from mmguard.perturb.budget import ImageBudget, apply, to_unit
from mmguard.perturb.objective import Reference
from mmguard.perturb.trigger import Trigger
from mmguard.protection.ensemble import Ensemble, require_numbers
from mmguard.runtime.memory import is_out_of_memory, release_memory
from mmguard.types import Sample

Original = TypeVar("Original")

Stage = Literal["Adapting", "Perturbing", "Searching"]
"""What a round consists of: adapting the surrogates, PGD on the images, HotFlip on the triggers."""


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
    """Why nothing further is done with it, if so: its original could not be read any more, or no loss be computed."""
    decoys: list[str] = field(default_factory=list)
    """What each sample is to be mistaken for, as a target; `mislead` only."""

    @property
    def examples(self) -> list[Example]:
        """The samples with their present triggers, as a surrogate is trained on them."""
        return [
            Example(sample.question, target_text(sample), sample.options, trigger, place)
            for sample, trigger, place in zip(self.samples, self.triggers, self.places, strict=True)
        ]

    @property
    def aims(self) -> list[Example]:
        """What the outer problem has surrogates find likely: the samples, or these with the decoys for targets."""
        if not self.decoys:
            return self.examples
        return [replace(one, answer=decoy) for one, decoy in zip(self.examples, self.decoys, strict=True)]

    @property
    def pixels(self) -> int:
        """Of the image."""
        return self.delta.shape[1] * self.delta.shape[2]

    def original(self) -> Tensor:
        """The owner's image, uint8 `(3, H, W)`, read anew: originals are not all kept in memory."""
        return load_image(self.path)

    def protected(self) -> Tensor:
        """The image as it would be encoded now, uint8 `(3, H, W)`."""
        return apply(self.original(), self.delta)


def workload(items: Sequence[Item], config: ProtectConfig) -> dict[Stage, int]:
    """How many of some images each stage of the outer problem changes in a round; a stage that changes none is not in
    it."""
    # Captions have no question, and so no trigger to search for.
    asked = sum(any(item.triggers) for item in items)
    images: dict[Stage, int] = {
        "Perturbing": config.perturbs_images * len(items),
        "Searching": config.inserts_triggers * asked,
    }
    return {stage: number for stage, number in images.items() if number}


def remaining(batch: Sequence[Item]) -> list[Item]:
    """The items of a batch that are not lost."""
    return [item for item in batch if item.lost is None]


def originals(batch: Sequence[Item], load: Callable[[Path], Original]) -> list[Original]:
    """The originals of the items that are not lost; an item whose file cannot be loaded any more is from now on."""
    images = []
    for item in remaining(batch):
        try:
            images.append(load(item.path))
        except SampleError as error:
            item.lost = error
    return images


class TooLargeError(SampleError):
    """A picture does not fit into memory even alone."""

    def __init__(
        self,
        where: str,
        message: str = "memory is not enough for it, even one sample at a time: take a smaller surrogate, a smaller "
        "max-pixels, or a device with more memory",
    ) -> None:
        super().__init__(where, message)


def protect_batch(
    batch: Sequence[Item],
    pictures: Sequence[Picture],
    ensemble: Ensemble,
    config: ProtectConfig,
    size: int,
    done: Callable[[Stage], None] = lambda stage: None,
) -> int:
    """The outer problem for one batch; where that fails, image by image.

    An image is lost for which memory is not enough, or a loss or gradient is no number in 32 bits either. The arguments
    are those of `_fitted`.

    Returns:
        The size to try with the next batch: twice what was enough for this one, so that a single large picture does not
        slow down all that follow.
    """
    try:
        return min(2 * _fitted(batch, pictures, ensemble, config, size, done), ensemble.at_once(config.batch_size))
    except (FloatingPointError, TooLargeError):
        pass
    release_memory()
    for item, picture in zip(batch, pictures, strict=True):
        try:
            _alone(item, picture, ensemble, config, size, done)
        except TooLargeError:
            item.lost = TooLargeError(str(item.path))  # not the error, whose frames would keep what did not fit
        except FloatingPointError:
            says = f"a loss or gradient of {ensemble.name} is no number, in 32 bits either: take another surrogate"
            item.lost = SampleError(str(item.path), says)
        if item.lost is not None:
            release_memory()
    return size


def _alone(
    item: Item,
    picture: Picture,
    ensemble: Ensemble,
    config: ProtectConfig,
    size: int,
    done: Callable[[Stage], None],
) -> None:
    """The outer problem for one image, in 32 bits if need be; otherwise as `_fitted`."""
    try:
        _fitted([item], [picture], ensemble, config, size, done)
        return
    except FloatingPointError:
        pass
    release_memory()
    try:
        with ensemble.in_float32():
            _fitted([item], [picture], ensemble, config, size, done)
    except (RuntimeError, MemoryError) as error:  # of the weights in 32 bits
        if not is_out_of_memory(error):
            raise
        raise TooLargeError(str(item.path)) from error


def _fitted(
    batch: Sequence[Item],
    pictures: Sequence[Picture],
    ensemble: Ensemble,
    config: ProtectConfig,
    size: int,
    done: Callable[[Stage], None],
) -> int:
    """Both sides of the outer problem, one after the other, with the surrogates held, as far as memory allows.

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
        FloatingPointError: a loss or gradient is no finite number; δ and triggers are as before.
        TooLargeError: memory is not enough for one sample of one of the images.
    """
    rows = sum(len(item.samples) for item in batch)
    with ensemble.may_save_memory():
        while True:
            try:
                _both_sides(batch, pictures, ensemble, config, size, done)
                return size
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                alone = min(size, rows) == 1
                if alone and ensemble.recompute:
                    raise TooLargeError(str(batch[0].path)) from error
            if alone:
                ensemble.save_memory()
            size = max(1, min(size, rows) // 2)
            release_memory()


def _both_sides(
    batch: Sequence[Item],
    pictures: Sequence[Picture],
    ensemble: Ensemble,
    config: ProtectConfig,
    size: int,
    done: Callable[[Stage], None],
) -> None:
    """The outer problem, with the arguments of `_fitted`; where it fails, δ and triggers are as before."""
    originals = [picture.image for picture in pictures]
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


@dataclass(frozen=True)
class _Part:
    """Samples of a batch that go through the surrogates together; PGD moves neither their texts nor their originals."""

    owners: list[int]
    """Number in the batch of each sample's image."""
    examples: list[Example]
    references: list[Reference]
    encoded: list[Encoded]
    """The texts as each member of the ensemble reads them."""


def _parts(batch: Sequence[Item], originals: Sequence[Tensor], ensemble: Ensemble, size: int) -> list[_Part]:
    rows = [(k, example) for k, item in enumerate(batch) for example in item.aims]
    units = [to_unit(image) for image in originals]
    parts = []
    for start in range(0, len(rows), size):
        owners, examples = zip(*rows[start : start + size], strict=True)
        images = [units[k] for k in owners]
        references, encoded = ensemble.references(examples, images), ensemble.encoded(examples, images)
        parts.append(_Part(list(owners), list(examples), references, encoded))
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
            images = [protected[k] for k in part.owners]
            ensemble.backward(part.examples, images, part.references, part.encoded)
        require_numbers(*(image.grad for image in protected if image.grad is not None))

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
