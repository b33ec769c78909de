"""What a released file is made like, and that nothing but its colours differs from the original's."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

import odd_pictures
from mmguard.config import ImageFormat
from mmguard.data.carrier import Carrier, carried_metadata, carrier_for, encode, suffix_of, turned, unturned
from mmguard.data.images import Picture, load_picture
from mmguard.data.metadata import Metadata
from mmguard.errors import SampleError
from mmguard.perturb.budget import ImageBudget, apply
from odd_pictures import SRGB, Odd

EPS = 8
ODD = [odd for odd in odd_pictures.odd_pictures() if odd.suffix != "jpg" or odd.kind == "CMYK"]


def written(tmp_path: Path, suffix: str, kind: str, orientation: int = 1) -> Path:
    return Odd(suffix, kind, orientation, b"").write(tmp_path)


def protected(picture: Picture, seed: int = 0) -> Tensor:
    budget = ImageBudget(EPS, picture.alpha)
    return apply(picture.image, budget.random_signs(picture.image, torch.Generator().manual_seed(seed)))


def read_back(tmp_path: Path, content: bytes) -> Picture:
    (tmp_path / "released").write_bytes(content)
    return load_picture(tmp_path / "released")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turning_is_what_exif_means(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    odd_pictures.picture("RGB").save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as file:
        stored, shown = pil_to_tensor(file), pil_to_tensor(ImageOps.exif_transpose(file))
    assert torch.equal(turned(stored, orientation), shown)
    assert torch.equal(unturned(shown, orientation), stored)


@pytest.mark.parametrize(
    ("suffix", "kind", "wanted", "container", "mode", "note"),
    [
        ("png", "RGB", "png", "PNG", "RGB", ""),
        ("png", "RGB", "keep", "PNG", "RGB", ""),
        ("png", "RGBA", "webp", "WEBP", "RGBA", ""),
        ("png", "RGBA", "jpeg", "PNG", "RGBA", "saved as PNG: JPEG holds no opacity"),
        ("png", "L", "webp", "WEBP", "RGB", "gray was stored as RGB"),
        ("png", "L", "jpeg", "JPEG", "L", ""),
        ("png", "1", "png", "PNG", "L", "black and white became 8-bit gray"),
        ("png", "LA", "png", "PNG", "LA", ""),
        ("png", "P", "keep", "PNG", "RGB", "palette became RGB"),
        ("png", "P transparent", "keep", "PNG", "RGBA", "palette became RGB"),
        ("png", "RGB transparent", "keep", "PNG", "RGBA", "transparent colour became an opacity channel"),
        ("png", "I;16", "keep", "PNG", "I;16", ""),
        ("png", "I;16", "jpeg", "JPEG", "L", "16-bit gray became 8-bit"),
        ("jpg", "RGB", "keep", "JPEG", "RGB", ""),
        ("jpg", "L", "keep", "JPEG", "L", ""),
        ("jpg", "RGB", "png", "PNG", "RGB", ""),
        ("jpg", "CMYK", "keep", "JPEG", "RGB", "CMYK became RGB, without a colour profile"),
        ("webp", "RGB", "keep", "WEBP", "RGB", ""),
        ("webp", "RGBA lossy", "keep", "WEBP", "RGBA", "lossy WebP was saved without loss"),
        ("tif", "LAB", "keep", "PNG", "RGB", "LAB became RGB"),
        ("tif", "RGB", "keep", "PNG", "RGB", "TIFF was saved as PNG"),
        ("gif", "P", "keep", "PNG", "RGB", "GIF was saved as PNG"),
    ],
)
def test_the_format_and_what_it_converts(
    tmp_path: Path, suffix: str, kind: str, wanted: ImageFormat, container: str, mode: str, note: str
) -> None:
    carrier = carrier_for(written(tmp_path, suffix, kind), wanted)
    assert (carrier.container, carrier.mode) == (container, mode)
    assert any(found.startswith(note) for found in carrier.notes) if note else carrier.notes == ()


@pytest.mark.parametrize("wanted", ["png", "webp"])
@pytest.mark.parametrize("odd", ODD, ids=[odd.name for odd in ODD])
def test_lossless_formats_give_back_what_was_put_in(tmp_path: Path, odd: Odd, wanted: ImageFormat) -> None:
    path = odd.write(tmp_path)
    before, carrier = load_picture(path), carrier_for(path, wanted)
    image = protected(before)
    after = read_back(tmp_path, encode(carrier, before, image, Metadata()))
    if carrier.mode == "I;16":
        assert before.deep is not None
        assert after.deep is not None
        assert torch.equal(after.deep % 256, before.deep % 256)
        assert (after.image.int() - image.int()).abs().max() <= 1
    else:
        assert torch.equal(after.image, image)
    if before.alpha is not None and before.colour is not None:
        assert after.alpha is not None
        assert after.colour is not None
        assert torch.equal(after.alpha, before.alpha)
        assert (after.colour.int() - before.colour.int()).abs().max() <= EPS
        assert torch.equal(after.colour[:, before.alpha == 0], before.colour[:, before.alpha == 0])


def test_every_colour_of_every_opacity_is_shown_within_the_budget(tmp_path: Path) -> None:
    """All pairs of a colour and an opacity, moved as far as the budget lets them, both ways."""
    colour, alpha = torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij")
    Image.merge("LA", [Image.fromarray(plane.byte().numpy()) for plane in (colour, alpha)]).save(tmp_path / "a.png")
    picture, carrier = load_picture(tmp_path / "a.png"), carrier_for(tmp_path / "a.png", "png")
    for step in range(-EPS, EPS + 1):
        delta = ImageBudget(EPS, picture.alpha).project(picture.image, torch.full_like(picture.image.int(), step))
        after = read_back(tmp_path, encode(carrier, picture, apply(picture.image, delta), Metadata()))
        assert torch.equal(after.image, apply(picture.image, delta))
        assert after.colour is not None
        assert (after.colour[0].int() - colour).abs().max() <= EPS


# JPEG


@pytest.mark.parametrize("quality", [20, 50, 75, 95])
@pytest.mark.parametrize("kind", [{"subsampling": 2}, {"subsampling": 0, "progressive": True}, {"subsampling": 1}])
def test_the_encoder_is_set_like_the_originals(tmp_path: Path, quality: int, kind: dict[str, int]) -> None:
    odd_pictures.picture("RGB").save(tmp_path / "a.jpg", quality=quality, **kind)
    picture, carrier = load_picture(tmp_path / "a.jpg"), carrier_for(tmp_path / "a.jpg", "keep")
    assert carrier.jpeg is not None
    assert carrier.jpeg.quality == quality
    (tmp_path / "b.jpg").write_bytes(encode(carrier, picture, picture.image, Metadata()))
    assert carrier_for(tmp_path / "b.jpg", "keep") == carrier
    with Image.open(tmp_path / "a.jpg") as one, Image.open(tmp_path / "b.jpg") as other:
        assert one.quantization == other.quantization
        assert one.layer == other.layer
        assert one.info.get("progressive") == other.info.get("progressive")


def test_pixels_of_a_jpeg_stay_as_they_lie_and_others_are_turned(tmp_path: Path) -> None:
    for suffix, wanted, lies, applied in (("jpg", "keep", 6, 1), ("jpg", "png", None, 6), ("png", "jpeg", 1, 6)):
        carrier = carrier_for(written(tmp_path, suffix, "RGB", 6), wanted)
        assert (carrier.jpeg and carrier.jpeg.orientation, carrier.orientation) == (lies, applied)


@pytest.mark.parametrize("say", ["exif", "xmp"])
def test_how_a_jpeg_is_to_be_turned_is_said_even_if_its_exif_is_lost(tmp_path: Path, say: str) -> None:
    path = tmp_path / "a.jpg"
    exif = odd_pictures.exif(6).tobytes()
    # The preview's directory is said to lie behind the end of the block.
    (count,) = struct.unpack_from(">H", exif, 14)
    damaged = exif[: 16 + 12 * count] + b"\0\1\0\0" + exif[20 + 12 * count :]
    odd_pictures.picture("RGB").save(path, **{"exif": damaged} if say == "exif" else {"xmp": odd_pictures.xmp(6)})
    picture, carrier = load_picture(path), carrier_for(path, "keep")
    assert picture.image.shape == (3, odd_pictures.WIDTH, odd_pictures.HEIGHT)
    metadata, notes = carried_metadata(path, carrier, False)
    assert ("EXIF is damaged and was left out" in notes) == (say == "exif")
    after = read_back(tmp_path, encode(carrier, picture, picture.image, metadata))
    assert after.image.shape == picture.image.shape
    assert (after.image.float() - picture.image.float()).abs().mean() < 3


def test_inks_become_colours_by_their_own_profile(tmp_path: Path) -> None:
    inks = Image.new("CMYK", (4, 4), (255, 0, 0, 0))
    inks.save(tmp_path / "plain.jpg", quality=100)
    inks.save(tmp_path / "profile.jpg", quality=100, icc_profile=odd_pictures.inks_to(40, 0, 0))
    plain, profiled = (load_picture(tmp_path / f"{name}.jpg").image[:, 0, 0] for name in ("plain", "profile"))
    assert plain.tolist() == [0, 255, 255]
    assert not torch.equal(plain, profiled)
    assert profiled.float().std() < 3  # gray, as this profile has it
    assert carrier_for(tmp_path / "profile.jpg", "keep").notes == ("CMYK became RGB, by its ICC profile",)


# Limits


@pytest.mark.parametrize(("wanted", "side"), [("webp", 16_384), ("jpeg", 65_501)])
def test_pictures_too_large_for_a_format_are_saved_as_png(tmp_path: Path, wanted: ImageFormat, side: int) -> None:
    Image.new("L", (side, 1)).save(tmp_path / "a.png")
    carrier = carrier_for(tmp_path / "a.png", wanted)
    assert carrier.container == "PNG"
    assert f"holds at most {side - 1} pixels a side" in carrier.notes[-1]


def test_deep_colours_are_said_to_be_lost(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(_deep_png())
    assert "16 bits a channel became 8" in carrier_for(tmp_path / "a.png", "png").notes[0]


def _deep_png() -> bytes:
    """A PNG file of one pixel with 16 bits a channel, which Pillow reads but does not write."""
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" + struct.pack(">HHH", 1, 2, 3))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_names_keep_a_suffix_that_says_what_the_file_is() -> None:
    assert [suffix_of(Path(f"a{suffix}"), "JPEG") for suffix in (".JPG", ".jpeg", ".png", "")] == [
        ".JPG", ".jpeg", ".jpg", ".jpg",
    ]  # fmt: skip
    assert suffix_of(Path("a.jpg"), "PNG") == ".png"
    assert suffix_of(Path("a.WebP"), "WEBP") == ".WebP"


def test_a_large_profile_goes_through_a_jpeg(tmp_path: Path) -> None:
    large = struct.pack(">I", len(SRGB) + 100_000) + SRGB[4:] + bytes(100_000)
    odd_pictures.picture("RGB").save(tmp_path / "a.jpg", icc_profile=large)
    carrier = carrier_for(tmp_path / "a.jpg", "keep")
    metadata, notes = carried_metadata(tmp_path / "a.jpg", carrier, False)
    picture = load_picture(tmp_path / "a.jpg")
    with Image.open(io.BytesIO(encode(carrier, picture, picture.image, metadata))) as file:
        assert file.info["icc_profile"] == large
    assert notes == []


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(SampleError, match=r"a\.png: cannot be opened"):
        carrier_for(tmp_path / "a.png", "png")


def test_carriers_say_whether_they_are_gray() -> None:
    assert Carrier("PNG", "LA").gray
    assert not Carrier("PNG", "RGBA").gray
