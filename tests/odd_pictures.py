"""Odd image files: every way to store pixels, turned every way, with everything that a file can say beside them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin, TiffImagePlugin, TiffTags

WIDTH, HEIGHT = 21, 14
"""Multiples of no JPEG block."""
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GRAY = SRGB[:16] + b"GRAY" + SRGB[20:]
PREVIEW = b"\xff\xd8\xff\xe0 a picture in a picture \xff\xd9"

_STORED = (
    ("png", "1"), ("png", "L"), ("png", "L transparent"), ("png", "LA"), ("png", "I;16"), ("png", "P"),
    ("png", "P transparent"), ("png", "RGB"), ("png", "RGB transparent"), ("png", "RGBA"),
    ("jpg", "L"), ("jpg", "RGB"), ("jpg", "RGB 4:4:4"), ("jpg", "RGB progressive"), ("jpg", "CMYK"),
    ("webp", "RGB"), ("webp", "RGB lossy"), ("webp", "RGBA"), ("webp", "RGBA lossy"),
    ("tif", "1"), ("tif", "L"), ("tif", "LA"), ("tif", "I;16"), ("tif", "P"), ("tif", "RGB"), ("tif", "RGBA"),
    ("tif", "CMYK"), ("tif", "YCbCr"), ("tif", "LAB"),
    ("gif", "P"), ("gif", "P transparent"), ("bmp", "RGB"), ("bmp", "P"), ("bmp", "L"),
)  # fmt: skip


@dataclass(frozen=True)
class Odd:
    """One odd image file, not yet written."""

    suffix: str
    kind: str
    """Pillow's mode, and what is special."""
    orientation: int
    profile: bytes

    @property
    def name(self) -> str:
        """A file's name that says what it is."""
        profile = {SRGB: "srgb", GRAY: "grayicc", b"": "plain"}[self.profile]
        kind = self.kind.lower().translate(str.maketrans(" ;", "__", ":"))
        return f"{self.suffix}-{kind}-{self.orientation}-{profile}.{self.suffix}"

    def write(self, folder: Path) -> Path:
        """Writes the file, and gives its path."""
        path = folder / self.name
        mode, *special = self.kind.split()
        image = picture(mode, sum(self.name.encode()))
        options: dict[str, Any] = {"icc_profile": self.profile} if self.profile else {}
        if special == ["transparent"]:
            options["transparency"] = (1, 2, 3) if mode == "RGB" else 3
            image.paste(options["transparency"], (0, 0, 5, 5))
        if self.suffix == "png":
            options |= {"pnginfo": _png_texts(self.orientation), "exif": exif(self.orientation), "dpi": (300, 300)}
        elif self.suffix == "jpg":
            options |= {"exif": exif(self.orientation), "xmp": xmp(self.orientation), "extra": photoshop(IPTC)}
            options |= {"comment": "seen by the sea", "dpi": (72, 72), "quality": 80, "subsampling": 2}
            options |= {"4:4:4": {"subsampling": 0}, "progressive": {"progressive": True}}.get("".join(special), {})
        elif self.suffix == "webp":
            options |= {"exif": exif(self.orientation), "xmp": xmp(self.orientation)}
            options |= {"quality": 80} if special else {"lossless": True, "exact": True}
        elif self.suffix == "tif":
            options |= {"tiffinfo": _tiff_tags(self.orientation), "dpi": (150, 150)}
        image.save(path, **options)
        return path


def odd_pictures() -> Iterator[Odd]:
    """Every way to store pixels twice, with orientations and profiles taking turns."""
    for number, (suffix, kind) in enumerate(_STORED):
        if suffix in ("gif", "bmp"):
            yield Odd(suffix, kind, 1, b"")
            continue
        own = b"" if kind in ("CMYK", "LAB") else GRAY if kind[0] in "1LI" else SRGB
        yield Odd(suffix, kind, 1 + number % 8, own)
        yield Odd(suffix, kind, 1 + (number + 4) % 8, b"")


def picture(mode: str, seed: int = 0) -> Image.Image:
    """Smooth gradients and some noise, `WIDTH` x `HEIGHT`; opacity goes from none to all."""
    rng = np.random.default_rng(seed)
    down, across = np.mgrid[0 : 1 : HEIGHT * 1j, 0 : 1 : WIDTH * 1j]
    levels = np.stack([across, down, (across + down) / 2], -1) * 200 + rng.uniform(0, 50, (HEIGHT, WIDTH, 3))
    image = Image.fromarray(levels.astype(np.uint8))
    if mode == "I;16":
        return Image.fromarray((levels[..., 0] * 257 + rng.integers(0, 257, (HEIGHT, WIDTH))).astype(np.uint16))
    if mode == "P":
        return image.quantize(16)
    if mode == "LAB":
        return ImageCms.profileToProfile(
            image, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        )  # type: ignore[return-value]  # None in place only
    image = image.convert(mode)
    if mode.endswith("A"):
        image.putalpha(Image.fromarray((down * 255).round().astype(np.uint8)))
    return image


