"""What an attacker trains on: the release, the clean original, and the controls that tell the two apart.

A protection that works no better than noise of the same size is not one, so every release is compared with a
*matched control*: the same places changed by the same amount, with nothing optimised.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mmguard.data.images import load_image
from mmguard.data.tasks import target_text, user_text
from mmguard.data.text import inserted_words, insertions
from mmguard.errors import ReleaseError, SampleError, SurrogateError
from mmguard.lvlm.pixels import shrunk_size
from mmguard.release.layout import ImageNames, relative
from mmguard.release.match import look_alike, match_rows
from mmguard.types import Dataset, Rejection, Sample

if TYPE_CHECKING:
    from mmguard.auditing.attacks.base import Attack

Arm = Literal["clean", "release", "random-noise", "random-words", "control"]
"""`control` changes both image and text at random; it is run only where the release changes both."""

ARMS: tuple[Arm, ...] = get_args(Arm)

WORDED: frozenset[Arm] = frozenset({"random-words", "control"})
"""The arms whose words are drawn."""

Pixels = NDArray[np.uint8]


class ImageStore:
    """Decoded images, kept in memory up to a limit.

    Once the limit is reached nothing is evicted: training passes over all images in turn, where a cache that
    evicts the oldest never hits.

    Args:
        limit_bytes: of all images together.
        files: keeps the images of files instead, for a store that is given up before them.
    """

    def __init__(self, limit_bytes: int = 1 << 30, files: ImageStore | None = None) -> None:
        self._kept: dict[Any, Pixels] = {}
        self._limit = self._left = limit_bytes
        self._files = files or self

    def __reduce__(self) -> tuple[type[ImageStore], tuple[int]]:
        # Copies start empty: a worker decodes for itself, and `datasets` pickles what it is given for a hash alone.
        return ImageStore, (self._limit,)

    def get(self, key: Any, make: Callable[[], Pixels]) -> Pixels:
        """The pixels under `key`, made on the first call. Shape: `(H, W, 3)`, 0…255."""
        if (pixels := self._kept.get(key)) is None:
            pixels = make()
            if pixels.nbytes <= self._left:
                self._kept[key] = pixels
                self._left -= pixels.nbytes
        return pixels

    def load(self, path: Path) -> Pixels:
        """The pixels of an image file. Shape: `(H, W, 3)`, 0…255.

        Raises:
            SampleError: the file is missing or cannot be read.
        """
        return self._files.get(path, lambda: load_image(path).permute(1, 2, 0).contiguous().numpy())


@dataclass(frozen=True)
class Row:
    """One training example of an attacker."""

    id: str
    image: Path
    text: str
    """The user's turn."""
    target: str
    """The assistant's turn."""
    noise_like: Path | None = None
    """A changed version of `image`: its difference, with pixels shuffled, is added to `image`."""
    noise_seed: int = 0
    attack: Attack | None = None
    """What the thief does to the image before training."""
    attack_seed: int = 0
    max_pixels: int = 0
    """A larger picture is shrunk to so many before the attacker sees it, as trainers do; 0 is no limit."""
    _readings: Iterator[int] = field(default_factory=itertools.count, init=False, compare=False, repr=False)
    """Number of times that the image was read: once an epoch, and augmentations differ between epochs."""

    def load(self, store: ImageStore) -> Image.Image:
        """The image that the attacker's processor gets, RGB."""
        pixels = self._unattacked(store) if self.attack is None else self._attacked(store, self.attack)
        image, (height, width) = Image.fromarray(pixels), shrunk_size(pixels.shape[:2], self.max_pixels)
        return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)

    def _attacked(self, store: ImageStore, attack: Attack) -> Pixels:
        if attack.each_epoch:
            seed = _seed(self.attack_seed, self.id, next(self._readings))
            return attacked(self._unattacked(store), attack, seed)
        key = (self.image, self.noise_like, self.noise_seed, attack.name, self.attack_seed)
        return store.get(key, lambda: attacked(self._unattacked(store), attack, self.attack_seed))

    def _unattacked(self, store: ImageStore) -> Pixels:
        if self.noise_like is None:
            return store.load(self.image)
        changed = self.noise_like
        return store.get(
            (self.image, changed, self.noise_seed),
            lambda: shuffled_noise(store.load(self.image), store.load(changed), self.noise_seed),
        )


