"""Real datasets, where they lie beside the repository: read, changed within the budgets, verified."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
import torch

from mmguard.auditing.arms import pixel_digest
from mmguard.config import ProtectConfig
from mmguard.data.images import load_image
from mmguard.data.readers import read_dataset
from mmguard.data.tasks import CAPTION_PROMPT, score, target_text, user_text
from mmguard.perturb.budget import ImageBudget, apply
from mmguard.release.verify import verify
from mmguard.release.writer import ReleaseWriter

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
IMAGES_AND_ROWS = {
    "daquar": (479, 4170),  # of its 480 images, one has no row
    "docvqa_mini": (10, 10),
    "flickr8k": (399, 399),
    "vqa_rad": (314, 3515),
}


def folder(name: str) -> Path:
    if not (DATA / name).is_dir():
        pytest.skip(f"{name} is not here")
    return DATA / name


@pytest.mark.parametrize("name", IMAGES_AND_ROWS)
def test_every_row_is_read(name: str) -> None:
    dataset = read_dataset(folder(name))
    images, rows = IMAGES_AND_ROWS[name]
    assert (len(dataset.by_image()), len(dataset.rows), len(dataset.samples)) == (images, rows, rows)
    assert dataset.rejected == []
    for sample in dataset.samples:
        assert score(target_text(sample), sample)
        assert (user_text(sample.question, sample.options) == CAPTION_PROMPT) == (name == "flickr8k")


@pytest.mark.parametrize("name", IMAGES_AND_ROWS)
def test_a_release_of_a_few_images_is_verified(name: str, tmp_path: Path) -> None:
    root = folder(name)
    limit = 1 if name == "docvqa_mini" else 2  # pages of 4 million pixels
    dataset = read_dataset(root, limit=limit)
    writer = ReleaseWriter(tmp_path / "out", dataset, ProtectConfig(), ["zoo:llava-tiny"], root, None, limit)
    before = {image: image.read_bytes() for image in dataset.by_image()}
    for seed, image in enumerate(dataset.by_image()):
        original = load_image(image)
        delta = ImageBudget(8).random_signs(original, torch.Generator().manual_seed(seed))
        writer.write_image(image, apply(original, delta))
    release = writer.finish({s.id: ("zebra", "moon") for s in dataset.samples if s.question is not None}, [])
    assert release.images == limit
    assert {image: image.read_bytes() for image in dataset.by_image()} == before
    result = verify(release.path, root)
    assert result.problems == []
    assert (result.images, result.samples, result.max_eps) == (limit, len(dataset.samples), 8)
    again = read_dataset(release.path)
    assert [s.answers for s in again.samples] == [s.answers for s in dataset.samples]
    assert [s.id for s in again.samples] == [s.id for s in dataset.samples]


def test_vqa_rad_as_on_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Officially all test images are training images; as a benchmark of ours no image is on both sides."""
    root = folder("vqa_rad")
    parts: dict[str, list[dict[str, str]]] = {"train": [], "test": []}
    for row, sample in zip((official := read_dataset(root)).rows, official.samples, strict=True):
        parts[row["split"]].append({"image": str(sample.image), "question": row["question"], "answer": row["answer"]})

    def load_dataset(name: str, config: str | None, split: str) -> datasets.Dataset:
        assert (name, config, split) == ("flaviagiammarino/vqa-rad", None, "train+test")
        return datasets.Dataset.from_list(parts["train"] + parts["test"]).cast_column("image", datasets.Image())

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    assert {row["image"] for row in parts["test"]} <= {row["image"] for row in parts["train"]}

    train, test = read_dataset("vqa-rad"), read_dataset("vqa-rad", part="test")
    assert train.rejected == test.rejected == []
    assert len(train.samples) + len(test.samples) == 3515
    digests = [{pixel_digest(image) for image in part.by_image()} for part in (train, test)]
    assert digests[0].isdisjoint(digests[1])
    assert len(digests[0] | digests[1]) == 314
    assert 0.1 < len(digests[1]) / 314 < 0.3
    assert {sample.metric for sample in train.samples + test.samples} == {"exact"}
    for sample in test.samples:
        assert score(target_text(sample), sample) == 1
        assert score(f"not {target_text(sample)}", sample) == 0
