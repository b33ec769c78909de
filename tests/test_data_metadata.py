"""What a file says beside its pixels: read from anywhere, true of the release, with nothing of the original in it."""

from __future__ import annotations

import struct
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from PIL import ExifTags, Image, PngImagePlugin

import odd_pictures
from mmguard.data.metadata import (
    Container,
    Metadata,
    declared,
    differences,
    exif_of,
    fitted,
    read_metadata,
    save_options,
    settled,
)
from odd_pictures import GRAY, IPTC, PREVIEW, SRGB

EXIF = odd_pictures.exif(6).tobytes().removeprefix(b"Exif\0\0")
FULL = Metadata(
    EXIF, odd_pictures.xmp(6), IPTC, SRGB, (300.0, 150.0), (("Comment", "früh ☀"), ("Title", "boats")),
    ((b"gAMA", struct.pack(">I", 45455)),),
)  # fmt: skip
CONTAINERS: tuple[tuple[Container, str], ...] = (("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp"))


def saved(metadata: Metadata, container: Container, path: Path) -> Path:
    odd_pictures.picture("RGB").save(path, container, **save_options(metadata, container))
    return path


def tags_of(exif: bytes) -> Image.Exif:
    parsed = Image.Exif()
    parsed.load(b"Exif\0\0" + exif)
    return parsed


# Reading and writing


@pytest.mark.parametrize(("container", "suffix"), CONTAINERS)
def test_what_is_fitted_to_a_format_is_read_back_from_it(tmp_path: Path, container: Container, suffix: str) -> None:
    kept, lost = fitted(FULL, container, gray=False)
    found, notes = read_metadata(saved(kept, container, tmp_path / f"a.{suffix}"))
    assert differences(kept, found) == []
    assert notes == []
    assert (found.exif, found.xmp, found.icc) == (FULL.exif, FULL.xmp, FULL.icc)
    assert (
        lost
        == {
            "PNG": [],
            "JPEG": [
                "colour chunks of PNG (gAMA, cHRM, sRGB, cICP) left out: JPEG holds none",
                "text fields left out: JPEG holds none",
            ],
            "WEBP": [
                "colour chunks of PNG (gAMA, cHRM, sRGB, cICP) left out: WEBP holds none",
                "IPTC left out: WEBP holds none",
                "text fields and comments left out: WEBP holds none",
                "resolution outside EXIF left out: WEBP holds none",
            ],
        }[container]
    )


@pytest.mark.parametrize(("container", "suffix"), CONTAINERS)
def test_where_there_is_nothing_nothing_is_written(tmp_path: Path, container: Container, suffix: str) -> None:
    assert read_metadata(saved(Metadata(), container, tmp_path / f"a.{suffix}")) == (Metadata(), [])


def test_profiles_in_text_fields_are_found(tmp_path: Path) -> None:
    """ImageMagick writes EXIF, XMP and IPTC as hexadecimal digits, IPTC within a resource of Photoshop."""
    wrapped = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(IPTC)) + IPTC + b"\0"
    info = PngImagePlugin.PngInfo()
    for name, data in (("exif", b"Exif\0\0" + EXIF), ("xmp", odd_pictures.xmp(1)), ("iptc", wrapped)):
        info.add_text(f"Raw profile type {name}", f"\n{name}\n{len(data):8}\n{data.hex()}\n", zip=True)
    odd_pictures.picture("RGB").save(tmp_path / "a.png", pnginfo=info)
    found, _ = read_metadata(tmp_path / "a.png")
    assert (found.exif, found.xmp, found.iptc, found.text) == (EXIF, odd_pictures.xmp(1), IPTC, ())