@dataclass(frozen=True)
class Pairing:
    """The release's samples, each with the original it was made from."""

    pairs: list[tuple[Sample, Sample]]
    """Original and released sample, in the release's order."""
    digests: dict[Path, str]
    """Hash of the decoded pixels of every image, original and released."""
    rejected: list[Rejection] = field(default_factory=list)
    """Samples that were left out of every arm, and why."""
    patterns: list[Sample] = field(default_factory=list)
    """Another release's samples for `like`, one a pair; none for this one's own."""

    @property
    def like(self) -> list[Sample]:
        """For each pair the sample that the controls change as much as, and in the same places."""
        return self.patterns or [released for _, released in self.pairs]

    @cached_property
    def drawn_as(self) -> dict[str, str]:
        """For each sample the one, both by id, whose random words it has in controls.

        It is the first into which the release inserted the same words: where the release repeats a trigger, so do the
        controls.
        """
        first: dict[object, str] = {}
        return {
            ours.id: first.setdefault(inserted(ours, like.question) or ours.id, ours.id)
            for (ours, _), like in zip(self.pairs, self.like, strict=True)
        }

    @cached_property
    def images_changed(self) -> bool:
        """Whether any image differs from its original."""
        return any(self.digests[ours.image] != self.digests[released.image] for ours, released in self.pairs)

    @cached_property
    def texts_changed(self) -> bool:
        """Whether any question differs from its original."""
        return any(ours.question != released.question for ours, released in self.pairs)

    @property
    def matched(self) -> Arm:
        """The arm that changes what the release changes, at random."""
        if self.images_changed and self.texts_changed:
            return "control"
        return "random-noise" if self.images_changed else "random-words"

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The arms that differ from one another, in the order of `ARMS`."""
        both = self.images_changed and self.texts_changed
        return ARMS if both else ("clean", "release", self.matched)


def with_controls_of(pairing: Pairing, other: Pairing) -> Pairing:
    """The same pairs, with the controls of another release of the same data.

    Releases of one budget can so be held against the same controls, which are then run once for all.

    Raises:
        ReleaseError: the other release lacks a sample.
    """
    patterns = {ours.id: released for ours, released in other.pairs}
    if missing := [ours.id for ours, _ in pairing.pairs if ours.id not in patterns]:
        raise ReleaseError(
            f"{len(missing)} samples ({missing[0]}…) are not in the release whose controls were to be used: "
            "take a release of the same data"
        )
    return replace(
        pairing,
        patterns=[patterns[ours.id] for ours, _ in pairing.pairs],
        digests=pairing.digests | other.digests,
    )


def pixel_digest(path: Path) -> str:
    """Size and hash of an image's decoded pixels, `HxW:HASH`: the same for every lossless file of the same
    picture.

    Raises:
        SampleError: the file is missing or cannot be read.
    """
    image = load_image(path)
    digest = hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()
    return f"{image.shape[1]}x{image.shape[2]}:{digest}"


def pair(release: Dataset, original: Dataset) -> Pairing:
    """Finds the original of every released sample, and what the release changed.

    Rows are matched by image name, fields and the owner's words, so ids are not needed. Rows in which
    anything else was altered, and images that cannot be read or changed their size, are left out of all arms,
    and listed.

    Raises:
        ReleaseError: no released sample has an original, or the release changes nothing.
    """
    names = ImageNames(original)
    image_of_row = {sample.row: sample.image for sample in original.samples}
    released_images = [image for _, image in sorted({sample.row: sample.image for sample in release.samples}.items())]
    originals = sorted(image_of_row)
    matching = match_rows(
        [original.rows[row] for row in originals],
        [relative(image_of_row[row], original).as_posix() if original.named else "" for row in originals],
        release.rows,
        [names.original(relative(image, release).as_posix()) if original.named else "" for image in released_images],
        original.image_field,
        None if original.named else look_alike([image_of_row[row] for row in originals], released_images),
    )
    origin = {released: originals[place] for place, released in matching.pairs}
    ours = {(sample.row, sample.turn): sample for sample in original.samples}
    digests: dict[Path, str] = {}
    pairs: list[tuple[Sample, Sample]] = []
    rejected = list(release.rejected)
    for released in release.samples:
        where = f"released sample {released.id}"
        try:
            if (sample := ours.get((origin.get(released.row, -1), released.turn))) is None:
                raise SampleError(where, "the original has no such row")
            _check_text(where, sample, released)
            _check_images(where, sample.image, released.image, digests)
        except SampleError as error:
            rejected.append(Rejection(where, str(error)))
        else:
            pairs.append((sample, released))
    if not pairs:
        raise ReleaseError(
            f"{release.root}: no row pairs with the original in {original.root}: give the dataset that it "
            f"was made from ({rejected[0].reason})"
        )
    pairing = Pairing(pairs, digests, rejected)
    if not pairing.images_changed and not pairing.texts_changed:
        raise ReleaseError(f"{release.root}: nothing differs from {original.root}: there is no protection to audit")
    return pairing


def _check_text(where: str, ours: Sample, released: Sample) -> None:
    if (ours.answer, ours.options) != (released.answer, released.options):
        raise SampleError(where, "its answer or its options are not the original's")
    before, after = ours.question, released.question
    if before != after and (before is None or after is None or inserted_words(before, after) is None):
        raise SampleError(where, "its question is not the original's with words inserted")


def inserted(ours: Sample, question: str | None) -> tuple[str, ...]:
    """The words that a question has more than the owner's; none where either has no question."""
    return (inserted_words(ours.question, question) or ()) if ours.question is not None and question else ()


