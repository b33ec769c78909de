"""One released picture: what goes into its file, and whether a file is what it should be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mmguard.config import ImageFormat, ProtectConfig
from mmguard.data.carrier import SUFFIXES, Carrier, carried_metadata, carrier_for, encode, relabelled
from mmguard.data.images import Picture, opened
from mmguard.data.metadata import Container, Metadata, differences, read_metadata
from mmguard.errors import BudgetError
from mmguard.perturb.budget import ImageBudget, is_gray
from mmguard.perturb.jpeg import fit
from mmguard.release.layout import change

_WANTED: dict[Container, ImageFormat] = {"PNG": "png", "WEBP": "webp", "JPEG": "jpeg"}


@dataclass(frozen=True)
class Stored:
    """The file of a protected picture, not yet written."""

    content: bytes
    carrier: Carrier
    notes: tuple[str, ...]
    """What was converted or left out, and what the owner should know of the metadata."""

    def facts(self) -> dict[str, Any]:
        """For the private record."""
        quality = {} if self.carrier.jpeg is None else {"jpeg_quality": self.carrier.jpeg.quality}
        return {"format": self.carrier.container, **quality, "bytes": len(self.content), "notes": list(self.notes)}


def store(path: Path, picture: Picture, protected: Tensor, config: ProtectConfig, eps: int) -> Stored:
    """Encodes a protected picture with everything of the original that can be kept.

    Args:
        path: the original.
        picture: its content.
        protected: uint8 `(3, H, W)`, within ε of it.
        config: which format, and whether to declare that training is prohibited.
        eps: ε_x, of 255, which the decoded JPEG file must keep.

    Raises:
        BudgetError: a gray original has a protected image with colours, or one that no colour beneath the original's
            opacity can show.
        SampleError: the original can no longer be read.
    """
    delta = protected.to(torch.int16) - picture.image.to(torch.int16)
    if not torch.equal(ImageBudget(eps, picture.alpha).project(picture.image, delta).to(torch.int16), delta):
        raise BudgetError(f"{path}: its perturbation colours a gray picture, or changes what is transparent")
    carrier = carrier_for(path, config.format)
    metadata, lost = carried_metadata(path, carrier, config.declare_no_training)
    # Encoded once more, a JPEG picture would not stay as it is.
    content = None if delta.any() else relabelled(path, picture, carrier, metadata)
    if content is None:
        if carrier.jpeg is not None:
            protected, carrier = _fitted(path, picture.image, protected, carrier, eps)
            metadata, lost = carried_metadata(path, carrier, config.declare_no_training)
        content = encode(carrier, picture, protected, metadata)
    return Stored(content, carrier, (*carrier.notes, *lost, *_exposed(metadata)))


def deviations(
    original: Path, before: Picture, released: Path, after: Picture, eps: int, declares: bool | None
) -> list[str]:
    """In what but the colours that are shown a released file differs from what the original's should be like.

    Args:
        original: the owner's file.
        before: its content.
        released: the released file.
        after: its content, of the same size.
        eps: ε_x, of 255, which colours beneath an opacity must keep, too.
        declares: whether it should declare that training is prohibited; None if either may be.
    """
    found: list[str] = []
    with opened(released) as file:
        if file.format not in SUFFIXES:
            return [f"is {file.format}, not one of {', '.join(SUFFIXES)}"]
        container: Container = file.format
    carrier = carrier_for(original, _WANTED[container])
    if not torch.equal(_opacity(before), _opacity(after)):
        found.append("its opacity is not the original's")
    elif before.colour is not None and (beneath := change(before.colour, _colour(after))[0]) > eps:
        found.append(f"the colours beneath its opacity differ by {beneath}/255, the budget is {eps}/255")
    if carrier.mode == "I;16" and (after.deep is None or not torch.equal(_low(before), _low(after))):
        found.append("its low bits are not those of the 16-bit original")
    if is_gray(before.image) and not is_gray(after.image):
        found.append("has colours, the original is gray")
    there = read_metadata(released)[0]
    choices = (False, True) if declares is None else (declares,)
    wrong = [differences(carried_metadata(original, carrier, choice)[0], there) for choice in choices]
    if all(wrong):
        fewest = min(wrong, key=lambda names: len(names))
        found.append(f"its metadata is not the original's ({', '.join(fewest)})")
    return found


def misnamed(released: Path) -> str | None:
    """What a released file is, if its name says something else."""
    with opened(released) as file:
        named = Image.registered_extensions().get(released.suffix.lower())
        return None if file.format == named else f"is {file.format}, by its name {named or 'no picture'}"


def summary(pictures: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Formats, sizes and notes of pictures in the record, counted."""
    pictures = list(pictures)
    return {
        "formats": dict(Counter(picture["format"] for picture in pictures)),
        "bytes": sum(picture["bytes"] for picture in pictures),
        "original_bytes": sum(picture["original_bytes"] for picture in pictures),
        "notes": dict(Counter(note for picture in pictures for note in picture["notes"]).most_common()),
    }


def _fitted(path: Path, original: Tensor, protected: Tensor, carrier: Carrier, eps: int) -> tuple[Tensor, Carrier]:
    """A JPEG carrier fine enough for the budget, and what to encode; PNG if none is."""
    jpeg = carrier.jpeg
    assert jpeg is not None
    fitting = fit(original, protected, jpeg, eps)
    if fitting is None:
        note = f"saved as PNG: no JPEG file is within {eps}/255 of this picture"
        png = carrier_for(path, "png")
        return protected, replace(png, notes=(*png.notes, note))
    protected, settings = fitting
    notes = carrier.notes
    if settings.tables != jpeg.tables:
        notes += ("JPEG quality was raised to stay within the budget",)
    elif settings.subsampling != jpeg.subsampling:
        notes += ("JPEG colour was stored at full resolution to stay within the budget",)
    return protected, replace(carrier, jpeg=settings, notes=notes)


def _exposed(metadata: Metadata) -> list[str]:
    notes = []
    if captions := metadata.captions:
        notes.append(f"a thief can read what its metadata says of it ({', '.join(captions)})")
    if metadata.has_position:
        notes.append("its metadata says where it was taken (GPS)")
    return notes


def _opacity(picture: Picture) -> Tensor:
    """Opacity of any picture: WebP drops a channel that is 255 throughout."""
    alpha = picture.alpha
    return torch.full(picture.image.shape[1:], 255, dtype=torch.uint8) if alpha is None else alpha


def _colour(picture: Picture) -> Tensor:
    return picture.image if picture.colour is None else picture.colour


def _low(picture: Picture) -> Tensor:
    assert picture.deep is not None
    return picture.deep & 255