def exif(orientation: int) -> Image.Exif:
    """What a camera and a careful owner write, in either order of bytes."""
    block = Image.Exif()
    block.endian = "<" if orientation % 2 else ">"
    block.update(_tags(orientation))
    return block


def _tags(orientation: int) -> dict[int, Any]:
    return {
        0x010E: "boats", 0x010F: "Maker", 0x0112: orientation, 0x013B: "Ann Owner", 0x8298: "(c) Ann Owner",
        0x011A: 72.0, 0x011B: 72.0, 0x0128: 2,
        0x8769: {
            0x829A: 0.01, 0x9003: "2024:05:06 07:08:09", 0x9286: b"ASCII\0\0\0by the sea",
            0x927C: b"notes of the maker", 0xA002: WIDTH, 0xA003: HEIGHT,
        },
        0x8825: {1: "N", 2: (52.0, 30.0, 15.0), 3: "E", 4: (13.0, 24.0, 0.5)},
    }  # fmt: skip


def xmp(orientation: int) -> bytes:
    """An XMP packet as Lightroom writes it."""
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
        'xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:tiff="http://ns.adobe.com/tiff/1.0/" '
        f'xmlns:dc="http://purl.org/dc/elements/1.1/" xmp:Rating="4" tiff:Orientation="{orientation}">'
        '<dc:description><rdf:Alt><rdf:li xml:lang="x-default">boats, früh</rdf:li></rdf:Alt></dc:description>'
        '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    ).encode()


def _data_set(number: int, value: bytes) -> bytes:
    return struct.pack(">BBBH", 0x1C, 2, number, len(value)) + value


IPTC = _data_set(120, b"boats by the sea") + _data_set(25, b"sea") + _data_set(25, b"boat") + _data_set(90, b"Kiel")


def photoshop(iptc: bytes) -> bytes:
    """IPTC in the segment of a JPEG file."""
    block = b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0" + struct.pack(">I", len(iptc)) + iptc + b"\0" * (len(iptc) % 2)
    return b"\xff\xed" + struct.pack(">H", len(block) + 2) + block


def _png_texts(orientation: int) -> PngImagePlugin.PngInfo:
    texts = PngImagePlugin.PngInfo()
    texts.add(b"gAMA", struct.pack(">I", 45455))
    texts.add_text("Title", "boats")
    texts.add_text("Comment", "früh ☀", zip=True)
    texts.add_itxt("XML:com.adobe.xmp", xmp(orientation).decode())
    texts.add_text("Raw profile type iptc", f"\niptc\n{len(IPTC):8}\n{IPTC.hex()}\n")
    return texts


def _tiff_tags(orientation: int) -> TiffImagePlugin.ImageFileDirectory_v2:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in _tags(orientation).items():
        tags[tag] = value
    for tag, data in ((700, xmp(orientation)), (33723, IPTC)):
        tags.tagtype[tag] = TiffTags.BYTE
        tags[tag] = data
    return tags


def inks_to(light: int, a: int, b: int) -> bytes:
    """A colour profile by which full cyan is one colour of CIELAB, and no ink is white.

    An ICC profile of version 2 with a table of two steps an ink; see ICC.1:2001-04, section 6.5.9.
    """
    curves = bytes(range(256))
    corners = b"".join(
        bytes((round(light * 2.55), 128 + a, 128 + b)) if number & 8 else bytes((255, 128, 128)) for number in range(16)
    )
    matrix = struct.pack(">9i", *(65536 if number % 4 == 0 else 0 for number in range(9)))
    table = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + matrix + curves * 4 + corners + curves * 3
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    name = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"inks\0" + bytes(78)
    rights = b"text\0\0\0\0none\0"
    tags, content, place = [], b"", 128 + 4 + 12 * 4
    for tag, data in ((b"A2B0", table), (b"wtpt", white), (b"desc", name), (b"cprt", rights)):
        data += bytes(-len(data) % 4)
        tags.append(tag + struct.pack(">II", place + len(content), len(data)))
        content += data
    size = place + len(content)
    head = (
        struct.pack(">I", size) + b"lcms" + b"\x02\x40\0\0" + b"prtrCMYKLab " + struct.pack(">6H", 2024, 1, 1, 0, 0, 0)
    )
    head += b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + b"".join(tags) + content