def _check_images(where: str, ours: Path, released: Path, digests: dict[Path, str]) -> None:
    for path in (ours, released):
        if path not in digests:
            digests[path] = pixel_digest(path)
    before, after = (digests[path].partition(":")[0] for path in (ours, released))
    if before != after:
        raise SampleError(where, f"its image is {after} pixels (height x width), the original {before}")


def rows(
    arm: Arm,
    pairing: Pairing,
    words: Sequence[str],
    seed: int,
    attack: Attack | None = None,
    max_pixels: int = 0,
) -> list[Row]:
    """The training data of one arm.

    Args:
        arm: one of `pairing.arms`.
        pairing: the release with its original.
        words: vocabulary of random words: the attacker's admissible tokens (Eq. 16).
        seed: of the run. Noise is drawn anew for every image and run, words for every trigger and run, and what an
            attack draws for every image or sample and run, but alike for all arms.
        attack: what the thief does to the data first.
        max_pixels: pictures with more are shrunk to so many after that; 0 is no limit.

    Returns:
        One row a pair, in the same order for every arm.
    """
    originals = [ours for ours, _ in pairing.pairs]
    patterns = pairing.like
    samples = [released if arm == "release" else ours for ours, released in pairing.pairs]
    if arm in WORDED:
        drawn_as = pairing.drawn_as
        samples = [
            replace(
                ours,
                question=random_words(ours.question, like.question, words, _seed(seed, "words", drawn_as[ours.id])),
            )
            if ours.question is not None and like.question is not None
            else ours
            for ours, like in zip(originals, patterns, strict=True)
        ]
    if attack is not None and (rewrite := attack.rewriting(samples)) is not None:
        # The draws of a sample are the same in all arms: its id may differ between release and original.
        draws = [torch.Generator().manual_seed(_seed(seed, attack.name, ours.id)) for ours in originals]
        samples = [replace(one, question=rewrite(one, draw)) for one, draw in zip(samples, draws, strict=True)]
    noisy = arm in ("random-noise", "control")
    on_images = attack if attack is not None and attack.image is not None else None
    return [
        Row(
            id=ours.id,
            image=sample.image,
            text=user_text(sample.question, sample.options),
            target=target_text(sample),
            noise_like=pattern.image if noisy else None,
            # By content and not by path, which would make what is drawn depend on where the folder lies.
            noise_seed=_seed(seed, "noise", pairing.digests[ours.image]) if noisy else 0,
            attack=on_images,
            attack_seed=_seed(seed, on_images.name, pairing.digests[ours.image]) if on_images else 0,
            max_pixels=max_pixels,
        )
        for ours, sample, pattern in zip(originals, samples, patterns, strict=True)
    ]


