"""Decoding of image files, and the lossless way back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.functional import to_pil_image

from mmguard.data.images import load_image
from mmguard.errors import SampleError


def test_rgb_is_as_stored(tmp_path: Path) -> None:
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = load_image(tmp_path / "a.png")
    assert image.dtype == torch.uint8
    assert torch.equal(image, torch.from_numpy(pixels).permute(2, 0, 1))


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    picture = Image.new("RGB", (4, 2), "white")
    picture.paste((0, 0, 0), (0, 0, 2, 2))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated clockwise
    picture.save(tmp_path / "a.png", exif=exif)
    image = load_image(tmp_path / "a.png")
    assert image.shape == (3, 4, 2)
    assert (image[:, :2] == 0).all()
    assert (image[:, 2:] == 255).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LA", "RGBA"])
@pytest.mark.parametrize("colour", ["black", "white"])
def test_other_modes_become_rgb(tmp_path: Path, mode: str, colour: str) -> None:
    suffix = "tif" if mode in ("CMYK", "YCbCr") else "png"
    Image.new("RGB", (3, 2), colour).convert(mode).save(tmp_path / f"a.{suffix}")
    image = load_image(tmp_path / f"a.{suffix}")
    assert image.shape == (3, 2, 3)
    assert (image == (0 if colour == "black" else 255)).all()


def test_transparency_is_composited_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (1, 1), (200, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("RGBA", (1, 1), (0, 0, 0, 51)).save(tmp_path / "faint.png")
    palette = Image.new("P", (1, 1), 1)
    palette.putpalette([0, 0, 0, 9, 9, 9])
    palette.save(tmp_path / "palette.png", transparency=1)
    assert load_image(tmp_path / "clear.png").flatten().tolist() == [255, 255, 255]
    assert load_image(tmp_path / "faint.png").flatten().tolist() == [204, 204, 204]
    assert load_image(tmp_path / "palette.png").flatten().tolist() == [255, 255, 255]


def test_16_bit_gray_is_scaled_with_rounding(tmp_path: Path) -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png")[0].flatten().tolist() == [0, 0, 1, 1, 128, 255]


def test_values_of_unknown_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((2, 2), 70_000, dtype=np.int32)).save(tmp_path / "i.tif")
    Image.fromarray(np.full((2, 2), 0.5, dtype=np.float32)).save(tmp_path / "f.tif")
    for name in ("i.tif", "f.tif"):
        with pytest.raises(SampleError, match=rf"{name}.*unknown range.*8-bit"):
            load_image(tmp_path / name)


@pytest.mark.parametrize("suffix", ["gif", "png", "tif"])
def test_several_frames_are_refused(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    with pytest.raises(SampleError, match="2 frames"):
        load_image(tmp_path / f"a.{suffix}")


def test_a_phone_photo_with_a_preview_is_a_still(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), "red"), Image.new("RGB", (4, 4), "blue")]
    frames[0].save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=frames[1:])
    assert load_image(tmp_path / "a.jpg").shape == (3, 8, 8)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_truncated_files_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-600])
    with pytest.raises(SampleError, match=r"cannot be decoded.*replace the file") as error:
        load_image(path)
    assert error.value.where == str(path)


def test_missing_or_foreign_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(SampleError, match="cannot be decoded"):
        load_image(tmp_path / "a.png")
    with pytest.raises(SampleError, match="no such image file"):
        load_image(tmp_path / "b.png")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [10, 20])
def test_decompression_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    Image.new("RGB", (5, 5)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)  # Pillow raises beyond twice the limit, else it warns
    with pytest.raises(SampleError, match="scale the image down"):
        load_image(tmp_path / "a.png")


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_png_round_trip_is_exact(tmp_path_factory: pytest.TempPathFactory, height: int, width: int, seed: int) -> None:
    path = tmp_path_factory.mktemp("png") / "a.png"
    image = torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed)).byte()
    to_pil_image(image).save(path, format="PNG")
    assert torch.equal(load_image(path), image)
