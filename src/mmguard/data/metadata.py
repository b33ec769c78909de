"""What an image file says beside its pixels: read, put right for the released pixels, and fitted to a format.

Blocks are kept byte for byte wherever possible: EXIF holds offsets and makers' notes that no rewriting survives. Only
what would be wrong is changed in place: orientation that was applied, and previews, which show the unprotected picture.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from PIL import ExifTags, Image, PngImagePlugin, TiffImagePlugin

from mmguard.data.images import opened

Container = Literal["PNG", "WEBP", "JPEG"]
"""Formats of a release, as Pillow calls them."""

_PLUS = "http://ns.useplus.org/ldf/xmp/1.0/"
_PROHIBITED = "http://ns.useplus.org/ldf/vocab/DMI-PROHIBITED-AIMLTRAINING"
_TDM = "http://www.w3.org/ns/tdmrep/"
_EMPTY_XMP = (
    b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/">\n<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">\n'
    b'</rdf:RDF>\n</x:xmpmeta>\n<?xpacket end="w"?>'
)
_RDF_END = re.compile(rb"</(\w+):RDF>")

_IPTC_NAA, _XMP_RESOURCE = 33723, "XML:com.adobe.xmp"
_MARKER = 65_533
"""Most bytes in one segment of a JPEG file."""
_COLOUR_CHUNKS = (b"cHRM", b"cICP", b"gAMA", b"sRGB")
_READ_CHUNKS = (*_COLOUR_CHUNKS, b"iCCP", b"eXIf", b"tEXt", b"zTXt", b"iTXt", b"pHYs", b"tRNS", b"acTL", b"fcTL")
_DESCRIPTIVE = {
    270: "ImageDescription", 271: "Make", 272: "Model", 282: "XResolution", 283: "YResolution", 296: "ResolutionUnit",
    305: "Software", 306: "DateTime", 315: "Artist", 316: "HostComputer", 33432: "Copyright", 40091: "XPTitle",
    40092: "XPComment", 40093: "XPAuthor", 40094: "XPKeywords", 40095: "XPSubject",
}  # fmt: skip
"""Tags of a TIFF file that say something of the picture, not of how the file stores it."""
_EXIF_TEXTS = (270, 40091, 40092, 40094, 40095)
_IPTC_TEXTS = {5: "title", 25: "keywords", 105: "headline", 120: "caption"}
_XMP_TEXTS = ("dc:title", "dc:description", "dc:subject", "photoshop:Headline", "AltTextAccessibility")
_TEXTS_OF_TOOLS = {"software", "creation time", "date:create", "date:modify", "date:timestamp", "author", "copyright"}


@dataclass(frozen=True)
class Metadata:
    """Everything in an image file that is no pixel and that people or programs may look for."""

    exif: bytes = b""
    """A TIFF structure, without the `Exif` header of JPEG."""
    xmp: bytes = b""
    iptc: bytes = b""
    """IPTC-IIM data sets."""
    icc: bytes = b""
    """Colour profile."""
    dpi: tuple[float, float] | None = None
    """Resolution, horizontal and vertical."""
    text: tuple[tuple[str, str], ...] = ()
    """Text fields of a PNG file; the comment of other files."""
    colour: tuple[tuple[bytes, bytes], ...] = ()
    """Chunks of a PNG file that say how its numbers are to be shown."""

    @property
    def captions(self) -> list[str]:
        """Names of the fields that may describe the picture in words."""
        return [*_exif_texts(self.exif), *_iptc_texts(self.iptc), *_xmp_texts(self.xmp)] + [
            name for name, value in self.text if value.strip() and name.lower() not in _TEXTS_OF_TOOLS
        ]

    @property
    def has_position(self) -> bool:
        """Whether EXIF says where the picture was taken."""
        return bool(_exif(self.exif).get_ifd(ExifTags.IFD.GPSInfo))


def read_metadata(path: Path) -> tuple[Metadata, list[str]]:
    """Reads what a file says beside its pixels.

    Returns:
        The metadata as it stands in the file, and notes on what of it can never be carried over.
    """
    try:
        with opened(path) as file:
            return _read(file, path)
    # Pixels are fine where this is called. Pillow raises half a dozen kinds of errors on other bad bytes.
    except Exception as error:
        return Metadata(), [f"metadata cannot be read and was left out ({type(error).__name__})"]


def settled(metadata: Metadata, orientation: int) -> tuple[Metadata, list[str]]:
    """Makes metadata true of released pixels: without previews of the original, and upright.

    Args:
        metadata: as it stands in the original.
        orientation: the EXIF orientation that was applied to the released pixels; 1 if none was.

    Returns:
        The metadata, and notes on what was left out.
    """
    notes: list[str] = []
    try:
        exif, previews = _settled_exif(metadata.exif, orientation) if metadata.exif else (b"", False)
        _exif_texts(exif)  # what Pillow cannot parse, others need not find
    except Exception:  # as in `read_metadata`
        exif, previews = b"", False
        notes.append("EXIF is damaged and was left out")
    xmp, count = re.subn(rb"<(\w+):Thumbnails\b.*?</\1:Thumbnails>", b"", metadata.xmp, flags=re.S)
    if xmp and not (_is_utf8(xmp) and _RDF_END.search(xmp)):
        xmp = b""
        notes.append("XMP is damaged or empty and was left out")
    if previews or count:
        notes.append("preview of the unprotected picture in its metadata was removed")
    if orientation != 1:
        xmp = re.sub(rb"(tiff:Orientation(?:\s*=\s*[\"']|>))\d", rb"\g<1>1", xmp)
    dpi = metadata.dpi
    if orientation >= 5:
        sides = {b"X": b"Y", b"Y": b"X", b"Width": b"Length", b"Length": b"Width"}
        xmp = re.sub(rb"(exif:Pixel)([XY])(?=Dimension)", lambda m: m[1] + sides[m[2]], xmp)
        xmp = re.sub(rb"(tiff:Image)(Width|Length)\b", lambda m: m[1] + sides[m[2]], xmp)
        dpi = (dpi[1], dpi[0]) if dpi else None
    return replace(metadata, exif=exif, xmp=xmp, dpi=dpi), notes


def fitted(metadata: Metadata, container: Container, gray: bool) -> tuple[Metadata, list[str]]:
    """What of metadata a file of a given format can hold.

    Args:
        metadata: as it should be.
        container: the format.
        gray: whether the file holds gray levels instead of colours.

    Returns:
        The metadata as it will be read back, and notes on what was left out.
    """
    kept, lost = metadata, list[str]()

    def drop(name: str, what: str, left: Any = None) -> None:
        nonlocal kept
        if getattr(kept, name):
            kept = replace(kept, **{name: left or getattr(Metadata(), name)})
            lost.append(f"{what} left out: {container} holds none")

    if metadata.icc and metadata.icc[16:20] != (b"GRAY" if gray else b"RGB "):
        kept = replace(kept, icc=b"")
        lost.append("ICC profile left out: it is of another colour space than the released file")
    if container == "PNG":
        if kept.icc:  # PNG allows one of the two
            kept = replace(kept, colour=tuple(chunk for chunk in kept.colour if chunk[0] != b"sRGB"))
    else:
        drop("colour", "colour chunks of PNG (gAMA, cHRM, sRGB, cICP)")
    if container == "WEBP":
        drop("iptc", "IPTC")
        drop("text", "text fields and comments")
        drop("dpi", "resolution outside EXIF")
    if container == "JPEG":
        comment = tuple(item for item in metadata.text if item[0] == "Comment")
        if comment != metadata.text:
            drop("text", "text fields", comment)
        for name, header in (("exif", 6), ("xmp", 29), ("iptc", 28)):
            if len(getattr(metadata, name)) > _MARKER - header:
                drop(name, f"{name.upper()} of more than 64 kB")
    return kept, lost


def declared(metadata: Metadata) -> Metadata:
    """Adds a prohibition of training to the XMP packet: PLUS data mining, as in the IPTC standard, and TDMRep.

    Args:
        metadata: as `settled` made it; another declaration in it is replaced.

    References: IPTC Photo Metadata Standard 2023.1, "Data Mining"; TDM Reservation Protocol, W3C community group, 2024.
    """
    xmp = metadata.xmp or _EMPTY_XMP
    for name in (b"plus:DataMining", b"tdm:reservation"):
        attribute, element = rb"\s%b\s*=\s*(\"[^\"]*\"|'[^']*')" % name, rb"<%b\b[^>]*(/>|>.*?</%b>)" % (name, name)
        xmp = re.sub(attribute + b"|" + element, b"", xmp, flags=re.S)
    end = _RDF_END.search(xmp)
    assert end is not None
    rdf = end[1].decode()
    declaration = (
        f'<{rdf}:Description {rdf}:about="" xmlns:plus="{_PLUS}" xmlns:tdm="{_TDM}" '
        f'plus:DataMining="{_PROHIBITED}" tdm:reservation="1"/>\n'
    )
    return replace(metadata, xmp=xmp[: end.start()] + declaration.encode() + xmp[end.start() :])


def save_options(metadata: Metadata, container: Container) -> dict[str, Any]:
    """Arguments of Pillow's `save` that write metadata, which `fitted` made fit.

    Nothing else is to be written with them: Pillow adds nothing of its own.
    """
    options: dict[str, Any] = {"exif": metadata.exif, "icc_profile": metadata.icc}
    if container == "WEBP":
        return options | {"xmp": metadata.xmp}
    if metadata.dpi:
        options["dpi"] = metadata.dpi
    if container == "JPEG":
        options["exif"] = b"Exif\0\0" + metadata.exif if metadata.exif else b""
        options["xmp"] = metadata.xmp
        options["comment"] = dict(metadata.text).get("Comment", "").encode()
        options["extra"] = _photoshop_segment(metadata.iptc) if metadata.iptc else b""
        return options
    png = PngImagePlugin.PngInfo()
    for name, data in metadata.colour:
        png.add(name, data)
    for key, value in metadata.text:
        png.add_text(key, value)
    if metadata.xmp:
        png.add_itxt(_XMP_RESOURCE, metadata.xmp.decode())
    if metadata.iptc:  # as ImageMagick and ExifTool write it
        digits = re.sub("(.{72})", "\\1\n", metadata.iptc.hex())
        png.add_text("Raw profile type iptc", f"\niptc\n{len(metadata.iptc):8}\n{digits}\n", zip=True)
    return options | {"pnginfo": png}


def differences(expected: Metadata, found: Metadata) -> list[str]:
    """Names of the parts in which two metadata differ; resolutions are stored as whole numbers of either unit."""
    names = [
        name for name in ("exif", "xmp", "iptc", "icc", "colour") if getattr(expected, name) != getattr(found, name)
    ]
    if dict(expected.text) != dict(found.text):
        names.append("text")
    pairs = zip(expected.dpi or (0.0, 0.0), found.dpi or (0.0, 0.0), strict=True)
    if any(abs(a - b) > 0.51 for a, b in pairs):
        names.append("dpi")
    return names


def _read(file: Image.Image, path: Path) -> tuple[Metadata, list[str]]:
    if file.format == "PNG":
        file.load()  # text may stand behind the pixels
    info, notes = file.info, []
    text = {str(name): value for name, value in getattr(file, "text", {}).items()}
    profiles = {name: _raw_profile(text.pop(f"Raw profile type {name}", "")) for name in ("exif", "iptc", "xmp")}
    for name in [name for name in text if name.startswith("Raw profile type ")]:
        # Such as resources of Photoshop, or EXIF under another name: both hold previews of the unprotected picture.
        del text[name]
        notes.append(f"{name.removeprefix('Raw ')} of the PNG file was left out")
    xmp = info.get("xmp") or text.get(_XMP_RESOURCE) or profiles["xmp"]
    text.pop(_XMP_RESOURCE, None)
    if comment := info.get("comment") if file.format != "PNG" else None:
        text["Comment"] = comment.decode("utf-8", "replace") if isinstance(comment, bytes) else str(comment)
    if file.format == "TIFF":
        exif = _exif_of_tiff(file)
    else:
        exif = (info.get("exif") or profiles["exif"]).removeprefix(b"Exif\0\0")
    iptc = info.get("photoshop", {}).get(0x0404) or _iptc_of_tiff(file) or _iptc_of_photoshop(profiles["iptc"])
    dpi = info.get("dpi")
    if file.format in ("JPEG", "MPO") and info.get("jfif_unit") not in (1, 2):
        dpi = None  # which Pillow took from EXIF, where it stays
    chunks = list(_chunks(path)) if file.format == "PNG" else []
    notes += [*_left_segments(file), *_left_chunks(chunks)]
    metadata = Metadata(
        exif=exif,
        xmp=xmp.encode() if isinstance(xmp, str) else bytes(xmp),
        iptc=bytes(iptc),
        icc=info.get("icc_profile") or b"",
        dpi=(float(dpi[0]), float(dpi[1])) if dpi and all(value > 0 for value in dpi) else None,
        text=tuple(text.items()),
        colour=tuple(sorted(chunk for chunk in chunks if chunk[0] in _COLOUR_CHUNKS)),
    )
    return metadata, notes


def _settled_exif(exif: bytes, orientation: int) -> tuple[bytes, bool]:
    """EXIF with orientation 1 if one was applied, and whether previews were in it, which are blanked."""
    block = bytearray(exif)
    order = {b"II": "<", b"MM": ">"}[exif[:2]]
    tags, following = _directory(block, order, struct.unpack_from(order + "I", block, 4)[0])
    if orientation != 1 and 0x0112 in tags:
        _put(block, order, tags[0x0112], 1)
    if orientation >= 5:
        _swap(block, tags, 0x0100, 0x0101)
        _swap(block, tags, 0x011A, 0x011B)
        if 0x8769 in tags:
            details, _ = _directory(block, order, struct.unpack_from(order + "I", block, tags[0x8769] + 8)[0])
            _swap(block, details, 0xA002, 0xA003)
    (preview,) = struct.unpack_from(order + "I", block, following)
    if preview:
        inside, _ = _directory(block, order, preview)
        for start, size in ((0x0201, 0x0202), (0x0111, 0x0117)):  # as JPEG, and as a single strip
            if start in inside and size in inside:
                begin, length = (struct.unpack_from(order + "I", block, inside[tag] + 8)[0] for tag in (start, size))
                block[begin : begin + length] = bytes(len(block[begin : begin + length]))
        struct.pack_into(order + "I", block, following, 0)
    # Makers' notes hold larger previews, each maker in its own way, but all as JPEG.
    blanked = re.sub(
        rb"\xff\xd8\xff[\xc0\xc4\xdb\xe0\xe1\xfe].*?\xff\xd9", lambda m: bytes(len(m[0])), block, flags=re.S
    )
    return bytes(blanked), bool(preview) or blanked != block


def _directory(block: bytearray, order: str, start: int) -> tuple[dict[int, int], int]:
    """Where the entry of each tag of a directory stands, and where the offset of the next directory does."""
    (count,) = struct.unpack_from(order + "H", block, start)
    places = [start + 2 + 12 * number for number in range(count)]
    return {struct.unpack_from(order + "H", block, place)[0]: place for place in places}, start + 2 + 12 * count


def _put(block: bytearray, order: str, entry: int, value: int) -> None:
    (kind,) = struct.unpack_from(order + "H", block, entry + 2)
    struct.pack_into(order + {1: "B", 3: "H", 4: "I"}[kind], block, entry + 8, value)


def _swap(block: bytearray, tags: dict[int, int], one: int, other: int) -> None:
    """Exchanges type, count and value of two entries."""
    if one in tags and other in tags:
        a, b = (slice(tags[tag] + 2, tags[tag] + 12) for tag in (one, other))
        block[a], block[b] = block[b], block[a]


def _exif(exif: bytes) -> Image.Exif:
    parsed = Image.Exif()
    if exif:
        parsed.load(b"Exif\0\0" + exif)
    return parsed


def _exif_texts(exif: bytes) -> list[str]:
    parsed = _exif(exif)
    names = [f"EXIF {_DESCRIPTIVE[tag]}" for tag in _EXIF_TEXTS if parsed.get(tag)]
    # The first 8 bytes of a comment name its encoding.
    comment = parsed.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment, b"")
    return [*names, "EXIF UserComment"] if len(comment) > 8 and comment[8:].strip(b" \0") else names


def _iptc_texts(iptc: bytes) -> list[str]:
    names, place = [], 0
    while iptc[place : place + 1] == b"\x1c" and place + 5 <= len(iptc):
        record, number, size = struct.unpack_from(">BBH", iptc, place + 1)
        if record == 2 and number in _IPTC_TEXTS and size:
            names.append(f"IPTC {_IPTC_TEXTS[number]}")
        place += 5 + size
    return list(dict.fromkeys(names))


def _xmp_texts(xmp: bytes) -> list[str]:
    return [f"XMP {name}" for name in _XMP_TEXTS if name.encode() in xmp]


def _exif_of_tiff(file: Image.Image) -> bytes:
    """A TIFF file is its own EXIF: what in it describes the picture, as a block of its own."""
    whole, part = file.getexif(), Image.Exif()
    for tag in (tag for tag in _DESCRIPTIVE if tag in whole):
        part[tag] = whole[tag]
    for group in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
        if entries := whole.get_ifd(group):
            part[group] = dict(entries)
    return part.tobytes().removeprefix(b"Exif\0\0") if len(part) else b""


def _iptc_of_tiff(file: Image.Image) -> bytes:
    if not isinstance(file, TiffImagePlugin.TiffImageFile):
        return b""
    value = file.tag_v2.get(_IPTC_NAA, b"")
    if isinstance(value, tuple):  # some writers say that it is made of 32-bit numbers
        value = struct.pack(f"{file.tag_v2.prefix.decode().replace('II', '<').replace('MM', '>')}{len(value)}I", *value)
    return bytes(value)


def _left_segments(file: Image.Image) -> list[str]:
    """Notes on application segments of a JPEG file that nothing here reads."""
    known = (
        b"Exif\0",
        b"http://ns.adobe.com/xap/1.0/\0",
        b"ICC_PROFILE\0",
        b"JFIF\0",
        b"Photoshop",
        b"Adobe",
        b"MPF\0",
    )
    others = {name for name, data in getattr(file, "applist", []) if name != "COM" and not data.startswith(known)}
    notes = [f"segment {name} of the JPEG file was left out" for name in sorted(others)]
    if set(file.info.get("photoshop", {})) - {0x0404}:
        notes.append("resources of Photoshop other than IPTC were left out")
    if file.format == "MPO":
        notes.append("further pictures in the JPEG file (preview or depth map) were left out")
    return notes


def _raw_profile(text: str) -> bytes:
    """The bytes of a PNG text field in ImageMagick's form: name, length, hexadecimal digits."""
    try:
        return bytes.fromhex("".join(text.split()[2:]))
    except ValueError:
        return b""


