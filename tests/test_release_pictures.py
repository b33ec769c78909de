"""Odd pictures through a whole release: what they say and hold besides their colours comes back unharmed."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import odd_pictures
from mmguard.auditing.arms import pair
from mmguard.config import IMAGE_FORMATS, ProtectConfig
from mmguard.data.images import load_picture
from mmguard.data.metadata import read_metadata
from mmguard.data.readers import read_dataset
from mmguard.errors import BudgetError
from mmguard.perturb.budget import ImageBudget, apply, is_gray
from mmguard.release.verify import verify
from mmguard.release.writer import Release, ReleaseWriter
from odd_pictures import Odd

EPS = 6
ODD = {odd.name: odd for odd in odd_pictures.odd_pictures()}


@dataclass(frozen=True)
class Made:
    """A release of all odd pictures."""

    data: Path
    release: Release
    pairs: dict[str, tuple[Path, Path]]
    """Original and released file by the original's name."""


def protected(path: Path, eps: int = EPS) -> torch.Tensor:
    """A picture with as much noise as its budget allows."""
    one = load_picture(path)
    generator = torch.Generator().manual_seed(len(path.name))
    return apply(one.image, ImageBudget(eps, one.alpha).random_signs(one.image, generator))


def released(data: Path, out: Path, config: ProtectConfig) -> Release:
    dataset = read_dataset(data)
    writer = ReleaseWriter(out, dataset, config, [])
    for image in dataset.by_image():
        writer.write_image(image, protected(image, config.eps))
    return writer.finish({}, [])


def described(folder: Path) -> Path:
    rows = [{"file_name": path.name, "caption": "odd"} for path in sorted(folder.iterdir())]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("odd")
    for odd in ODD.values():
        odd.write(folder)
    return described(folder)


