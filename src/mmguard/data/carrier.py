"""How a protected picture is stored: in which format, with which channels, and what of the original is converted.

A released file differs from the original's in its colours alone. Opacity, the low bits of 16-bit gray, the JPEG
encoder's tables and the picture's size stay; what a format cannot hold is converted, with a note for the owner.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, JpegImagePlugin, TiffImagePlugin
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from mmguard.config import ImageFormat
from mmguard.data.images import Picture, opened, picture_of, read_file
from mmguard.data.metadata import (
    Container,
    Metadata,
    declared,
    exif_of,
    fitted,
    read_metadata,
    save_options,
    settled,
)
from mmguard.errors import SampleError

SUFFIXES: dict[Container, str] = {"PNG": ".png", "WEBP": ".webp", "JPEG": ".jpg"}
Mode = Literal["L", "LA", "RGB", "RGBA", "I;16"]
"""Channels of a released file, as Pillow calls them."""

_ORIENTATION = 0x0112
_LARGEST = {"WEBP": 16_383, "JPEG": 65_500}
_JPEG_QUALITY = 95
"""Of pictures that come without tables of their own."""
_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
"""Begins a segment, or ends the file. The others have no segment: 255 in a scan's data, restarts and filling."""


@dataclass(frozen=True)
class Jpeg:
    """Settings of a JPEG encoder, and how its pixels lie in the file."""

    tables: tuple[tuple[int, ...], ...]
    """Quantisation tables, 64 numbers each, row by row: of brightness, and of colour if there are two."""
    subsampling: int
    """0: colour at full resolution; 1: at half across; 2: at half across and down."""
    gray: bool = False
    orientation: int = 1
    """EXIF orientation of the stored pixels. It stays in the file: turned pixels would not fit its tables and blocks.
    """
    progressive: bool = False

    @property
    def quality(self) -> int:
        """The quality, 1 to 100, at which libjpeg's own table of brightness would be about as fine."""
        coarse = sum(self.tables[0]) / sum(_standard(50)[0])
        return min(100, max(1, round(100 - 50 * coarse if coarse <= 1 else 50 / coarse)))


@dataclass(frozen=True)
class Carrier:
    """What a released file is made like."""

    container: Container
    mode: Mode
    jpeg: Jpeg | None = None
    """Settings for JPEG; None for other formats, which lose nothing."""
    orientation: int = 1
    """EXIF orientation that is applied to the stored pixels."""
    notes: tuple[str, ...] = ()
    """What is converted, for the owner."""

    @property
    def gray(self) -> bool:
        """Whether the file holds gray levels instead of colours."""
        return self.mode in ("L", "LA", "I;16")


def suffix_of(path: Path, container: Container) -> str:
    """The suffix of a released file's name: the original's where that is one of the format's, else the usual one."""
    known = Image.registered_extensions().get(path.suffix.lower()) == container
    return path.suffix if known else SUFFIXES[container]


def carrier_for(path: Path, wanted: ImageFormat) -> Carrier:
    """How the protected picture of an original is to be stored.

    Args:
        path: the original, which `load_image` can decode.
        wanted: what the owner asked for; another format is taken, with a note, where this cannot hold the picture.

    Raises:
        SampleError: it can no longer be opened.
    """
    try:
        with opened(path) as file:
            return _carrier(file, path, wanted)
    except OSError as error:
        raise SampleError(str(path), f"cannot be opened ({error}): replace the file, or remove the row") from error


def carried_metadata(path: Path, carrier: Carrier, declare: bool) -> tuple[Metadata, list[str]]:
    """What the released file is to say beside its pixels, and notes on what of the original was left out.

    Args:
        path: the original.
        carrier: how it is stored.
        declare: whether to declare that training is prohibited.
    """
    metadata, notes = read_metadata(path)
    metadata, removed = settled(metadata, carrier.orientation)
    if carrier.jpeg is not None and carrier.jpeg.orientation != 1 and not metadata.exif:
        # It said so where it is left out, or in XMP.
        metadata = replace(metadata, exif=exif_of(carrier.jpeg.orientation))
    metadata, lost = fitted(declared(metadata) if declare else metadata, carrier.container, carrier.gray)
    return metadata, [*notes, *removed, *lost]


def encode(carrier: Carrier, picture: Picture, protected: Tensor, metadata: Metadata) -> bytes:
    """The file of a protected picture.

    Args:
        carrier: how to store it.
        picture: the original.
        protected: uint8 `(3, H, W)`; with equal channels where the carrier is gray.
        metadata: what the file is to say besides, as `fitted` to its format.
    """
    options = save_options(metadata, carrier.container)
    if carrier.jpeg is not None:
        return _encode_jpeg(unturned(protected, carrier.jpeg.orientation).permute(1, 2, 0), carrier.jpeg, **options)
    if carrier.container == "WEBP":
        options |= {"lossless": True, "exact": True}  # exact: colours beneath full transparency stay
    file = io.BytesIO()
    _stored(carrier, picture, protected).save(file, carrier.container, **options)
    return file.getvalue()