@pytest.mark.parametrize("name", ["8bim", "APP1"])
def test_other_profiles_may_hold_previews_and_are_left_out(name: str, tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Title", "a cat")
    info.add_text(f"Raw profile type {name}", f"\n{name}\n       4\nffd8ffd9\n", zip=True)
    odd_pictures.picture("RGB").save(tmp_path / "a.png", pnginfo=info)
    found, notes = read_metadata(tmp_path / "a.png")
    assert found.text == (("Title", "a cat"),)
    assert notes == [f"profile type {name} of the PNG file was left out"]


def test_what_is_not_read_is_noted(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add(b"tIME", bytes((7, 232, 5, 6, 7, 8, 9)))
    odd_pictures.picture("RGB").save(tmp_path / "a.png", pnginfo=info)
    assert read_metadata(tmp_path / "a.png")[1] == ["chunk tIME of the PNG file was left out"]
    ducky = b"\xff\xec" + struct.pack(">H", 9) + b"Ducky\0\1"
    flag = b"Photoshop 3.0\x008BIM\x04\x0a\0\0\0\0\0\1\1\0"
    odd_pictures.picture("RGB").save(
        tmp_path / "a.jpg", extra=ducky + b"\xff\xed" + struct.pack(">H", len(flag) + 2) + flag
    )
    assert read_metadata(tmp_path / "a.jpg")[1] == [
        "segment APP12 of the JPEG file was left out",
        "resources of Photoshop other than IPTC were left out",
    ]


def test_a_file_that_cannot_be_parsed_loses_its_metadata_with_a_note(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    metadata, notes = read_metadata(tmp_path / "a.png")
    assert metadata == Metadata()
    assert notes == ["metadata cannot be read and was left out (UnidentifiedImageError)"]


# Making it true of the release


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(orientation: int) -> None:
    exif = odd_pictures.exif(orientation).tobytes().removeprefix(b"Exif\0\0")
    before = Metadata(exif, odd_pictures.xmp(orientation), dpi=(300.0, 150.0))
    after, notes = settled(before, orientation)
    assert notes == []
    tags, details = tags_of(after.exif), tags_of(after.exif).get_ifd(ExifTags.IFD.Exif)
    assert tags[0x0112] == 1
    assert b'tiff:Orientation="1"' in after.xmp
    size = (odd_pictures.WIDTH, odd_pictures.HEIGHT)
    assert (details[0xA002], details[0xA003]) == (size if orientation < 5 else size[::-1])
    assert after.dpi == ((300.0, 150.0) if orientation < 5 else (150.0, 300.0))
    assert settled(after, 1) == (after, [])


def test_all_else_in_exif_stays_byte_for_byte() -> None:
    after, _ = settled(Metadata(EXIF), 3)
    changed = [place for place, (one, other) in enumerate(zip(EXIF, after.exif, strict=True)) if one != other]
    assert len(changed) == 1


def test_resolutions_change_places_with_the_sides() -> None:
    block = Image.Exif()
    block.update({0x0112: 6, 0x011A: 300.0, 0x011B: 150.0})
    tags = tags_of(settled(Metadata(block.tobytes().removeprefix(b"Exif\0\0")), 6)[0].exif)
    assert (tags[0x011A], tags[0x011B]) == (150.0, 300.0)


@pytest.mark.parametrize("order", "<>")
def test_no_preview_of_the_unprotected_picture_is_left(order: str) -> None:
    exif = _with_preview(order)
    assert exif.count(PREVIEW) == 2
    after, notes = settled(Metadata(exif, b"<a:Thumbnails>" + b"AAAA" + b"</a:Thumbnails>" + odd_pictures.xmp(1)), 1)
    assert len(after.exif) == len(exif)
    assert b"picture in a picture" not in after.exif
    assert after.xmp == odd_pictures.xmp(1)
    assert notes == ["preview of the unprotected picture in its metadata was removed"]
    assert tags_of(after.exif)[0x010F] == "Own"
    assert tags_of(after.exif).get_ifd(ExifTags.IFD.IFD1) == {}


def _with_preview(order: str) -> bytes:
    """EXIF as cameras write it: a maker's note with a preview, and a directory with a smaller one."""

    def directory(entries: list[tuple[int, int, int, bytes]], following: int) -> bytes:
        body = b"".join(struct.pack(order + "HHI", *entry[:3]) + entry[3].ljust(4, b"\0") for entry in entries)
        return struct.pack(order + "H", len(entries)) + body + struct.pack(order + "I", following)

    def number(value: int) -> bytes:
        return struct.pack(order + "I", value)

    # Two entries, one, and two, each of 12 bytes.
    first, second, third, note = 8, 38, 56, 86
    return (
        {"<": b"II*\0", ">": b"MM\0*"}[order]
        + number(first)
        + directory([(0x010F, 2, 4, b"Own\0"), (0x8769, 4, 1, number(second))], third)
        + directory([(0x927C, 7, len(PREVIEW), number(note))], 0)
        + directory([(0x0201, 4, 1, number(note + len(PREVIEW))), (0x0202, 4, 1, number(len(PREVIEW)))], 0)
        + PREVIEW * 2
    )


@pytest.mark.parametrize("exif", [b"II", b"XX*\0\x08\0\0\0", EXIF[:40], b"II*\0\xff\xff\xff\xff"])
def test_damaged_exif_is_left_out_with_a_note(exif: bytes) -> None:
    assert settled(Metadata(exif), 1) == (Metadata(), ["EXIF is damaged and was left out"])


@pytest.mark.parametrize("xmp", [b"<x:xmpmeta>", b"\xff\xfe<\0/\0", odd_pictures.xmp(1).replace(b"\xc3", b"")])
def test_damaged_xmp_is_left_out_with_a_note(xmp: bytes) -> None:
    assert settled(Metadata(xmp=xmp), 1) == (Metadata(), ["XMP is damaged or empty and was left out"])


def test_exif_of_an_orientation_says_just_that() -> None:
    assert dict(tags_of(exif_of(6))) == {0x0112: 6}


# Fitting it to a format


def test_a_profile_of_another_colour_space_is_left_out() -> None:
    note = ["ICC profile left out: it is of another colour space than the released file"]
    for profile, gray, stays in ((SRGB, False, True), (SRGB, True, False), (GRAY, True, True), (GRAY, False, False)):
        kept, lost = fitted(Metadata(icc=profile), "PNG", gray)
        assert (kept.icc, lost) == ((profile, []) if stays else (b"", note))


def test_png_has_a_profile_or_says_srgb_but_not_both() -> None:
    chunks = ((b"gAMA", b"\0\0\xb1\x8f"), (b"sRGB", b"\0"))
    assert fitted(Metadata(colour=chunks), "PNG", False)[0].colour == chunks
    assert fitted(Metadata(icc=SRGB, colour=chunks), "PNG", False)[0].colour == chunks[:1]


def test_blocks_too_large_for_a_jpeg_are_left_out() -> None:
    kept, lost = fitted(Metadata(exif=bytes(70_000), xmp=bytes(65_505), iptc=bytes(65_505)), "JPEG", False)
    assert (kept.exif, len(kept.xmp), len(kept.iptc)) == (b"", 0, 65_505)
    assert lost == [
        "EXIF of more than 64 kB left out: JPEG holds none",
        "XMP of more than 64 kB left out: JPEG holds none",
    ]


def test_differences_are_named_and_resolutions_may_be_rounded() -> None:
    assert differences(FULL, Metadata()) == ["exif", "xmp", "iptc", "icc", "colour", "text", "dpi"]
    assert differences(Metadata(dpi=(300.0, 300.0)), Metadata(dpi=(299.9994, 300.4))) == []


# Declaring that training is prohibited


def declarations(xmp: bytes) -> list[tuple[str, str]]:
    """Properties of data mining in an XMP packet, as any XML parser finds them."""
    spaces = {"http://ns.useplus.org/ldf/xmp/1.0/", "http://www.w3.org/ns/tdmrep/"}
    root = ET.fromstring(xmp.decode())
    attributes = [pair for element in root.iter() for pair in element.attrib.items()]
    elements = [(element.tag, element.text or "") for element in root.iter()]
    return [(name, value) for name, value in attributes + elements if name[1:].partition("}")[0] in spaces]


PROHIBITED = [
    (
        "{http://ns.useplus.org/ldf/xmp/1.0/}DataMining",
        "http://ns.useplus.org/ldf/vocab/DMI-PROHIBITED-AIMLTRAINING",
    ),
    ("{http://www.w3.org/ns/tdmrep/}reservation", "1"),
]


@pytest.mark.parametrize("xmp", [b"", odd_pictures.xmp(1)], ids=["empty", "lightroom"])
def test_a_declaration_stands_beside_what_is_said_already(xmp: bytes) -> None:
    once = declared(Metadata(xmp=xmp))
    assert declarations(once.xmp) == PROHIBITED
    assert declared(once).xmp.count(b"DataMining") == 1
    assert settled(once, 1) == (once, [])
    if xmp:
        assert b"boats, fr" in once.xmp
        assert b'xmp:Rating="4"' in once.xmp


@pytest.mark.parametrize(
    "other",
    [
        b'<rdf:Description plus:DataMining="http://ns.useplus.org/ldf/vocab/DMI-ALLOWED" xmlns:plus="%s"/>',
        b'<rdf:Description xmlns:plus="%s"><plus:DataMining>DMI-ALLOWED</plus:DataMining></rdf:Description>',
    ],
)
def test_an_earlier_declaration_is_replaced(other: bytes) -> None:
    other = other % b"http://ns.useplus.org/ldf/xmp/1.0/"
    xmp = odd_pictures.xmp(1).replace(b"</rdf:RDF>", other + b"</rdf:RDF>")
    assert declarations(declared(Metadata(xmp=xmp)).xmp) == PROHIBITED


# What a thief could read


def test_captions_and_positions_are_found() -> None:
    assert FULL.captions == [
        "EXIF ImageDescription", "EXIF UserComment", "IPTC caption", "IPTC keywords", "XMP dc:description",
        "Comment", "Title",
    ]  # fmt: skip
    assert FULL.has_position
    assert Metadata(text=(("Software", "GIMP"),)).captions == []
    assert not Metadata(exif_of(1)).has_position
