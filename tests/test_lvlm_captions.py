"""Models' own captions: of pictures without text, for the owner's targets and for the thief's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import tiny
from mmguard.auditing.plan import plan_audit
from mmguard.config import ProtectConfig
from mmguard.data.images import load_image
from mmguard.data.readers import read_dataset
from mmguard.errors import DataError, SurrogateError
from mmguard.lvlm import captions as module
from mmguard.lvlm.captions import captions
from mmguard.lvlm.loading import load_surrogate
from mmguard.lvlm.prompt import Example
from mmguard.protection import prepare
from mmguard.protection.run import protect
from mmguard.release.verify import verify

FAST = ProtectConfig(variant="crs", rounds=1, inner_steps=1, pgd_steps=1, top_c=2, batch_size=2)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four pictures of two sizes, one of them broken, without any text."""
    root = tmp_path / "photos"
    root.mkdir()
    for number, size in enumerate(((40, 40), (56, 32), (40, 40))):
        generator = torch.Generator().manual_seed(number)
        pixels = torch.randint(0, 256, (*size, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(root / f"{number}.png")
    (root / "broken.png").write_bytes(b"no picture")
    return root


@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "mllama", "paligemma", "minicpmv4_6", "smolvlm", "internvl"])
def test_captions_do_not_depend_on_the_batch(family: str, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_TOKENS", 4)
    model = load_surrogate(tiny.built(family), device="cpu")
    paths = sorted(photos.iterdir())
    said = captions(model, paths)
    assert sorted(said) == paths[:3]
    assert said == captions(model, paths, batch_size=1)


def test_where_memory_is_not_enough_fewer_are_captioned_at_a_time(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_TOKENS", 4)
    model = load_surrogate(tiny.built("llava"), device="cpu")
    paths = sorted(photos.iterdir())
    said, whole, most = captions(model, paths), module._said, 1

    def limited(model: object, images: list[torch.Tensor], length: int) -> list[str]:
        if len(images) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return whole(model, images, length)

    monkeypatch.setattr(module, "_said", limited)
    assert captions(model, paths) == said
    most = 0
    with pytest.raises(SurrogateError, match="memory is not enough to caption one picture at a time"):
        captions(model, paths)


def test_a_caption_is_what_the_model_finds_likeliest(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_TOKENS", 1)
    model = load_surrogate(tiny.built("llava"), device="cpu")
    path = photos / "0.png"
    image = load_image(path) / 255
    encoded = model.encode([Example(None, "x")], [image])
    first = int(encoded.roles.answer[0].nonzero()[0])
    logits = model.model(**{k: v[:, :first] for k, v in encoded.inputs.items()}, **model.pixels([image])).logits
    assert (
        captions(model, [path])[path]
        == model.tokenizer.decode(logits[0, -1].argmax(), skip_special_tokens=True).strip()
    )


def test_pictures_without_text_are_protected_and_audited(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {photos / "0.png": "a red cat", photos / "1.png": "", photos / "2.png": "two dogs"}
    monkeypatch.setattr(prepare, "captions", lambda model, paths, size: {p: told[p] for p in paths if p in told})
    model = tiny.built("llava")
    release = protect(photos, [str(model)], FAST, tmp_path / "out", device="cpu")
    assert sorted(release.captions.values()) == ["a red cat", "two dogs"]
    assert json.loads((release.record / "record.json").read_text())["captions"] == release.captions
    assert sorted(path.name for path in release.path.iterdir()) == ["0.png", "2.png", "README.md"]
    assert "red cat" not in (release.path / "README.md").read_text()
    reasons = {Path(rejection.where).name: rejection.reason for rejection in release.failed}
    assert "says nothing of it: give it a caption" in reasons["1.png"]
    assert "cannot be decoded" in reasons["broken.png"]
    assert verify(release.path, photos).problems == []

    test = tmp_path / "test"
    test.mkdir()
    Image.new("RGB", (40, 40)).save(test / "a.png")
    with pytest.raises(DataError, match="pictures without text, which test nothing"):
        plan_audit(release.path, photos, test, [str(model)])
    (test / "a.txt").write_text("black")
    plan = plan_audit(release.path, photos, test, [str(model)])
    assert any("2 pictures came without text" in warning for warning in plan.warnings)
    stolen = captions(load_surrogate(model, "cpu"), sorted(release.path.glob("*.png")))
    pairs = plan.runner.pairing.pairs
    assert {released.answer for _, released in pairs} == set(stolen.values())
    assert all(ours.answer == released.answer for ours, released in pairs)


def test_a_model_that_says_nothing(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "captions", lambda model, paths, size: dict.fromkeys(paths, ""))
    with pytest.raises(DataError, match="says nothing of it"):
        protect(photos, [str(tiny.built("llava"))], FAST, tmp_path / "out", device="cpu")


def test_controls_need_no_captions(photos: Path, tmp_path: Path) -> None:
    release = protect(photos, [], ProtectConfig(variant="random-noise"), tmp_path / "out")
    assert (release.images, release.captions) == (3, {})
    assert read_dataset(release.path).samples[0].answer == ""
