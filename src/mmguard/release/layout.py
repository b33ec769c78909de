"""Where things lie in a release, and what its budgets are: what writer and verify share."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from mmguard.config import ProtectConfig
from mmguard.data import formats
from mmguard.types import Dataset

CARD = "README.md"
RECORD = "record.json"
FILES = "files.csv"
"""In the record folder: what became of every file."""
WARNING = "DO_NOT_PUBLISH.txt"
UNFINISHED = "unfinished"
"""In the record folder from the first image until the release is complete."""
IMAGES = "images"
"""In the record folder until the release is complete, where images lie inside data files."""
DELTAS = "deltas.int8"
"""In the record folder while perturbations are optimised."""
STATE = "state"
"""In the record folder until the release is complete: how far its optimisation is."""
LOCK = "lock"
"""In the record folder: held by the process that writes the release."""
OF_THE_HUB = ".gitattributes"
"""What the hub adds to a dataset."""


def record_folder(release: Path) -> Path:
    """The private folder beside a release."""
    return release.with_name(release.name + ".record")


def images_folder(release: Path, dataset: Dataset) -> Path:
    """Where images are written: into the release, or, those that belong inside data files, beside it meanwhile."""
    return record_folder(release) / IMAGES if formats.named(dataset.format).contains else release


class ImageNames:
    """The paths of a dataset's images in its release, with forward slashes and relative to it.

    An image stays where it lies, and keeps its name where that has a suffix of the format that it is stored in. Else
    the suffix changes, and if another image's name differs in nothing but that (`a.jpg`, `a.png`), it gets a number,
    too; so does one of two whose names differ in letter case alone, which some systems take for the same. Inside a data
    file an image keeps its name whatever it is, since there the suffix is the name of a field.

    Args:
        dataset: what is released; the order of its rows makes no difference.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._contained = formats.named(dataset.format).contains
        images = sorted({sample.image for sample in dataset.samples})
        self._own = {image: relative(image, dataset) for image in images}
        self._kept: dict[str, Path] = {}
        alike: set[str] = set()
        for image, name in self._own.items():
            if self._contained or str(name).casefold() not in alike:
                self._kept[str(name)] = image
            alike.add(str(name).casefold())
        self._renamed = _distinct(self._own)
        self._stems = {image: stem for stem, image in self._renamed.items()}

    def __contains__(self, image: Path) -> bool:
        return image in self._own

    def __iter__(self) -> Iterator[Path]:
        """All images, in the order of their paths."""
        return iter(self._own)

    def released(self, image: Path, suffix: str) -> str:
        """The path of an image that is stored in a format whose files have this suffix."""
        name = self._own[image]
        stays = self._contained or (name.suffix == suffix and str(name) in self._kept)
        return str(name) if stays else f"{self._stems[image]}{suffix}"

    def original(self, name: str) -> str:
        """The path in the dataset of the image that has this one in a release, in whatever format; "" if none has."""
        image = self._kept.get(name)
        if image is None and not self._contained:
            image = self._renamed.get(_stem(PurePosixPath(name)))
        return "" if image is None else str(self._own[image])


def _distinct(names: Mapping[Path, PurePosixPath]) -> dict[str, Path]:
    """Images by what of their names a new suffix is put behind: the old stem, with a number where others share it."""
    sharing = Counter(_stem(name).casefold() for name in names.values())
    taken, distinct = set(sharing), {}
    for image, name in names.items():
        stem, number = _stem(name), 2
        if sharing[stem.casefold()] > 1:
            while f"{stem}-{number}".casefold() in taken:
                number += 1
            stem = f"{stem}-{number}"
            taken.add(stem.casefold())
        distinct[stem] = image
    return distinct


def _stem(name: PurePosixPath) -> str:
    return name.with_suffix("").as_posix() if name.name else ""


def relative(image: Path, dataset: Dataset) -> PurePosixPath:
    """The path of an image within its dataset."""
    return PurePosixPath(Path(os.path.relpath(image, dataset.image_root)).as_posix())


def budgets(config: ProtectConfig) -> tuple[int, int]:
    """What a run with this config may change: (ε_x of 255, ε_t in words); 0 for what its variant leaves."""
    return (
        config.eps if config.perturbs_images else 0,
        config.trigger_words if config.inserts_triggers else 0,
    )


def change(original: Tensor, released: Tensor) -> tuple[int, float]:
    """How far two images are apart: (`‖δ‖∞`, mean `|δ|`), both of 255.

    Args:
        original: uint8 `(3, H, W)`.
        released: uint8 `(3, H, W)`, the same size.
    """
    # uint8 differences would wrap around.
    delta = (released.to(torch.int16) - original.to(torch.int16)).abs()
    return int(delta.max()), float(delta.float().mean())


def sha256(*paths: Path) -> str:
    """Hash of a file's bytes, or of several files' one after the other, as hexadecimal digits."""
    hashed = hashlib.sha256()
    for path in paths:
        hashed.update(path.read_bytes())
    return hashed.hexdigest()
