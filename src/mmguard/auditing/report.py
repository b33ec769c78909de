"""An audit's result, for people (Markdown, the verdict first) and for programs (JSON)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mmguard.auditing.losses import LossCurve
from mmguard.auditing.markdown import bullets, facts, table
from mmguard.auditing.stats import MIN_SEEDS, Estimate, Finding, Headline

NOT_TESTED = (
    "attackers who transform the images first: JPEG, resizing, cropping, blur, grayscale, augmentation",
    "purification of the images by diffusion models or autoencoders, with or without leaked originals",
    "removal of the inserted words: by perplexity or spelling filters, paraphrase, translation, or by hand",
    "filters that drop samples of unusual training loss, and stopping early",
    "mixing the release with clean data of the same kind",
    "attackers other than those in the table: other models, above all larger ones, and other recipes",
    "use without training: a model that is merely shown a protected image still understands it",
)


@dataclass(frozen=True)
class Failure:
    """An attacker that could not be audited."""

    attacker: str
    reason: str


@dataclass(frozen=True)
class AuditReport:
    """Everything that an audit found out. Accuracies, means of the items' scores, are shares from 0 to 1."""

    headline: Headline
    findings: tuple[Finding, ...]
    failures: tuple[Failure, ...] = ()
    warnings: tuple[str, ...] = ()
    not_tested: tuple[str, ...] = NOT_TESTED
    provenance: dict[str, Any] = field(default_factory=dict)
    """Versions, settings, sizes and hashes: what is needed to run it again."""
    losses: tuple[LossCurve, ...] = ()
    """How training went, for charts; no part of the plain data, since each run's file has it step by step."""

    @property
    def verdict(self) -> str:
        """What the audit says, in plain words."""
        return _verdict(self)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data; a number that does not exist is None."""
        plain = json.loads(json.dumps(asdict(replace(self, losses=()))))
        del plain["losses"]
        return {"verdict": self.verdict, **plain}

    def to_json(self) -> str:
        """The report as JSON; strict, without NaN."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def to_markdown(self) -> str:
        """The report as Markdown: verdict, table, what was not tested, provenance."""
        parts = ["# Audit", self.verdict, *(f"**Warning:** {warning}" for warning in self.warnings)]
        if self.findings:
            parts += [table(*findings_table(self.findings)), LEGEND]
        if self.failures:
            parts += [
                "## Attackers that failed",
                bullets(f"{one.attacker}: {one.reason}" for one in self.failures),
            ]
        parts += ["## Not tested, and not protected against", bullets(self.not_tested)]
        parts += [
            "## Provenance",
            facts(self.provenance),
        ]
        return "\n\n".join(parts) + "\n"

    def write(self, folder: Path) -> None:
        """Writes `report.json` and `report.md` into a folder, which is made if need be."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_text(self.to_json(), encoding="utf-8")
        (folder / "report.md").write_text(self.to_markdown(), encoding="utf-8")


LEGEND = (
    "Accuracies in percent on clean test data, means over seeds (and of partial scores, where the task's metric "
    "gives them); differences in points with 95% bootstrap intervals over seeds and test items. "
    "*Drop*: clean − release. *Control cost*: clean − matched control, "
    "which changes the same places as much at random. *Beyond control*: control − release. *Gain removed*: "
    "beyond control, in percent of what fine-tuning on the control gains over zero-shot; – where that gain "
    "is not clearly positive. *Brittle*: the control alone costs more than 5 points, so this attacker fails "
    "at any change; it is left out of the verdict. *Doubtful*: it costs 3 to 5 points. *Unjudged*: too few "
    "seeds, or no control. With few seeds the intervals are too narrow: where seeds differ by 5 points, those from "
    "3 seeds hold the truth in 85% of the cases, from 5 in 91%, from 10 in 94%."
)


def _verdict(report: AuditReport) -> str:
    headline, few = report.headline, any(finding.seeds < MIN_SEEDS for finding in report.findings)
    if not report.findings:
        text = "**No result.** No attacker finished, so nothing can be said about this release."
    elif headline.beyond_control is None and headline.brittle:
        text = (
            "**No result.** Every attacker is brittle: changes made at random already cost it more than 5 "
            "points, so what the protection adds cannot be told. Train longer, or take sturdier attackers."
        )
    elif headline.beyond_control is None:
        text = "**No result.** The matched control was not run, so what the protection adds cannot be told."
    else:
        text = _effect(headline, headline.beyond_control)
    if few:
        text += f" **No claim follows**: that takes at least {MIN_SEEDS} seeds."
    if any(finding.attacker.startswith("zoo:") for finding in report.findings):
        text += " The zoo's tiny models demonstrate the method; they do not predict how large models would fare."
    return text


def _effect(headline: Headline, beyond: Estimate) -> str:
    of_gain = ""
    if headline.gain_removed is not None:
        share = headline.gain_removed
        percent = (f"{100 * number:.0f}" for number in (share.value, share.low, share.high))
        of_gain = ", {}% of what fine-tuning gains ({} to {}%)".format(*percent)
    amount = f"{_points(beyond)} beyond the matched control{of_gain}"
    mean = f", in the mean over {headline.counted} attackers" if headline.counted > 1 else ""
    left_out = f" {headline.brittle} brittle left out." if headline.brittle else ""
    least = f" The attacker that lost least is {headline.strongest}." if headline.counted > 1 else ""
    if beyond.low > 0 and not headline.claim:
        return f"In these few runs attackers lost {amount}{mean}.{least}{left_out}"
    if beyond.low > 0:
        return f"**Attackers lose** {amount}{mean}.{least}{left_out}"
    if beyond.high < 0 and headline.claim:
        gained = Estimate(-beyond.value, -beyond.high, -beyond.low)
        return (
            "**No evidence of protection**: attackers learn more from the release than from the matched "
            f"control, by {_points(gained)}{mean}.{least}{left_out}"
        )
    return f"**No evidence of protection**: attackers lose {amount}{mean}.{least}{left_out}"


def findings_table(findings: Sequence[Finding]) -> tuple[list[str], list[list[str]]]:
    """The head and the lines of the table of all findings, as text."""
    arms = list(dict.fromkeys(arm for finding in findings for arm in finding.accuracy))
    head = [
        "attacker",
        "recipe",
        "zero-shot",
        *arms,
        "drop",
        "control cost",
        "beyond control",
        "gain removed",
        "status",
    ]
    lines = []
    for finding in findings:
        lines.append(
            [
                finding.attacker,
                finding.recipe,
                f"{100 * finding.zero_shot:.1f}",
                *(f"{100 * finding.accuracy[arm]:.1f}" if arm in finding.accuracy else "–" for arm in arms),
                *(
                    _cell(one)
                    for one in (
                        finding.drop,
                        finding.control_cost,
                        finding.beyond_control,
                        finding.gain_removed,
                    )
                ),
                finding.status,
            ]
        )
    return head, lines


def _cell(estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    return f"{100 * estimate.value:.1f} ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"


def _points(estimate: Estimate) -> str:
    ends = f"{100 * estimate.low:.1f} to {100 * estimate.high:.1f}"
    return f"{100 * estimate.value:.1f} points (95% interval {ends})"
