"""An audit's result as one web page, for people who decide: the verdict, charts, tables, and what was published."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmguard.auditing.arms import Pairing
from mmguard.auditing.attacks import attack_named
from mmguard.auditing.losses import LossCurve
from mmguard.auditing.markdown import plain
from mmguard.auditing.report import LEGEND, MIXTURES, UNDER_ATTACK, AuditReport, Section, findings_table, sections
from mmguard.auditing.stats import Finding, Marginal
from mmguard.data.images import load_image
from mmguard.data.tasks import target_text
from mmguard.data.text import insertions
from mmguard.pages.charts import Bars, Chart, Interval, Line, bar_chart, dose_chart, interval_chart, line_chart
from mmguard.pages.pictures import AMPLIFIED, difference, png_uri
from mmguard.pages.render import render
from mmguard.types import Sample

_BEYOND = "What the protection adds to a random change of the same size, with 95% intervals."
_SHOWN = 3
"""How many images a page shows."""


@dataclass(frozen=True)
class Shown:
    """A sample as it was before and as it was released; images as addresses that hold them."""

    id: str
    question: list[tuple[str, str, bool]] | None
    """White space and word, and whether it was inserted, for each word released; None for a caption."""
    answer: str
    before: str
    after: str
    difference: str


def shown(pairs: Sequence[tuple[Sample, Sample]]) -> list[Shown]:
    """The first samples of the first images.

    Args:
        pairs: original and released samples.

    Raises:
        SampleError: an image cannot be read any more.
    """
    first = {ours.image: (ours, released) for ours, released in reversed(pairs)}
    images = list(dict.fromkeys(ours.image for ours, _ in pairs))[:_SHOWN]
    return [_shown(*first[image]) for image in images]


def _shown(ours: Sample, released: Sample) -> Shown:
    before, after = load_image(ours.image), load_image(released.image)
    question, answer = marked_texts(ours, released)
    return Shown(
        id=released.id,
        question=question,
        answer=answer,
        before=png_uri(before),
        after=png_uri(after),
        difference=png_uri(difference(before, after)),
    )


def marked_texts(ours: Sample, released: Sample) -> tuple[list[tuple[str, str, bool]] | None, str]:
    """The released question, if there is one, as `insertions` reads it, and the answer."""
    if ours.question is None or released.question is None:
        return None, target_text(ours)
    return insertions(ours.question, released.question), target_text(ours)


def to_html(report: AuditReport, samples: Sequence[Shown] = ()) -> str:
    """The report as a page that is complete in itself.

    Args:
        report: what was found.
        samples: what to show of the release.
    """
    head, lines = findings_table(report.findings)
    return render(
        "audit.html",
        report=report,
        charts=[_accuracies(report.findings), *_effects(report.findings, _BEYOND)] if report.findings else [],
        loss_charts=list(_loss_charts(report.losses)),
        head=head,
        lines=lines,
        legend=LEGEND,
        sections=illustrated(report),
        samples=samples,
        amplified=AMPLIFIED,
        provenance={name: plain(value) for name, value in report.provenance.items()},
    )


def illustrated(report: AuditReport) -> list[tuple[Section, list[Chart]]]:
    """The sections of a report, each with its charts."""
    charts = {
        UNDER_ATTACK: _effects(
            [*report.under_attack, *(report.worst_case.findings if report.worst_case else ())],
            "The same under each attack, and where attackers chose the best recipe and attack on other test images.",
        ),
        MIXTURES: list(_mixture_charts(report.mixtures)),
    }
    return [(section, charts.get(section.title, [])) for section in sections(report)]


def write_html(report: AuditReport, pairing: Pairing, folder: Path) -> None:
    """Writes `report.html` into a folder, with the first images of the release."""
    (folder / "report.html").write_text(to_html(report, shown(pairing.pairs)), encoding="utf-8")


def _accuracies(findings: Sequence[Finding]) -> Chart:
    bars = [
        Bars(_label(finding), {arm: 100 * share for arm, share in finding.accuracy.items()}, 100 * finding.zero_shot)
        for finding in findings
    ]
    said = "; ".join(f"{one.title}: " + ", ".join(f"{k} {v:.1f}" for k, v in one.values.items()) for one in bars)
    return bar_chart(
        bars, "percent right; dotted: zero-shot", f"Accuracies in percent. {said}.",
        "Accuracy on clean test data after fine-tuning on each kind of data, and of the untouched model.",
    )  # fmt: skip


def _effects(findings: Sequence[Finding], caption: str) -> list[Chart]:
    """A chart of what the protection adds to a random change; none where no control was run."""
    beyond = [
        Interval(_label(finding), *(100 * end for end in (one.value, one.low, one.high)))
        for finding in findings
        if (one := finding.beyond_control) is not None
    ]
    said = "; ".join(f"{one.label}: {one.value:.1f} ({one.low:.1f} to {one.high:.1f})" for one in beyond)
    alt = f"Points lost beyond the matched control. {said}."
    return [interval_chart(beyond, "points lost beyond the matched control", alt, caption)] if beyond else []


def _mixture_charts(mixtures: Sequence[Marginal]) -> Iterator[Chart]:
    """One for each attacker and recipe with several mixtures, and for each filter of them (the paper's Fig. 6)."""
    doses: dict[str, dict[int, Marginal]] = {}
    for one in mixtures:
        sieve = one.attack.partition("+")[2]
        title = f"{one.attacker} ({one.recipe})" + (f" under {sieve}" if sieve else "")
        doses.setdefault(title, {})[attack_named(one.attack).selection.clean_percent or 0] = one
    for title, by_percent in doses.items():
        percents = sorted(by_percent)
        if len(percents) < 2:
            continue
        matched = by_percent[percents[0]].matched
        lines = []
        for label, arm in (("unprotected", "clean"), ("control", matched), ("release", "release")):
            added = [by_percent[percent].added[arm] for percent in percents]
            ends = ([100 * getattr(one, end) for one in added] for end in ("value", "low", "high"))
            lines.append(Line(label, percents, *ends))
        yield dose_chart(
            lines, "percent of the data that is clean", "points that the rest adds",
            f"What the rest of the data adds to its clean part, {title}. {spoken(lines)}.",
            f"{title}: points that the rest of the data adds to its clean part, left unprotected, changed at random "
            "(control) or protected (release), with 95% intervals; perfectly protected data adds 0.",
        )  # fmt: skip


def spoken(lines: Sequence[Line]) -> str:
    """What lines show, for those who do not see them."""
    points = ((line.label, zip(line.x, line.y, strict=True)) for line in lines)
    return "; ".join(f"{label}: " + ", ".join(f"{y:.0f} at {x:g}" for x, y in line) for label, line in points)


def _loss_charts(curves: Sequence[LossCurve]) -> Iterator[Chart]:
    """One for each attacker and recipe (the paper's Fig. 4)."""
    for title in dict.fromkeys(_label(curve) for curve in curves):
        drawn = [curve for curve in curves if _label(curve) == title and curve.steps]
        if drawn:
            lines = [Line(curve.arm, curve.steps, curve.mean, curve.low, curve.high) for curve in drawn]
            ends = ", ".join(_end(curve) for curve in drawn)
            yield line_chart(
                lines, "step", "training loss (nats a token)", f"Training loss of {title}. At the end: {ends}.",
                f"{title}. At the end: {ends}.", log=True,
            )  # fmt: skip


def _end(curve: LossCurve) -> str:
    """The last loss, unless training diverged: the curve is then that of the other seeds, or breaks off."""
    if not curve.diverged:
        return f"{curve.arm} {curve.mean[-1]:.2g}"
    return f"{curve.arm} diverged ({curve.diverged} {'seed' if curve.diverged == 1 else 'seeds'})"


def _label(one: Finding | LossCurve) -> str:
    attack = f" under {one.attack}" if isinstance(one, Finding) and one.attack else ""
    return f"{one.attacker} ({one.recipe}){attack}"
