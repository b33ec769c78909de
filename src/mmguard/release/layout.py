"""Where things lie in a release, and what its budgets are: what writer and verify share."""

from __future__ import annotations

import hashlib
import os
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


def record_folder(release: Path) -> Path:
    """The private folder beside a release."""
    return release.with_name(release.name + ".record")


def images_folder(release: Path, dataset: Dataset) -> Path:
    """Where images are written: into the release, or, those that belong inside data files, beside it meanwhile."""
    return record_folder(release) / IMAGES if formats.named(dataset.format).contains else release


def image_names(dataset: Dataset) -> dict[Path, str]:
    """The path of every image in the release: where it lies in the dataset, with the suffix of what it is.

    Images whose names would then be the same (`a.jpg`, `a.png`; on some systems `A.png`) get a number. Inside a data
    file an image keeps its name whatever it is, since there the suffix is the name of a field.

    Returns:
        Paths with forward slashes, relative to the release, or to the place where its images are unpacked.
    """
    taken: set[str] = set()
    names: dict[Path, str] = {}
    contained = formats.named(dataset.format).contains
    # Those that keep their name come first.
    for image in sorted({sample.image for sample in dataset.samples}, key=lambda path: (path.suffix != ".png", path)):
        path = relative(image, dataset)
        name, number = path if contained else path.with_suffix(".png"), 2
        while str(name).casefold() in taken:
            name, number = path.with_name(f"{path.stem}-{number}.png"), number + 1
        taken.add(str(name).casefold())
        names[image] = name.as_posix()
    return {image: names[image] for image in sorted(names)}


def released_name(name: str, suffix: str, dataset: Dataset) -> str:
    """The name of `image_names` for a picture that is stored in a format with another suffix."""
    return name if formats.named(dataset.format).contains else PurePosixPath(name).with_suffix(suffix).as_posix()


def name_key(name: str, dataset: Dataset) -> str:
    """What of a released image's name does not depend on the format that it is stored in."""
    return released_name(name, "", dataset) if name else ""


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
