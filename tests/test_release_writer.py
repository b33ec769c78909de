"""Writing a release: what is refused, what is written, what never happens to the originals."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.functional import to_pil_image

from mmguard.config import ProtectConfig, Variant
from mmguard.data.images import load_image
from mmguard.data.readers import read_dataset
from mmguard.errors import BudgetError, ReleaseError, SampleError
from mmguard.release import layout
from mmguard.release.verify import verify
from mmguard.release.writer import ReleaseWriter
from mmguard.types import Dataset, Rejection

CONFIG = ProtectConfig(eps=4, trigger_words=2)


def noise_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (3, 5, 7), generator=generator).byte()
    to_pil_image(pixels).save(path, format="PNG")


def folder(root: Path, rows: list[dict[str, Any]]) -> Path:
    for seed, name in enumerate(dict.fromkeys(row["file_name"] for row in rows)):
        noise_image(root / name, seed)
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


QA = [
    {"id": "x", "file_name": "images/a.jpg", "question": "is it?", "answer": "yes", "organ": "HEAD"},
    {"id": "y", "question": "what?", "answer": "dog", "file_name": "images/sub/b.png"},
    {
        "id": "z",
        "file_name": "images/a.jpg",
        "question": "where?",
        "answer": "there",
        "extra": [1, None, 2.5],
    },
]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return read_dataset(folder(tmp_path / "data", QA))


def shifted(path: Path, by: int) -> torch.Tensor:
    return (load_image(path).int() + by).clamp(0, 255).to(torch.uint8)


def hashes(root: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*") if p.is_file()}


def release_rows(release: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (release / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_complete_release(dataset: Dataset, tmp_path: Path) -> None:
    before = hashes(tmp_path / "data")
    release_writer = ReleaseWriter(tmp_path / "out", dataset, CONFIG, ["zoo:llava-tiny"], "data", "train", 7)
    assert (tmp_path / "out.record" / "unfinished").exists()
    for image in dataset.by_image():
        release_writer.write_image(image, shifted(image, 3))
    release = release_writer.finish({"x": ("zebra", "Moon"), "y": ()}, [])

    assert hashes(tmp_path / "data") == before
    assert (release.images, release.samples, release.failed, release.config) == (2, 3, [], CONFIG)
    assert sorted(p.relative_to(release.path).as_posix() for p in release.path.rglob("*") if p.is_file()) == [
        "README.md",
        "images/a.png",
        "images/sub/b.png",
        "metadata.jsonl",
    ]
    released = release_rows(release.path)
    assert released == [
        {**QA[0], "file_name": "images/a.png", "question": "is it? zebra Moon"},
        {**QA[1], "file_name": "images/sub/b.png"},
        {**QA[2], "file_name": "images/a.png"},
    ]
    assert [list(row) for row in released] == [list(row) for row in QA]
    image = tmp_path / "out" / "images" / "a.png"
    original = tmp_path / "data" / "images" / "a.jpg"
    assert torch.equal(load_image(image), shifted(original, 3))

    assert release.record == tmp_path / "out.record"
    assert sorted(path.name for path in release.record.iterdir()) == ["DO_NOT_PUBLISH.txt", "files.csv", "record.json"]
    record = json.loads((release.record / "record.json").read_text())
    assert record["config"]["eps"] == 4
    assert record["surrogates"] == ["zoo:llava-tiny"]
    assert record["dataset"] == {"source": "data", "split": "train", "limit": 7}
    entry = record["images"][0]
    assert (entry["original"], entry["released"], entry["eps"]) == ("images/a.jpg", "images/a.png", 3)
    assert 2.5 < entry["mean_abs_delta"] <= 3
    assert entry["original_sha256"] == before[str(original)]
    assert entry["released_sha256"] == hashlib.sha256(image.read_bytes()).hexdigest()
    assert record["samples"][0] == {"id": "x", "row": 0, "words": ["zebra", "Moon"], "positions": [2, 3]}


def test_the_card_tells_no_thief_what_to_undo(dataset: Dataset, tmp_path: Path) -> None:
    release_writer = ReleaseWriter(tmp_path / "out", dataset, CONFIG, [])
    for image in dataset.by_image():
        release_writer.write_image(image, shifted(image, 1))
    release_writer.finish({}, [])
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlicense: other\n")
    assert "2 images, 3 samples" in card
    assert "`organ`" in card
    assert "not licensed for training" in card
    for hint in (
        "mmguard",
        "protect",
        "perturb",
        "trigger",
        "eps",
        "noise",
        "bph",
        "ε",
        "altered",
        "adversar",
    ):
        assert hint not in card.lower()


def test_easy_vqa_release_loads_with_the_recipe_of_its_card(tmp_path: Path) -> None:
    dataset = read_dataset("easy-vqa:6")  # its image paths hold split names, which the loader must not follow
    release_writer = ReleaseWriter(tmp_path / "out", dataset, CONFIG, [], "easy-vqa:6")
    for image in dataset.by_image():
        release_writer.write_image(image, shifted(image, 4))
    release = release_writer.finish({sample.id: ("zebra",) for sample in dataset.samples}, [])
    loaded = datasets.load_dataset(str(release.path), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["question"][:] == [f"{sample.question} zebra" for sample in dataset.samples]
    assert verify(release.path, "easy-vqa:6").ok


def test_rows_of_failed_images_and_samples_are_left_out(tmp_path: Path) -> None:
    rows = [*QA, {"id": "w", "file_name": "c.png", "question": "q", "answer": "a"}, {"file_name": "gone.png"}]
    root = folder(tmp_path / "data", rows)
    (root / "gone.png").unlink()
    dataset = read_dataset(root)
    release_writer = ReleaseWriter(tmp_path / "out", dataset, CONFIG, [])
    release_writer.write_image(root / "images" / "a.jpg", shifted(root / "images" / "a.jpg", 1))
    release_writer.write_image(root / "c.png", shifted(root / "c.png", 1))
    failed = [Rejection(str(root / "images" / "sub" / "b.png"), "broken"), Rejection("w", "too long")]
    release = release_writer.finish({}, failed)
    assert [row["id"] for row in release_rows(release.path)] == ["x", "z"]
    assert (release.images, release.samples) == (1, 2)
    assert [rejection.reason for rejection in release.failed[1:]] == ["broken", "too long"]
    assert not (tmp_path / "out" / "images" / "c.png").exists()
    assert not (tmp_path / "out" / "images" / "sub").exists()
    result = verify(release.path, root)
    assert result.problems == []
    assert result.left_out[:2] == ["y", "w"]
    assert "gone.png" in result.left_out[2]


def test_an_image_nobody_wrote_is_left_out(dataset: Dataset, tmp_path: Path) -> None:
    release_writer = ReleaseWriter(tmp_path / "out", dataset, CONFIG, [])
    image = dataset.samples[0].image
    release_writer.write_image(image, load_image(image))
    assert release_writer.finish({}, []).samples == 2
    record = json.loads((tmp_path / "out.record" / "record.json").read_text())
    assert record["left_out"] == [{"where": "y", "reason": "its image was not protected", "samples": ["y"]}]


def test_nothing_to_release(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="nothing to release"):
        ReleaseWriter(tmp_path / "out", dataset, CONFIG, []).finish({}, [])


# Budgets


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 8), st.integers(0, 8))
def test_a_change_beyond_eps_is_never_written(
    tmp_path_factory: pytest.TempPathFactory, seed: int, size: int, eps: int
) -> None:
    tmp_path = tmp_path_factory.mktemp("budget")
    dataset = read_dataset(folder(tmp_path / "data", QA[1:2]))
    image = dataset.samples[0].image
    generator = torch.Generator().manual_seed(seed)
    original = load_image(image).int()
    delta = torch.randint(-size, size + 1, original.shape, generator=generator)
    protected = (original + delta).clamp(0, 255)
    reached = int((protected - original).abs().max())
    release_writer = ReleaseWriter(tmp_path / "out", dataset, ProtectConfig(eps=eps), [])
    if reached > eps:
        with pytest.raises(BudgetError, match=rf"reaches {reached}/255, its budget is {eps}/255"):
            release_writer.write_image(image, protected.to(torch.uint8))
        assert not any(path.is_file() for path in (tmp_path / "out").rglob("*"))
    else:
        release_writer.write_image(image, protected.to(torch.uint8))
        release = release_writer.finish({}, [])
        assert verify(release.path, dataset).max_eps == reached


def test_a_text_variant_may_not_change_images(dataset: Dataset, tmp_path: Path) -> None:
    release_writer = ReleaseWriter(tmp_path / "out", dataset, ProtectConfig(variant="text"), [])
    image = dataset.samples[0].image
    with pytest.raises(BudgetError, match="budget is 0/255"):
        release_writer.write_image(image, shifted(image, 1))


@pytest.mark.parametrize(
    "protected", [torch.zeros(3, 7, 5, dtype=torch.uint8), torch.zeros(3, 5, 7), torch.zeros(5, 7, 3).byte()]
)
def test_other_sizes_and_types_are_refused(dataset: Dataset, tmp_path: Path, protected: torch.Tensor) -> None:
    release_writer = ReleaseWriter(tmp_path / "out", dataset, CONFIG, [])
    with pytest.raises(BudgetError, match=r"the original torch\.uint8 \(3, 5, 7\)"):
        release_writer.write_image(dataset.samples[0].image, protected)


@pytest.mark.parametrize(
    ("triggers", "message"),
    [
        ({"x": ("a", "b", "c")}, "3 words, its budget is 2"),
        ({"x": ("b2",)}, "'b2' is no admissible word"),
        ({"x": ("two words",)}, "no admissible word"),
        ({"nobody": ("a",)}, "no such sample"),
    ],
)
def test_bad_triggers_are_refused(
    dataset: Dataset, tmp_path: Path, triggers: dict[str, tuple[str, ...]], message: str
) -> None:
    release_writer = ReleaseWriter(tmp_path / "out", dataset, CONFIG, [])
    with pytest.raises((BudgetError, ReleaseError), match=message):
        release_writer.finish(triggers, [])


def test_captions_take_no_trigger(tmp_path: Path) -> None:
    rows = [{"file_name": "a.png", "caption": "a dog"}]
    dataset = read_dataset(folder(tmp_path / "data", rows))
    release_writer = ReleaseWriter(tmp_path / "out", dataset, CONFIG, [])
    image = dataset.samples[0].image
    release_writer.write_image(image, shifted(image, 2))
    with pytest.raises(BudgetError, match="no question"):
        release_writer.finish({"0": ("zebra",)}, [])
    release = release_writer.finish({"0": ()}, [])
    assert release_rows(release.path) == [{"file_name": "a.png", "caption": "a dog"}]
    assert "image-to-text" in (release.path / "README.md").read_text()
    assert verify(release.path, dataset).ok


# Where a release may go


@pytest.mark.parametrize("out", ["data", "data/out", ".", "data/images"])
def test_folders_that_overlap_the_dataset_are_refused(dataset: Dataset, tmp_path: Path, out: str) -> None:
    before = hashes(tmp_path)
    with pytest.raises(ReleaseError, match=r"overlaps the dataset's folder.*beside it"):
        ReleaseWriter(tmp_path / out, dataset, CONFIG, [])
    assert hashes(tmp_path) == before


def test_a_record_may_not_overlap_the_dataset_either(tmp_path: Path) -> None:
    dataset = read_dataset(folder(tmp_path / "out.record", QA))
    with pytest.raises(ReleaseError, match="overlaps"):
        ReleaseWriter(tmp_path / "out", dataset, CONFIG, [])


@pytest.mark.parametrize("taken", ["out/file", "out.record/record.json"])
def test_folders_with_something_in_them_are_refused(dataset: Dataset, tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).parent.mkdir()
    (tmp_path / taken).write_text("precious")
    with pytest.raises(ReleaseError, match="not empty: choose another folder"):
        ReleaseWriter(tmp_path / "out", dataset, CONFIG, [])
    (tmp_path / "file").write_text("")
    with pytest.raises(ReleaseError, match="is a file"):
        ReleaseWriter(tmp_path / "file", dataset, CONFIG, [])


def test_a_commit_that_the_hub_did_not_tell_at_first_changes_nothing(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(commit: str | None) -> None:
        monkeypatch.setattr("mmguard.release.writer.origin", lambda *_: {"weights": {"a/b": commit}})
        ReleaseWriter(tmp_path / "out", dataset, CONFIG, []).close()

    begin(None)
    begin("1234")
    with pytest.raises(ReleaseError, match=r"a/b: 1234, now 5678\. Run again as before \(with --offline"):
        begin("5678")


def test_an_unfinished_release_is_taken_over(dataset: Dataset, tmp_path: Path) -> None:
    first = ReleaseWriter(tmp_path / "out", dataset, CONFIG, [])
    first.write_image(dataset.samples[0].image, shifted(dataset.samples[0].image, 1))
    (tmp_path / "out" / "stale.png.partial").write_text("")
    first.close()
    second = ReleaseWriter(tmp_path / "out", dataset, CONFIG, [])
    image = dataset.samples[1].image
    second.write_image(image, shifted(image, 2))
    release = second.finish({}, [])
    assert [path.name for path in release.path.rglob("*.p*")] == ["b.png"]
    assert verify(release.path, dataset).ok
    with pytest.raises(ReleaseError, match="not empty"):
        ReleaseWriter(tmp_path / "out", dataset, CONFIG, [])


@pytest.mark.parametrize(
    ("variant", "contained", "times"),
    [
        ("bph", False, 3),  # a picture, δ in the journal and δ in work
        ("bph", True, 3),  # δ in work is gone before pictures are copied into their shard
        ("random-noise", False, 2),
        ("random-noise", True, 2),
        ("text", False, 1),
        ("text", True, 2),
        ("random-words", False, 1),
    ],
)
def test_too_little_room_is_noticed_up_front(
    variant: Variant,
    contained: bool,
    times: int,
    dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dataset = replace(dataset, format="parquet") if contained else dataset
    config = replace(CONFIG, variant=variant)
    usage = namedtuple("usage", "total used free")
    needed = 2 * times * 3 * 5 * 7
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, needed - 1))
    with pytest.raises(ReleaseError, match=r"2 images need up to .* MB are available: free space"):
        ReleaseWriter(tmp_path / "out", dataset, config, [])
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, needed))
    ReleaseWriter(tmp_path / "out", dataset, config, [])


def test_room_is_made_before_pictures_are_copied_into_data_files(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release_writer = ReleaseWriter(tmp_path / "out", dataset, CONFIG, [])
    release_writer.deltas.write_bytes(b"delta")
    for image in dataset.by_image():
        release_writer.write_image(image, shifted(image, 1))
    there = []
    write = release_writer._format.write

    def looking(*given: Any) -> None:
        there.append(release_writer.deltas.exists())
        write(*given)

    monkeypatch.setattr(release_writer, "_format", replace(release_writer._format, write=looking))
    release_writer.finish({}, [])
    assert there == [False]


def test_a_full_disk_keeps_what_was_written(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release_writer = ReleaseWriter(tmp_path / "out", dataset, CONFIG, [])
    first, second = dataset.by_image()
    release_writer.write_image(first, shifted(first, 1))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ReleaseError, match=r"b\.png: cannot be written \(No space left.*free space and run again"):
        release_writer.write_image(second, shifted(second, 1))
    assert (tmp_path / "out" / "images" / "a.png").exists()


def test_a_disk_that_lies_is_noticed(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release_writer = ReleaseWriter(tmp_path / "out", dataset, CONFIG, [])
    image, write = dataset.samples[0].image, Path.write_bytes
    to_pil_image(load_image(image) ^ 1).save(tmp_path / "other.png", format="PNG")
    for content in ((tmp_path / "other.png").read_bytes(), b"torn"):
        monkeypatch.setattr(Path, "write_bytes", lambda path, _, content=content: write(path, content))
        with pytest.raises(ReleaseError, match="reads back differently"):
            release_writer.write_image(image, load_image(image))
    assert not (tmp_path / "out" / "images" / "a.png").exists()


def test_foreign_and_broken_images(dataset: Dataset, tmp_path: Path) -> None:
    release_writer = ReleaseWriter(tmp_path / "out", dataset, CONFIG, [])
    with pytest.raises(ReleaseError, match="no image of the dataset"):
        release_writer.write_image(tmp_path / "other.png", torch.zeros(3, 5, 7, dtype=torch.uint8))
    dataset.samples[0].image.write_bytes(b"broken")
    with pytest.raises(SampleError, match="cannot be decoded"):
        release_writer.write_image(dataset.samples[0].image, torch.zeros(3, 5, 7, dtype=torch.uint8))


# Names


def test_image_names_are_unique_whatever_the_formats_and_do_not_depend_on_order(tmp_path: Path) -> None:
    found = ["a.jpg", "a.png", "images/a.jpg", "A.gif", "a-2.png", "sub/a.b.jpg", "images/images.png", "x.jpg", "X.jpg"]
    root = tmp_path / "one"
    rows = [{"file_name": name, "caption": "x"} for name in found]
    names = layout.ImageNames(read_dataset(folder(root, rows)))
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in reversed(rows)))
    other = layout.ImageNames(read_dataset(root))
    rng = random.Random(0)
    for _ in range(100):
        suffixes = {name: rng.choice([Path(name).suffix, ".png", ".webp", ".jpg"]) for name in found}
        released = {name: names.released(root / name, suffix) for name, suffix in suffixes.items()}
        assert released == {name: other.released(root / name, suffix) for name, suffix in suffixes.items()}
        assert len({name.casefold() for name in released.values()}) == len(found)
        assert {name: names.original(path) for name, path in released.items()} == {name: name for name in found}


def test_image_names_change_only_where_they_must(tmp_path: Path) -> None:
    found = ["a.jpg", "a.JPEG", "a.png", "b.jpg", "c.jpg", "C.jpg"]
    root = tmp_path / "one"
    names = layout.ImageNames(read_dataset(folder(root, [{"file_name": name, "caption": "x"} for name in found])))
    own = {name: names.released(root / name, Path(name).suffix) for name in found}
    assert own == {name: name for name in found} | {"c.jpg": "c-3.jpg"}  # C.jpg for those who ignore letter case
    assert names.released(root / "b.jpg", ".png") == "b.png"
    assert {names.released(root / name, ".png") for name in found[:3]} == {"a-2.png", "a-3.png", "a.png"}
    assert names.original("elsewhere.png") == ""


def test_orientation_and_transparency_are_settled_in_the_release(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (4, 2), "red").save(root / "a.jpg", exif=exif, dpi=(300, 300))
    (root / "metadata.jsonl").write_text(json.dumps({"file_name": "a.jpg", "caption": "red"}))
    dataset = read_dataset(root)
    release_writer = ReleaseWriter(tmp_path / "out", dataset, CONFIG, [])
    release_writer.write_image(root / "a.jpg", shifted(root / "a.jpg", 2))
    release = release_writer.finish({}, [])
    with Image.open(release.path / "a.png") as file:
        assert (file.format, file.mode, file.size) == ("PNG", "RGB", (2, 4))
        assert file.getexif()[0x0112] == 1
        assert file.info["dpi"] == pytest.approx((300, 300), abs=0.01)
    assert verify(release.path, root).ok