def _iptc_of_photoshop(data: bytes) -> bytes:
    """ImageMagick wraps IPTC into Photoshop's resource; others do not."""
    place = data.find(b"8BIM\x04\x04\0\0")
    if data.startswith(b"\x1c") or place < 0:
        return data
    (size,) = struct.unpack_from(">I", data, place + 8)
    return data[place + 12 : place + 12 + size]


def _chunks(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Names and contents of the chunks of a PNG file, those of its pixels aside."""
    with path.open("rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8 and head[4:] != b"IEND":
            size = int.from_bytes(head[:4], "big")
            if head[4:] in (b"IHDR", b"PLTE", b"IDAT"):
                file.seek(size, os.SEEK_CUR)
            else:
                yield head[4:], file.read(size)
            file.seek(4, os.SEEK_CUR)


def _left_chunks(chunks: Iterable[tuple[bytes, bytes]]) -> list[str]:
    others = {name.decode("ascii", "replace") for name, _ in chunks if name not in _READ_CHUNKS}
    return [f"chunk {name} of the PNG file was left out" for name in sorted(others)]


def _photoshop_segment(iptc: bytes) -> bytes:
    """IPTC as Photoshop's resource 0x0404 in the segment of a JPEG file where everybody looks for it."""
    data = b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0" + struct.pack(">I", len(iptc)) + iptc + b"\0" * (len(iptc) % 2)
    return b"\xff\xed" + struct.pack(">H", len(data) + 2) + data


def exif_of(orientation: int) -> bytes:
    """EXIF that says nothing but how stored pixels are to be turned."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif.tobytes().removeprefix(b"Exif\0\0")


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