def relabelled(path: Path, picture: Picture, carrier: Carrier, metadata: Metadata) -> bytes | None:
    """The file of an unchanged JPEG picture: its pixels as they are encoded in the original, with other metadata.

    Args:
        path: the original.
        picture: what it is decoded to.
        carrier: how it is to be stored.
        metadata: what the file is to say besides, as `fitted` to JPEG.

    Returns:
        None if the original is no JPEG file, something of it is converted, or it needs what it says besides to be
        decoded to the same picture.
    """
    if carrier.jpeg is None or carrier.notes or not (content := read_file(path)).startswith(_JPEG_START):
        return None
    label = io.BytesIO()
    Image.new("L", (8, 8)).save(label, "JPEG", **save_options(metadata, "JPEG"))
    says = [segment for segment in _segments(label.getvalue()) if _is_metadata(segment)]
    shows = [segment for segment in _segments(content) if not _is_metadata(segment)]
    made = b"".join([_JPEG_START, *says, *shows, _JPEG_END])
    with suppress(SampleError):
        if torch.equal(picture_of(made, path).image, picture.image):
            return made
    return None


def jpeg_roundtrip(image: Tensor, jpeg: Jpeg) -> Tensor:
    """What a reader sees of an image that was saved as JPEG, as Pillow decodes it.

    Args:
        image: uint8 `(3, H, W)`, upright.
        jpeg: settings.
    """
    stored = unturned(image, jpeg.orientation).permute(1, 2, 0).contiguous()
    return turned(jpeg_decoded(stored, jpeg).permute(2, 0, 1), jpeg.orientation).contiguous()


def jpeg_decoded(stored: Tensor, jpeg: Jpeg) -> Tensor:
    """As `jpeg_roundtrip`, of pixels in the order in which they lie in the file.

    Args:
        stored: uint8 `(H, W, 3)`, contiguous from row to row; it may be some rows of an image.
        jpeg: settings.
    """
    # A progressive file holds the same, and takes several times as long.
    with Image.open(io.BytesIO(_encode_jpeg(stored, replace(jpeg, progressive=False)))) as file:
        return torch.from_numpy(np.array(file.convert("RGB")))


def turned(stored: Tensor, orientation: int) -> Tensor:
    """Stored pixels `(C, H, W)` as they are to be shown under an EXIF orientation."""
    if orientation >= 5:
        stored = stored.transpose(-1, -2)
    flipped = [axis for axis, kinds in ((-1, (2, 3, 6, 7)), (-2, (3, 4, 7, 8))) if orientation in kinds]
    return stored.flip(flipped)


def unturned(shown: Tensor, orientation: int) -> Tensor:
    """The inverse of `turned`."""
    return turned(shown, {6: 8, 8: 6}.get(orientation, orientation))


def _carrier(file: Image.Image, path: Path, wanted: ImageFormat) -> Carrier:
    mode, notes = _mode(file, path)
    container = _container(file, path, wanted, mode, notes)
    orientation = file.getexif().get(_ORIENTATION, 1)
    orientation = orientation if orientation in range(1, 9) else 1
    if mode == "I;16" and container != "PNG":
        mode = "L"
        notes.append(f"16-bit gray became 8-bit: {container} holds no more")
    if container == "WEBP" and mode in ("L", "LA"):
        mode = "RGB" if mode == "L" else "RGBA"
        notes.append("gray was stored as RGB with equal channels: WebP holds no gray")
    jpeg = None
    if container == "JPEG":
        jpeg = _settings(file, mode == "L", orientation)
        orientation = 1 if jpeg.orientation == orientation else orientation
    return Carrier(container, mode, jpeg, orientation, tuple(notes))


def _mode(file: Image.Image, path: Path) -> tuple[Mode, list[str]]:
    notes = []
    if file.mode.startswith("I"):
        if "transparency" in file.info:
            notes.append("transparent level of a 16-bit gray picture was left out")
        return "I;16", notes
    if _bits(file, path) > 8:
        notes.append("16 bits a channel became 8: Pillow reads no more")
    if file.mode in ("P", "PA"):
        notes.append("palette became RGB")
    elif file.mode == "CMYK":
        by = "by its ICC profile" if file.info.get("icc_profile") else "without a colour profile to go by"
        notes.append(f"CMYK became RGB, {by}")
    elif file.mode == "1":
        notes.append("black and white became 8-bit gray")
    elif file.mode not in ("L", "LA", "La", "RGB", "RGBA", "RGBa", "RGBX"):
        notes.append(f"{file.mode} became RGB")
    gray = file.mode in ("1", "L", "LA", "La")
    if not file.has_transparency_data:
        return ("L" if gray else "RGB"), notes
    if file.mode in ("1", "L", "RGB"):
        notes.append("transparent colour became an opacity channel")
    return ("LA" if gray else "RGBA"), notes


def _bits(file: Image.Image, path: Path) -> int:
    """Bits a channel in the file; Pillow may have read fewer."""
    if file.format == "PNG":
        with path.open("rb") as stream:
            return stream.read(25)[24]
    if isinstance(file, TiffImagePlugin.TiffImageFile):
        return max(file.tag_v2.get(258, (8,)))
    return 8