@pytest.fixture(scope="module", params=IMAGE_FORMATS)
def made(request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    config = ProtectConfig(eps=EPS, format=request.param)
    release = released(data, tmp_path_factory.mktemp(request.param) / "out", config)
    record = json.loads((release.record / "record.json").read_text())
    pairs = {one["original"]: (data / one["original"], release.path / one["released"]) for one in record["images"]}
    return Made(data, release, pairs)


def test_there_are_enough_odd_pictures() -> None:
    assert len(ODD) >= 40
    assert {odd.orientation for odd in ODD.values()} == set(range(1, 9))


def test_every_odd_picture_is_released_within_its_budget_and_verifies(made: Made) -> None:
    result = verify(made.release.path, made.data)
    assert result.problems == []
    assert result.images == len(ODD)
    assert EPS - 1 <= result.max_eps <= EPS


def test_an_audit_pairs_every_picture_whatever_its_format(made: Made) -> None:
    pairing = pair(read_dataset(made.release.path), read_dataset(made.data))
    assert len(pairing.pairs) == len(ODD)
    assert pairing.rejected == []


def test_pictures_get_the_format_that_was_asked_for(made: Made) -> None:
    wanted = made.release.config.format
    for name, (before, after) in made.pairs.items():
        with Image.open(before) as one, Image.open(after) as other:
            original, now, transparent = one.format, other.format, one.has_transparency_data
        best = {"png": "PNG", "webp": "WEBP", "jpeg": "JPEG"}.get(wanted, original)
        assert now == ("PNG" if best not in ("PNG", "WEBP", "JPEG") or (best == "JPEG" and transparent) else best), name
        assert after.suffix == (before.suffix if now == original else {"JPEG": ".jpg"}.get(now, f".{now.lower()}"))


def test_opacity_gray_and_depth_stay(made: Made) -> None:
    for name, (before, after) in made.pairs.items():
        one, other = load_picture(before), load_picture(after)
        opaque = torch.full(one.image.shape[1:], 255, dtype=torch.uint8)
        assert torch.equal(opaque if one.alpha is None else one.alpha, opaque if other.alpha is None else other.alpha)
        assert is_gray(one.image) == is_gray(other.image), name
        with Image.open(after) as file:
            if file.format != "WEBP" and ODD[name].kind.split()[0] in ("1", "L", "LA"):
                assert file.mode in ("L", "LA"), name
            if file.format == "PNG" and ODD[name].kind == "I;16":
                assert file.mode == "I;16"
                assert torch.equal(one.deep % 256, other.deep % 256)


def test_what_a_picture_says_stays_as_pillow_reads_it(made: Made) -> None:
    for name, (before, after) in made.pairs.items():
        found = said(after, after)
        if ODD[name].suffix == "tif":
            found["exif"].pop(0x0112, None)  # Pillow takes it from XMP
        assert found == expected(ODD[name], before, after), name


def said(path: Path, released: Path) -> dict[str, Any]:
    """What Pillow reads besides pixels, as far as the released file's format can hold it."""
    with Image.open(path) as file:
        kind, info = file.format, file.info
        if kind == "PNG":
            file.load()  # what stands behind the pixels
        exif = file.getexif()
        tags = {tag: str(exif[tag]) for tag in exif if tag in (0x010E, 0x010F, 0x0112, 0x013B, 0x8298)}
        for group in (0x8769, 0x8825):
            tags |= {(group, tag): str(value) for tag, value in exif.get_ifd(group).items()}
        iptc = info.get("photoshop", {}).get(0x0404, b"")
        if kind == "TIFF":
            iptc = file.tag_v2.get(33723, b"")
        elif "Raw profile type iptc" in info:
            iptc = bytes.fromhex("".join(info["Raw profile type iptc"].split()[2:]))
        xmp, dpi = info.get("xmp", b""), info.get("dpi")
        if kind == "JPEG" and info.get("jfif_unit") not in (1, 2):
            dpi = None  # Pillow repeats what EXIF says
    now = released.suffix
    return {
        "exif": tags,
        "xmp": xmp.encode() if isinstance(xmp, str) else xmp,
        "iptc": b"" if now == ".webp" else bytes(iptc),
        "icc": info.get("icc_profile", b""),
        "dpi": None if now == ".webp" or not dpi else tuple(round(value) for value in dpi),
    }


def expected(odd: Odd, before: Path, after: Path) -> dict[str, Any]:
    """What a release of a picture should say: it is upright, and its profile is of its colours."""
    found = said(before, after)
    tags, turned = found["exif"], odd.orientation
    if odd.suffix == "tif":
        del tags[0x0112]  # which is about the TIFF file, and goes with it
    if after.suffix == ".jpg" and odd.suffix == "jpg":
        turned = 1  # it stays as it lies
    elif 0x0112 in tags:
        tags[0x0112] = "1"
    if turned >= 5 and (0x8769, 0xA002) in tags:
        tags[0x8769, 0xA002], tags[0x8769, 0xA003] = tags[0x8769, 0xA003], tags[0x8769, 0xA002]
    if turned != 1:
        found["xmp"] = found["xmp"].replace(b'Orientation="%d"' % turned, b'Orientation="1"')
    with Image.open(after) as file:
        gray = file.mode in ("L", "LA", "I;16")
    if found["icc"][16:20] != (b"GRAY" if gray else b"RGB "):
        found["icc"] = b""
    return found


@pytest.mark.slow
def test_what_a_picture_says_stays_as_exiftool_reads_it(made: Made) -> None:
    if shutil.which("exiftool") is None:
        pytest.skip("no exiftool: apt-get install libimage-exiftool-perl")
    befores, afters = (read_by_exiftool([pair[side] for pair in made.pairs.values()]) for side in (0, 1))
    for name, (before, after) in made.pairs.items():
        odd, now = ODD[name], after.suffix
        want, found = befores[before], afters[after]
        turned = 1 if now == ".jpg" and odd.suffix == "jpg" else odd.orientation
        for tag in ("IFD0:Orientation", "XMP-tiff:Orientation"):
            if tag in want and turned != 1:
                want[tag] = 1
        if odd.suffix == "tif":
            want = {tag: value for tag, value in want.items() if tag not in TIFF_ONLY}
            found.pop("IFD0:Orientation", None)
        if turned >= 5 and "ExifIFD:ExifImageWidth" in want:
            sides = ("ExifIFD:ExifImageWidth", "ExifIFD:ExifImageHeight")
            want |= dict(zip(sides, (want[side] for side in reversed(sides)), strict=True))
        if now == ".webp":
            want = {tag: value for tag, value in want.items() if not tag.startswith("IPTC")}
        if not read_metadata(after)[0].icc:  # left out with a note, which other tests look at
            want = {tag: value for tag, value in want.items() if not tag.startswith("ICC")}
        assert found == want, name
    assert sum(map(len, afters.values())) > 20 * len(ODD)


TIFF_ONLY = {
    f"IFD0:{tag}"
    for tag in (
        "ImageWidth", "ImageHeight", "BitsPerSample", "Compression", "PhotometricInterpretation", "StripOffsets",
        "Orientation", "SamplesPerPixel", "RowsPerStrip", "StripByteCounts", "PlanarConfiguration", "ExtraSamples",
        "ColorMap", "YCbCrSubSampling", "ReferenceBlackWhite", "YCbCrCoefficients", "SampleFormat",
        "YCbCrPositioning",
    )
}  # fmt: skip


def read_by_exiftool(paths: list[Path]) -> dict[Path, dict[str, Any]]:
    """EXIF, XMP, IPTC and colour profiles, by tag with its group."""
    call = ["exiftool", "-j", "-n", "-a", "-G1", "-EXIF:all", "-XMP:all", "-IPTC:all", "-ICC_Profile:all"]
    done = subprocess.run([*call, *map(str, paths)], capture_output=True, text=True, check=True)
    return {Path(one.pop("SourceFile")): one for one in json.loads(done.stdout)}


def test_pictures_declare_that_training_is_prohibited(data: Path, tmp_path: Path) -> None:
    config = ProtectConfig(eps=EPS, format="keep", declare_no_training=True)
    release = released(data, tmp_path / "out", config)
    assert verify(release.path, data).ok
    for path in release.path.iterdir():
        if path.suffix in (".png", ".jpg", ".webp"):
            assert b"DMI-PROHIBITED-AIMLTRAINING" in read_metadata(path)[0].xmp, path
    if shutil.which("exiftool"):
        done = subprocess.run(["exiftool", "-j", "-n", "-XMP-plus:all", str(release.path)], capture_output=True)
        values = [one["DataMining"] for one in json.loads(done.stdout) if "DataMining" in one]
        assert values == ["http://ns.useplus.org/ldf/vocab/DMI-PROHIBITED-AIMLTRAINING"] * len(ODD)


def test_pictures_inside_data_files_keep_their_formats_and_names(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    files = [path for path in data.iterdir() if path.suffix in (".jpg", ".png", ".webp")]
    (tmp_path / "tar").mkdir()
    with tarfile.open(tmp_path / "tar" / "0.tar", "w") as tar:
        for path in files:
            tar.add(path, path.name)
            caption = tarfile.TarInfo(f"{path.stem}.txt")
            caption.size = 3
            tar.addfile(caption, io.BytesIO(b"odd"))
    cells = [{"bytes": path.read_bytes(), "path": path.name} for path in files]
    (tmp_path / "parquet").mkdir()
    pq.write_table(pa.table({"image": cells, "caption": ["odd"] * len(cells)}), tmp_path / "parquet" / "0.parquet")
    for kind in ("tar", "parquet"):
        release = released(tmp_path / kind, tmp_path / f"{kind}-out", ProtectConfig(eps=EPS, format="keep"))
        assert verify(release.path, tmp_path / kind).problems == []
        assert release.pictures["formats"] == {
            name: sum(path.suffix == suffix for path in files)
            for name, suffix in (("JPEG", ".jpg"), ("PNG", ".png"), ("WEBP", ".webp"))
        }
        pairs = pair(read_dataset(release.path), read_dataset(tmp_path / kind)).pairs
        assert sorted(ours.image.name for _, ours in pairs) == sorted(path.name for path in files)


def unchanged(data: Path, out: Path, config: ProtectConfig) -> Path:
    """A release of pictures as they are, in which nothing but that is wrong."""
    writer = ReleaseWriter(out, dataset := read_dataset(data), config, [])
    for image in dataset.by_image():
        writer.write_image(image, load_picture(image).image)
    release = writer.finish({}, []).path
    (problem,) = verify(release, data).problems
    assert "no picture and no question differs from the original" in problem
    return release


def scans(path: Path) -> bytes:
    """The encoded pixels of a JPEG file: all behind the header of its first scan."""
    content = path.read_bytes()
    return content[content.index(b"\xff\xda") : content.rindex(b"\xff\xd9")]


@pytest.mark.parametrize("declare", [False, True])
def test_jpeg_pictures_that_stay_as_they_are_keep_their_encoded_pixels(
    data: Path, declare: bool, tmp_path: Path
) -> None:
    before = {path: path.read_bytes() for path in data.iterdir()}
    config = ProtectConfig(variant="text", format="keep", declare_no_training=declare)
    release = unchanged(data, tmp_path / "out", config)
    own = [odd for odd in ODD.values() if odd.suffix == "jpg" and odd.kind != "CMYK"]
    for odd in own:
        released = release / odd.name
        assert scans(released) == scans(data / odd.name)
        assert (b"DMI-PROHIBITED-AIMLTRAINING" in read_metadata(released)[0].xmp) == declare
        assert not released.samefile(data / odd.name)
    assert len(own) > 5
    assert {path: path.read_bytes() for path in data.iterdir()} == before


def test_what_else_lies_in_a_jpeg_file_is_left_out_where_its_pixels_stay(tmp_path: Path) -> None:
    """A second comment, a segment of a maker, an Exif preview, and what phones put behind the picture."""
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "a.jpg"
    exif = Image.Exif()
    exif[0x8769] = {0x927C: odd_pictures.PREVIEW}
    odd_pictures.picture("RGB").save(path, quality=70, progressive=True, comment="by the sea", exif=exif)
    content = path.read_bytes()
    secret = b"\xff\xed\0\x0aMaker\0\xff\xda" + b"\xff\xfe\0\x08secret"
    path.write_bytes(content[:2] + secret + content[2:] + b"a film \xff\xd9")
    config = ProtectConfig(variant="text", format="jpeg")
    found = (unchanged(described(tmp_path / "data"), tmp_path / "out", config) / "a.jpg").read_bytes()
    assert found.endswith(content[content.index(b"\xff\xc2") :])
    assert b"by the sea" in found
    for left in (b"secret", b"Maker", b"a picture in a picture", b"a film"):
        assert left not in found


def test_colours_that_the_metadata_decides_stay(tmp_path: Path) -> None:
    """RGB without conversion: with the segment that says so in place of ours, it would be read as YCbCr."""
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "a.jpg"
    odd_pictures.picture("RGB").save(path, quality=100, keep_rgb=True)
    release = unchanged(described(tmp_path / "data"), tmp_path / "out", ProtectConfig(variant="text", format="keep"))
    assert torch.equal(load_picture(next(release.glob("a.*"))).image, load_picture(path).image)


# What the owner is told


def test_the_record_counts_formats_bytes_and_notes(made: Made) -> None:
    record = json.loads((made.release.record / "record.json").read_text())
    summary = record["pictures"]
    assert summary == made.release.pictures
    assert sum(summary["formats"].values()) == len(ODD)
    assert summary["bytes"] == sum(after.stat().st_size for _, after in made.pairs.values())
    assert summary["original_bytes"] == sum(before.stat().st_size for before, _ in made.pairs.values())
    assert summary["notes"]["palette became RGB"] == sum(odd.kind.startswith("P") for odd in ODD.values())
    assert summary["notes"]["CMYK became RGB, without a colour profile to go by"] == 4
    assert summary["notes"]["its metadata says where it was taken (GPS)"] == sum(
        odd.suffix not in ("gif", "bmp") for odd in ODD.values()
    )


def test_lossless_is_the_default() -> None:
    assert ProtectConfig().format == "png"
    assert not ProtectConfig().declare_no_training


# What must not happen


def test_gray_must_stay_gray_and_what_is_transparent_must_stay(data: Path, tmp_path: Path) -> None:
    dataset = read_dataset(data)
    writer = ReleaseWriter(tmp_path / "out", dataset, ProtectConfig(eps=EPS), [])
    for kind in ("L", "RGBA"):
        path = next(data / name for name, odd in ODD.items() if (odd.suffix, odd.kind) == ("png", kind))
        image = load_picture(path).image.clone()
        image[0] = (image[0].int() - 2).clamp(min=0).byte()
        with pytest.raises(BudgetError, match="gray picture, or changes what is transparent"):
            writer.write_image(path, image)


def _stripped(path: Path) -> None:
    with Image.open(path) as file:
        plain = Image.frombytes(file.mode, file.size, file.tobytes())
    plain.save(path)


def _opaque(path: Path) -> None:
    with Image.open(path) as file:
        info, image = dict(file.info), file.convert("RGBA")
    image.putalpha(image.getchannel("A").point(lambda level: level or 1))
    image.save(path, **{name: info[name] for name in ("exif", "icc_profile", "dpi")})


def _beneath(path: Path) -> None:
    with Image.open(path) as file:
        image = file.convert("RGBA")
    pixels = image.load()
    pixels[0, image.height - 1 if pixels[0, 0][3] else 0] = (9, 99, 199, 0)
    image.save(path)


TAMPERINGS: list[tuple[str, str, Callable[[Path], None], str]] = [
    ("metadata", "RGB", _stripped, "its metadata is not the original's (exif, xmp, iptc, icc, colour, text, dpi)"),
    ("opacity", "RGBA", _opaque, "its opacity is not the original's"),
    ("colours beneath", "RGBA", _beneath, "the colours beneath its opacity differ by"),
]


@pytest.mark.parametrize(("kind", "tamper", "message"), [t[1:] for t in TAMPERINGS], ids=[t[0] for t in TAMPERINGS])
def test_verify_looks_at_all_of_it(kind: str, tamper: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    odd = next(odd for odd in ODD.values() if (odd.suffix, odd.kind) == ("png", kind) and odd.profile)
    replace(odd, orientation=1).write(tmp_path / "data")
    release = released(described(tmp_path / "data"), tmp_path / "out", ProtectConfig(eps=EPS))
    shutil.rmtree(release.record)
    assert verify(release.path, tmp_path / "data", eps=EPS).ok
    tamper(next(release.path.glob("*.png")))
    problems = verify(release.path, tmp_path / "data", eps=EPS).problems
    assert any(message in problem for problem in problems), problems


def test_verify_misses_a_declaration_that_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    Image.new("RGB", (8, 8), "red").save(tmp_path / "data" / "a.png")
    release = released(described(tmp_path / "data"), tmp_path / "out", ProtectConfig(eps=EPS, declare_no_training=True))
    path = release.path / "a.png"
    assert verify(release.path, tmp_path / "data").ok
    with Image.open(path) as file:
        file.convert("RGB").save(path)
    assert "a.png: its metadata is not the original's (xmp)" in verify(release.path, tmp_path / "data").problems


def test_low_bits_of_16_bit_pictures_are_looked_at(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    odd_pictures.picture("I;16").save(tmp_path / "data" / "a.png")
    release = released(described(tmp_path / "data"), tmp_path / "out", ProtectConfig(eps=EPS))
    shutil.rmtree(release.record)
    with Image.open(release.path / "a.png") as file:
        deep = file.point(lambda level: level * 1 + 1)
    deep.save(release.path / "a.png")
    (problem,) = verify(release.path, tmp_path / "data", eps=EPS + 1).problems
    assert problem == "a.png: its low bits are not those of the 16-bit original"
