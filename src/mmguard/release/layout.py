"""Where things lie in a release, and what its budgets are: what writer and verify share."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from mmguard.config import ProtectConfig

METADATA = "metadata.jsonl"
CARD = "README.md"
RECORD = "record.json"
WARNING = "DO_NOT_PUBLISH.txt"
UNFINISHED = "unfinished"
"""In the record folder from the first image until the release is complete."""
DELTAS = "deltas.int8"
"""In the record folder while perturbations are optimised."""


def record_folder(release: Path) -> Path:
    """The private folder beside a release."""
    return release.with_name(release.name + ".record")


def image_names(images: Iterable[Path], root: Path) -> dict[Path, str]:
    """The path of every image in the release, relative to it: `images/STEM.png`.

    STEM is the image's path relative to the dataset, less its suffix and a leading `images/`. Images whose
    names would then be the same (`a.jpg`, `a.png`; on some systems `A.jpg`) get a number; the result does not
    depend on the order of `images`.

    Args:
        images: absolute paths.
        root: the dataset's folder.
    """
    taken: set[str] = set()
    names: dict[Path, str] = {}
    for image in sorted(set(images)):
        parts = PurePosixPath(Path(os.path.relpath(image, root)).as_posix()).parts
        inside = parts if ".." not in parts else parts[-1:]
        stem = PurePosixPath(*(inside[1:] if len(inside) > 1 and inside[0] == "images" else inside))
        stem = stem.with_suffix("")
        name, number = f"images/{stem}.png", 2
        while name.casefold() in taken:
            name, number = f"images/{stem}-{number}.png", number + 1
        taken.add(name.casefold())
        names[image] = name
    return names


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


def sha256(path: Path) -> str:
    """Hash of a file's bytes, as hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
