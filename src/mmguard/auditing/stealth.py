"""Stealth: how visible a protection is, to measures and to judges.

Like the audit it reads the released files and the original, never the private record.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from mmguard.auditing.arms import Pairing, pair
from mmguard.auditing.stealth_images import ImageChange, Likeness, image_change, load_lpips, load_pair
from mmguard.auditing.stealth_judge import JudgeConfig, judge
from mmguard.auditing.stealth_recovery import recoveries
from mmguard.auditing.stealth_report import FEW, StealthReport
from mmguard.auditing.stealth_texts import TextChange, bleu, text_changes, usual_language_model
from mmguard.auditing.summary import Measure, measure
from mmguard.config import LPIPS, Lpips
from mmguard.data.readers import read_dataset
from mmguard.errors import ConfigError
from mmguard.lvlm.language import LanguageModel, load_language_model
from mmguard.release.layout import sha256
from mmguard.runtime.devices import device_of
from mmguard.runtime.prefetch import prefetched
from mmguard.runtime.progress import progress as bar
from mmguard.runtime.provenance import commit, versions
from mmguard.types import Dataset

_PACKAGES = ("mmguard", "torch", "torchvision", "torchmetrics", "transformers", "pillow")


def stealth(
    release: str | Path,
    original: str | Path,
    *,
    lpips: Lpips = "auto",
    lm: str | None = None,
    judging: JudgeConfig = JudgeConfig(),
    out: Path | None = None,
    split: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    device: str = "auto",
    show_progress: bool = False,
) -> StealthReport:
    """Measures how visible a protection is, beside random changes of the same size.

    Nothing is fetched that is not named: `lpips="auto"` and no `lm` take what is on this machine.

    Args:
        release: the released folder; nothing beside it is read.
        original: the dataset that it was made from.
        lpips: network of LPIPS: `alex`, `vgg`, `off`, or `auto` for one whose weights are at hand.
        lm: causal language model for perplexities, a hub id or a folder; GPT-2 if it is at hand.
        judging: whether and how judges are asked. With a `url`, originals and released images are sent there.
        out: folder for `stealth.json` and `stealth.md`.
        split: split of the original.
        limit: look at the first so many released images.
        seed: of controls, bootstrap, and the judges' questions.
        device: `auto`, `cpu`, `cuda`, …
        show_progress: a bar on standard error.

    Returns:
        The report. What could not be measured has no value there, and is listed with the reason.

    Raises:
        ConfigError: unknown `lpips`.
        DataError: a dataset cannot be read.
        ReleaseError: the release does not belong to the original, or changes nothing.
        SurrogateError: the language model that was named cannot be loaded.
    """
    if lpips not in LPIPS:
        raise ConfigError(f"lpips {lpips!r}: choose one of {', '.join(LPIPS)}")
    place = device_of(device)
    released = read_dataset(release, limit=limit)
    pairing = pair(released, read_dataset(original, split=split))
    # Models first: what cannot be loaded is known before hours of measuring.
    perceptual, no_lpips = load_lpips(lpips, place) if pairing.images_changed else (None, "images: none changed")
    model, no_lm = _language_model(lm, place) if pairing.texts_changed else (None, "texts: none changed")
    files = list(dict.fromkeys((ours.image, after.image) for ours, after in pairing.pairs))
    group = {paths: number for number, paths in enumerate(files)}
    images = []
    with bar("Stealth", len(files), enabled=show_progress) as advance:
        for paths, pixels in prefetched(files, lambda paths: load_pair(*paths)):
            name = paths[1].relative_to(released.image_root).as_posix()
            images.append(image_change(name, paths, pixels, seed + group[paths], perceptual, place))
            advance(1)
    asked = [(ours, after) for ours, after in pairing.pairs if pairing.texts_changed and ours.question is not None]
    triples = [(after.id, ours.question or "", after.question or "") for ours, after in asked]
    texts = text_changes(triples, model, seed)
    measures = _image_measures(images, seed)
    shown = [group[ours.image, after.image] for ours, after in asked]
    measures |= _text_measures(texts, shown, seed)
    report = StealthReport(
        images=tuple(images),
        texts=tuple(texts),
        measures={name: one for name, one in measures.items() if one is not None},
        bleu=bleu([(before, after) for _, before, after in triples]) if triples else None,
        recoveries=tuple(recoveries(asked, shown, seed)),
        judgement=judge(pairing, judging, seed, show_progress),
        missing=tuple(reason for reason in (no_lpips, no_lm) if reason),
        warnings=tuple(_warnings(pairing, images)),
        provenance=_provenance(
            released, model.name if model else None, perceptual.name if perceptual else None, seed, limit
        ),
    )
    if out is not None:
        report.write(out)
    return report


def _language_model(name: str | None, device: torch.device) -> tuple[LanguageModel | None, str]:
    """The model that is named, or the usual one if it is at hand; and what it cannot give."""
    if (name := name or usual_language_model()) is None:
        return None, "perplexity: no language model was named, and GPT-2 is not on this machine; give --lm"
    model = load_language_model(name, device)
    return model, "" if model.words else f"perplexity of random words: {name} has no word that is a single token"


def _image_measures(images: Sequence[ImageChange], seed: int) -> dict[str, Measure | None]:
    names, groups = [image.file for image in images], range(len(images))

    def like(part: Callable[[Likeness], float | None], small_is_visible: bool) -> Measure | None:
        values, controls = [part(image.likeness) for image in images], [part(image.control) for image in images]
        return measure(names, values, groups, controls, small_is_visible=small_is_visible, seed=seed)

    def of(part: Callable[[ImageChange], float]) -> Measure | None:
        return measure(names, [part(image) for image in images], groups, seed=seed)

    return {
        "psnr": like(lambda one: one.psnr, True),
        "ssim": like(lambda one: one.ssim, True),
        "lpips": like(lambda one: one.lpips, False),
        "largest_change": of(lambda image: image.largest_change),
        "mean_change": of(lambda image: image.mean_change),
        "file_size_ratio": of(lambda image: image.released_bytes / image.original_bytes),
    }


def _text_measures(texts: Sequence[TextChange], groups: Sequence[int], seed: int) -> dict[str, Measure | None]:
    names = [text.sample for text in texts]

    def of(field: str, control: str | None = None) -> Measure | None:
        values = [getattr(text, field) for text in texts]
        controls = [getattr(text, control) for text in texts] if control else None
        return measure(names, values, groups, controls, seed=seed)

    plain = ("words_inserted", "share_inserted", "word_edits", "character_edits", "perplexity_before")
    return {field: of(field) for field in plain} | {"perplexity": of("perplexity", "perplexity_control")}


def _warnings(pairing: Pairing, images: Sequence[ImageChange]) -> list[str]:
    warnings = []
    if len(images) < FEW:
        warnings.append(f"{len(images)} images are too few: the intervals are too narrow.")
    if small := sum(image.likeness.ssim is None for image in images):
        warnings.append(f"{small} images are below 6 pixels a side and have no SSIM.")
    if pairing.rejected:
        first = pairing.rejected[0]
        warnings.append(f"{len(pairing.rejected)} released samples were left out; the first: {first.reason}")
    return warnings


def _provenance(released: Dataset, lm: str | None, lpips: str | None, seed: int, limit: int | None) -> dict[str, Any]:
    return {
        "versions": versions(*_PACKAGES),
        "commit": commit(),
        "release data sha256": sha256(*released.files),
        "language model": lm,
        "LPIPS network": lpips,
        "limit": limit,
        "seed": seed,
    }