def _container(file: Image.Image, path: Path, wanted: ImageFormat, mode: Mode, notes: list[str]) -> Container:
    container: Container = "PNG"
    if wanted == "webp" or (wanted == "keep" and file.format == "WEBP"):
        container = "WEBP"
    elif wanted == "jpeg" or (wanted == "keep" and file.format in ("JPEG", "MPO")):
        container = "JPEG"
    if container == "JPEG" and mode in ("LA", "RGBA"):
        notes.append("saved as PNG: JPEG holds no opacity")
        return "PNG"
    if max(file.size) > _LARGEST.get(container, max(file.size)):
        notes.append(f"saved as PNG: {container} holds at most {_LARGEST[container]} pixels a side")
        return "PNG"
    if wanted == "keep" and container == "PNG" and file.format != "PNG":
        notes.append(f"{file.format} was saved as PNG")
    if wanted == "keep" and container == "WEBP" and _is_lossy_webp(path):
        notes.append("lossy WebP was saved without loss")
    return container


def _is_lossy_webp(path: Path) -> bool:
    content, place = path.read_bytes(), 12
    while (name := content[place : place + 4]) not in (b"VP8 ", b"VP8L", b""):
        size = int.from_bytes(content[place + 4 : place + 8], "little")
        place += 8 + size + size % 2
    return name == b"VP8 "


def _settings(file: Image.Image, gray: bool, orientation: int) -> Jpeg:
    if not isinstance(file, JpegImagePlugin.JpegImageFile):
        return Jpeg(_standard(_JPEG_QUALITY), 0, gray)
    tables = tuple(tuple(file.quantization[key]) for key in sorted(file.quantization))[:2]
    # Pillow names only the common samplings; any other is saved at full resolution.
    subsampling = 0 if gray else max(0, JpegImagePlugin.get_sampling(file))
    return Jpeg(tables, subsampling, gray, orientation, bool(file.info.get("progressive")))


@cache
def _standard(quality: int) -> tuple[tuple[int, ...], ...]:
    """The tables of libjpeg at a quality from 1 to 100."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG", quality=quality)
    with Image.open(file) as saved:
        assert isinstance(saved, JpegImagePlugin.JpegImageFile)
        return tuple(tuple(saved.quantization[key]) for key in (0, 1))


def _segments(content: bytes) -> Iterator[bytes]:
    """What stands between the first and the last marker of a JPEG file: segments, those of scans with their data."""
    found = _JPEG_MARKER.search(content, len(_JPEG_START))
    while found and found[0] != _JPEG_END:
        size = int.from_bytes(content[found.end() : found.end() + 2], "big")
        following = _JPEG_MARKER.search(content, found.end() + size)
        yield content[found.start() : following.start() if following else None]
        found = following


def _is_metadata(segment: bytes) -> bool:
    """Whether a segment of a JPEG file can be missing; without Adobe's, colours may be others."""
    if segment[1] == 0xEE:
        return not segment.startswith(b"Adobe", 4)
    return segment[1] == 0xFE or segment[1] & 0xF0 == 0xE0


def _encode_jpeg(stored: Tensor, jpeg: Jpeg, **options: Any) -> bytes:
    pixels, file = stored.numpy(), io.BytesIO()
    Image.fromarray(pixels[..., 0] if jpeg.gray else pixels).save(
        file, "JPEG", qtables=[list(table) for table in jpeg.tables], subsampling=jpeg.subsampling,
        progressive=jpeg.progressive, **options,
    )  # fmt: skip
    return file.getvalue()


def _stored(carrier: Carrier, picture: Picture, protected: Tensor) -> Image.Image:
    if carrier.mode == "I;16":
        assert picture.deep is not None
        # The upper byte moves, whose reading alone is what most programs show, and the lower one stays.
        delta = protected[0].to(torch.int32) - picture.image[0].to(torch.int32)
        upper = ((picture.deep >> 8) + delta).clamp(0, 255)
        return Image.fromarray((upper * 256 + (picture.deep & 255)).numpy().astype(np.uint16))
    if picture.alpha is not None:
        protected = torch.cat([_beneath(picture, protected), picture.alpha[None]])
    if carrier.mode in ("L", "LA"):
        protected = torch.cat([protected[:1], protected[3:]])
    return to_pil_image(protected, mode=carrier.mode)


def _beneath(picture: Picture, shown: Tensor) -> Tensor:
    """The colours nearest to the original's that look like `shown` on white under its opacity."""
    assert picture.alpha is not None
    assert picture.colour is not None
    alpha, colour = picture.alpha.to(torch.int32), picture.colour.to(torch.int32)
    # Pillow shows a colour c of opacity a on white as (c·a + 255·(255 − a) + 127) // 255.
    light = 255 * (shown.to(torch.int32) - (255 - alpha))
    least = torch.div(light - 127 + alpha - 1, alpha.clamp(min=1), rounding_mode="floor")
    most = torch.div(light + 127, alpha.clamp(min=1), rounding_mode="floor")
    nearest = colour.maximum(least).minimum(most).clamp(0, 255)
    return torch.where(alpha == 0, colour, nearest).to(torch.uint8)
