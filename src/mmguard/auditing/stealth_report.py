"""What a protection shows of itself, for people (Markdown, the verdict first) and for programs (JSON)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmguard.auditing.markdown import bullets, facts, table
from mmguard.auditing.stats import Estimate
from mmguard.auditing.stealth_images import ImageChange
from mmguard.auditing.stealth_judge import Judgement
from mmguard.auditing.stealth_recovery import Recovery
from mmguard.auditing.stealth_texts import TextChange
from mmguard.auditing.summary import Measure

FEW = 20
"""Of fewer images, an interval is too narrow to trust."""

HEADINGS = {
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "largest_change": "largest change (levels of 255)",
    "mean_change": "mean change (levels of 255)",
    "file_size_ratio": "file size, of the original's",
    "words_inserted": "words inserted",
    "share_inserted": "share of words inserted",
    "word_edits": "edit distance (words)",
    "character_edits": "edit distance (characters)",
    "perplexity_before": "perplexity of the original",
    "perplexity": "perplexity",
}
"""Every measure with its heading, in the report's order."""


@dataclass(frozen=True)
class StealthReport:
    """Everything that was measured of a protection's visibility."""

    images: tuple[ImageChange, ...]
    texts: tuple[TextChange, ...]
    """Empty where the release changes no text."""
    measures: Mapping[str, Measure]
    """By name (`HEADINGS`); those without any value are left out."""
    bleu: float | None = None
    """BLEU-4 of all released texts together, from 0 to 1."""
    recoveries: tuple[Recovery, ...] = ()
    """What attacks on texts give back of the questions; empty where the release changes none."""
    judgement: Judgement | None = None
    missing: tuple[str, ...] = ()
    """What was not measured, and why."""
    warnings: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Versions, settings, sizes and hashes: what is needed to run it again."""

    @property
    def original_bytes(self) -> int:
        """Size of all originals of released images."""
        return sum(image.original_bytes for image in self.images)

    @property
    def released_bytes(self) -> int:
        """Size of all released images."""
        return sum(image.released_bytes for image in self.images)

    @property
    def verdict(self) -> str:
        """What was found, in one plain sentence."""
        clauses = [*_image_clauses(self.measures), *_text_clauses(self.measures)]
        clauses += [*_recovery_clauses(self.recoveries), _judge_clause(self.judgement)]
        sentence = "; ".join(clauses)
        return f"{sentence[0].upper()}{sentence[1:]}."

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data; a number that does not exist is None."""
        sizes = {"original_bytes": self.original_bytes, "released_bytes": self.released_bytes}
        return {"verdict": self.verdict, **json.loads(json.dumps(asdict(self))), **sizes}

    def to_json(self) -> str:
        """The report as JSON; strict, without NaN or Infinity."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def to_markdown(self) -> str:
        """The report as Markdown: verdict, tables, what was not measured, provenance."""
        parts = ["# Stealth", self.verdict, *(f"**Warning:** {warning}" for warning in self.warnings)]
        parts += [_table(self.measures), self._totals(), _LEGEND]
        if self.recoveries:
            parts += ["## Questions given back", _RECOVERY_LEGEND, _recovery_table(self.recoveries)]
        if self.judgement:
            parts += ["## Judge", _judge_table(self.judgement)]
        parts += ["## Most visible", bullets(_most_visible(self.measures))]
        if self.missing:
            parts += ["## Not measured", bullets(self.missing)]
        parts += ["## Provenance", facts(self.provenance)]
        return "\n\n".join(parts) + "\n"

    def write(self, folder: Path) -> None:
        """Writes `stealth.json` and `stealth.md` into a folder, which is made if need be."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "stealth.json").write_text(self.to_json(), encoding="utf-8")
        (folder / "stealth.md").write_text(self.to_markdown(), encoding="utf-8")

    def _totals(self) -> str:
        before, after = self.original_bytes, self.released_bytes
        text = f"All files: {before / 1e6:.2f} MB before, {after / 1e6:.2f} MB after."
        if self.bleu is not None:
            text += f" BLEU of all texts together: {self.bleu:.3f}."
        return text


_LEGEND = (
    "Means with 95% bootstrap intervals over images, and quantiles. *Control*: the mean after a change at random by as "
    "much: the image's difference with its pixels shuffled, other words in the places of the inserted ones. *Beyond "
    "control*: release − control, pair by pair. PSNR is infinite for an image that did not change, and its mean is "
    "over the others; a shuffled difference has the same, but for colours at the ends of the range."
)


_RECOVERY_LEGEND = (
    "What attacks on texts make of the questions, without any model or training (docs/attacks.md). *Given back*: word "
    "by word as they were. *Spoiled*: changed by the same attack, had they been released as they were."
)


