"""Image files on one side, uint8 RGB tensors on the other: what a trainer sees, and what a release stores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from mmguard.errors import SampleError

_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""What Pillow may decode: raster images. Its other decoders are seldom used and thus seldom tried, and that of
PostScript runs what the file says."""


def load_image(path: Path) -> Tensor:
    """Decodes an image file as a trainer would see it.

    EXIF orientation is applied; palette, gray, CMYK and 16-bit gray files become RGB; transparency is
    composited on white.

    Returns:
        uint8 `(3, H, W)`, RGB, 0…255, at native size.

    Raises:
        SampleError: the file is missing, truncated, no image, animated, or larger than Pillow's
        decompression-bomb
            limit (about 89 million pixels).
    """
    if not path.is_file():
        raise SampleError(str(path), "no such image file: correct the path in the dataset, or remove the row")
    try:
        with Image.open(path, formats=_FORMATS) as file:
            _require_still(file, path)
            _require_sane_size(file.size, path)
            return pil_to_tensor(_rgb(ImageOps.exif_transpose(file), path)).contiguous()
    except SampleError:
        raise
    except Image.DecompressionBombError as error:
        raise SampleError(str(path), f"{error}: scale the image down") from error
    # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error and more on bad
    # bytes.
    except Exception as error:
        raise SampleError(str(path), f"cannot be decoded ({error}): replace the file, or remove the row") from error


def save_png(image: Tensor, path: Path) -> None:
    """Writes an image as a PNG without any metadata; reading it back gives the same bytes.

    Args:
        image: uint8 `(3, H, W)`, RGB, 0…255.
        path: where to write, whatever its suffix.

    Raises:
        ValueError: `image` is not uint8 `(3, H, W)`.
        OSError: the file cannot be written.
    """
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"{path}: expected a uint8 (3, H, W) image, got {image.dtype} {tuple(image.shape)}")
    to_pil_image(image.cpu()).save(path, format="PNG")


def _require_still(file: Image.Image, path: Path) -> None:
    # An MPO file is a phone's JPEG photo with a preview or depth map behind it: every reader shows the first
    # frame.
    frames = getattr(file, "n_frames", 1)
    if frames > 1 and file.format != "MPO":
        raise SampleError(str(path), f"holds {frames} frames or pages: save the one you mean as a single image")


def _require_sane_size(size: tuple[int, int], path: Path) -> None:
    # Pillow only warns between its limit and twice the limit.
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and size[0] * size[1] > limit:
        raise SampleError(str(path), f"{size[0]} x {size[1]} pixels are more than {limit}: scale the image down")


def _rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode.startswith("I"):
        return _from_16_bit(image, path)
    if image.mode == "F":
        raise SampleError(str(path), "holds floating-point values of unknown range: save it as an 8-bit image")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _from_16_bit(image: Image.Image, path: Path) -> Image.Image:
    """Scales 0…65535 to 0…255 with rounding; Pillow's own conversion would clip everything above 255."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise SampleError(str(path), "holds 32-bit values beyond 16 bits of unknown range: save it as an 8-bit image")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
