"""Image files on one side, uint8 RGB tensors on the other: what a trainer sees, and what lies beneath it."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from mmguard.errors import SampleError

_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""What Pillow may decode: raster images. Its other decoders are seldom used and thus seldom tried, and that of
PostScript runs what the file says."""


@dataclass(frozen=True)
class Picture:
    """A decoded image file: what a trainer sees of it, and what it holds besides."""

    image: Tensor
    """What a trainer sees: uint8 `(3, H, W)`, RGB, 0…255, at native size; transparency is composited on white."""
    alpha: Tensor | None = None
    """Opacity, uint8 `(H, W)`; None where the file has none."""
    colour: Tensor | None = None
    """Colours beneath the opacity, uint8 `(3, H, W)`; None where `alpha` is."""
    deep: Tensor | None = None
    """Levels of a 16-bit gray file, int32 `(H, W)`, 0…65535; None for others."""


def opened(source: Path | io.BytesIO) -> Image.Image:
    """An image file that Pillow knows to be one of the formats that we read; nothing is decoded yet.

    Raises:
        OSError: it is missing, or none of them. Pillow has more kinds of errors for bad bytes.
    """
    return Image.open(source, formats=_FORMATS)


def load_image(path: Path) -> Tensor:
    """Decodes an image file as a trainer would see it.

    EXIF orientation is applied; palette, gray, CMYK (by its ICC profile, if any) and 16-bit gray files become RGB;
    transparency is composited on white.

    Returns:
        uint8 `(3, H, W)`, RGB, 0…255, at native size.

    Raises:
        SampleError: the file is missing, truncated, no image, animated, or larger than Pillow's decompression-bomb
            limit (about 89 million pixels).
    """
    return load_picture(path).image


def load_picture(path: Path) -> Picture:
    """Decodes an image file, as `load_image` does, with what a trainer does not see.

    Raises:
        SampleError: as for `load_image`.
    """
    _require_file(path)
    return _decoded(path, path)


def read_file(path: Path) -> bytes:
    """The content of an image file, for `picture_of`.

    Raises:
        SampleError: the file is missing or cannot be read.
    """
    _require_file(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise SampleError(str(path), f"cannot be read ({error}): replace the file, or remove the row") from error


def picture_of(content: bytes, path: Path) -> Picture:
    """Decodes the content of an image file that is not on disk, as `load_picture` does.

    Args:
        content: the file's bytes.
        path: what to call it in errors.

    Raises:
        SampleError: as for `load_image`.
    """
    return _decoded(io.BytesIO(content), path)


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise SampleError(str(path), "no such image file: correct the path in the dataset, or remove the row")


def _decoded(source: Path | io.BytesIO, path: Path) -> Picture:
    try:
        with opened(source) as file:
            _require_still(file, path)
            _require_sane_size(file.size, path)
            return _picture(ImageOps.exif_transpose(file), path)
    except SampleError:
        raise
    except Image.DecompressionBombError as error:
        raise SampleError(str(path), f"{error}: scale the image down") from error
    # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error and more on bad bytes.
    except Exception as error:
        raise SampleError(str(path), f"cannot be decoded ({error}): replace the file, or remove the row") from error


def _require_still(file: Image.Image, path: Path) -> None:
    # An MPO file is a phone's JPEG photo with a preview or depth map behind it: every reader shows the first frame.
    frames = getattr(file, "n_frames", 1)
    if frames > 1 and file.format != "MPO":
        raise SampleError(str(path), f"holds {frames} frames or pages: save the one you mean as a single image")


def _require_sane_size(size: tuple[int, int], path: Path) -> None:
    # Pillow only warns between its limit and twice the limit.
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and size[0] * size[1] > limit:
        raise SampleError(str(path), f"{size[0]} x {size[1]} pixels are more than {limit}: scale the image down")


def _picture(image: Image.Image, path: Path) -> Picture:
    if image.mode.startswith("I"):
        deep = _levels(image, path)
        return Picture(((deep + 128) // 257).to(torch.uint8).expand(3, -1, -1).contiguous(), deep=deep)
    if image.mode == "F":
        raise SampleError(str(path), "holds floating-point values of unknown range: save it as an 8-bit image")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        shown = _tensor(Image.alpha_composite(white, image).convert("RGB"))
        colour, alpha = _tensor(image).split((3, 1))
        return Picture(shown, alpha[0].contiguous(), colour.contiguous())
    return Picture(_tensor(_srgb(image) if image.mode == "CMYK" else image.convert("RGB")))


def _tensor(image: Image.Image) -> Tensor:
    return pil_to_tensor(image).contiguous()


def _srgb(image: Image.Image) -> Image.Image:
    """Inks to colours: by the file's own profile, or by Pillow's simple formula where it has none that works."""
    profile = image.info.get("icc_profile")
    if profile:
        try:
            inks, screen = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(image, inks, screen, outputMode="RGB")
        except (ImageCms.PyCMSError, OSError):
            pass
        else:
            assert converted is not None
            return converted
    return image.convert("RGB")


def _levels(image: Image.Image, path: Path) -> Tensor:
    """0…65535, to be scaled to 0…255 with rounding; Pillow's own conversion would clip everything above 255."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise SampleError(str(path), "holds 32-bit values beyond 16 bits of unknown range: save it as an 8-bit image")
    return torch.from_numpy(values.astype(np.int32))