def ingredients(arm: Arm, pairing: Pairing) -> list[list[str | None]]:
    """What the rows of an arm are made of: where it is equal, so are the rows of any vocabulary and seed."""
    # Words of a control are still to be drawn: their places are marked by what is no word of any owner.
    made: list[list[str | None]] = [
        [row.id, row.text, row.target, pairing.digests[row.image], pairing.digests.get(row.noise_like or Path())]
        for row in rows(arm, pairing, ("\0",), 0)
    ]
    if arm in WORDED:
        made += [[ours, first] for ours, first in pairing.drawn_as.items() if ours != first]
    return made


def shuffled_noise(original: Pixels, changed: Pixels, seed: int) -> Pixels:
    """`original` plus the difference of `changed`, its pixels put in random order.

    Shuffling keeps the largest change and the L2 norm of the difference, but for values that would leave
    0…255.

    Shape:
        both images `(H, W, 3)`, 0…255; so is the result.

    Raises:
        SampleError: the images differ in size.
    """
    if original.shape != changed.shape:
        raise SampleError("release", f"an image changed its size from {original.shape} to {changed.shape}")
    delta = (changed.astype(np.int16) - original).reshape(-1, 3)
    noise = np.random.default_rng(seed).permutation(delta, axis=0).reshape(original.shape)
    return (original + noise).clip(0, 255).astype(np.uint8)


def attacked(pixels: Pixels, attack: Attack, seed: int) -> Pixels:
    """An image after an attack on it.

    Shape:
        `(H, W, 3)`, 0…255; so is the result, though its height and width may be others.
    """
    assert attack.image is not None
    # A copy: an attack that works in place must not change what is stored.
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
    after = attack.image(image, torch.Generator().manual_seed(seed))
    return (after.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()


def random_words(original: str, released: str, words: Sequence[str], seed: int) -> str:
    """The released text, with other words wherever the release inserted one.

    Args:
        original: the owner's text.
        released: the same with words inserted between or after its own.
        words: vocabulary that the other words are drawn from, evenly.
        seed: of the draw.

    Raises:
        SurrogateError: words are needed and there are none.
    """
    units = [[space, word] for space, word, _ in insertions(original, released)]
    slots = [number for number, (*_, inserted) in enumerate(insertions(original, released)) if inserted]
    if slots and not words:
        raise SurrogateError(
            "no word of the attacker's vocabulary is a single token of ASCII letters: no control is possible"
        )
    for slot, choice in zip(slots, np.random.default_rng(seed).integers(len(words) or 1, size=len(slots)), strict=True):
        units[slot][1] = words[choice]
    return "".join(space + word for space, word in units) + released[len(released.rstrip()) :]


def _seed(*parts: object) -> int:
    """A 63-bit seed of its parts; the same on every machine, unlike `hash`."""
    return int.from_bytes(hashlib.sha256("\0".join(map(str, parts)).encode()).digest()[:8], "big") >> 1