def _image_clauses(measures: Mapping[str, Measure]) -> list[str]:
    if (psnr := measures.get("psnr")) is None:
        return ["no image changed"]
    largest = measures["largest_change"].worst[0][1]
    text = f"images differ by at most {largest:.0f} of 255 levels ({psnr.mean.value:.1f} dB PSNR)"
    similar = measures.get("ssim")
    if similar is None or similar.control is None or similar.beyond_control is None:
        return [text]
    more = similar.beyond_control
    values = f"{similar.mean.value:.3f} against {similar.control.value:.3f}"
    if more.low <= 0 <= more.high:  # which does not make them the same
        return [f"{text}; by SSIM, their likeness to the originals cannot be told from that of equal noise ({values})"]
    how = "more" if more.low > 0 else "less"
    return [f"{text} and are, by SSIM, {how} like the originals than with noise of the same size ({values})"]


def _text_clauses(measures: Mapping[str, Measure]) -> list[str]:
    if "words_inserted" not in measures:
        return ["no text changed"]
    share = measures["share_inserted"].mean.value
    text = f"texts carry {measures['words_inserted'].mean.value:.1f} inserted words, {100 * share:.0f}% of all"
    if "perplexity" not in measures or "perplexity_before" not in measures:
        return [text]
    after, before = measures["perplexity"], measures["perplexity_before"].mean.value
    text += f", and their perplexity goes from {before:.0f} to {after.mean.value:.0f}"
    return [text if after.control is None else f"{text} (random words: {after.control.value:.0f})"]


def _recovery_clauses(recoveries: Sequence[Recovery]) -> list[str]:
    if not recoveries:
        return []
    best = max(recoveries, key=lambda one: one.removed.value - one.spoiled.value)
    return [
        f"without any training, the attack `{best.attack}` takes {_percent(best.removed)} of the inserted words out "
        f"and gives {_percent(best.recovered)} of the questions back as they were; it would change "
        f"{_percent(best.spoiled)} of clean ones"
    ]


def _judge_clause(judgement: Judgement | None) -> str:
    if judgement is None:
        return "nobody has judged whether it shows"
    if judgement.detected is None:
        return "no reply of the judge could be used"
    share = judgement.detected
    rate = f"{_percent(share)} of {judgement.usable} pairs (guessing: 50%)"
    if share.low <= 0.5 <= share.high:
        return f"no evidence that it shows: a judge picked the altered version in {rate}"
    if share.low > 0.5:
        return f"**it shows**: a judge picked the altered version in {rate}"
    return f"**it shows**, though a judge takes the original for the altered version: it picked the latter in {rate}"


def _table(measures: Mapping[str, Measure]) -> str:
    lines = []
    for name, heading in HEADINGS.items():
        if (one := measures.get(name)) is not None:
            middle = [_number(value) for value in (one.median, one.quantile_5, one.quantile_95)]
            lines.append(
                [heading, str(one.count), _cell(one.mean), *middle, _cell(one.control), _cell(one.beyond_control)]
            )
    return table(["", "n", "mean", "median", "5%", "95%", "control", "beyond control"], lines)


def _recovery_table(recoveries: Sequence[Recovery]) -> str:
    lines = [
        [f"`{one.attack}`", str(one.questions), *map(_percent, (one.recovered, one.removed, one.spoiled))]
        for one in recoveries
    ]
    return table(["attack", "n", "questions given back", "inserted words removed", "clean questions spoiled"], lines)


def _most_visible(measures: Mapping[str, Measure]) -> Iterator[str]:
    for name, heading in HEADINGS.items():
        if name in measures and name != "perplexity_before":  # which no release can change
            yield f"{heading}: {', '.join(f'{where} ({_number(value)})' for where, value in measures[name].worst)}"


def _judge_table(judgement: Judgement) -> str:
    text = f"{judgement.judge}: {judgement.usable} of {judgement.pairs} replies could be used."
    if judgement.problem:
        text += f" The first that could not: {judgement.problem}"
    if judgement.detected is None:
        return text
    text += f" It picked the altered version in {_percent(judgement.detected)}; guessing gives 50%."
    scores = table(
        ["from 1 (bad) to 3 (good)", "original", "release", "release − original"],
        [
            [name.replace("_", " "), *map(_cell, (score.original, score.released, score.difference))]
            for name, score in judgement.scores.items()
        ],
    )
    return f"{text}\n\n{scores}"


def _percent(share: Estimate) -> str:
    return f"{100 * share.value:.0f}% (95% interval {100 * share.low:.0f} to {100 * share.high:.0f})"


def _cell(estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    return f"{_number(estimate.value)} ({_number(estimate.low)} to {_number(estimate.high)})"


def _number(value: float) -> str:
    """As many decimals as tell anything; no exponents, no trailing zeros, no negative zero."""
    decimals = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 3
    text = f"{round(value, decimals) + 0.0:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if decimals else text
