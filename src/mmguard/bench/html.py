"""A benchmark's results as one web page: what was found, charts, and the tables of the Markdown page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmguard.auditing.html import illustrated, spoken
from mmguard.auditing.report import clearly_lose
from mmguard.auditing.stats import Estimate, Headline
from mmguard.bench.config import Experiment, plain
from mmguard.bench.page import (
    LEGEND,
    caveats,
    failures,
    findings,
    finished,
    means_table,
    not_tested,
    provenance,
    releases_table,
    reports,
    variants_table,
    worst_table,
)
from mmguard.bench.results import Results
from mmguard.pages.charts import Chart, Interval, Line, dose_chart, interval_chart
from mmguard.pages.render import render

_POINTS = "points lost beyond the matched control"


def to_html(results: Results) -> str:
    """All of it, as a page that is complete in itself."""
    means = means_table(results)
    return render(
        "bench.html",
        title=results.bench.title,
        verdict=verdict(results),
        charts=[*_doses(results), *_effects(results)],
        compared=variants_table(*means),
        means=means,
        releases=releases_table(results),
        worst=worst_table(results),
        legend=LEGEND,
        findings=[
            (*table, [(label, *part) for label, report in reports(results, table[0]) for part in illustrated(report)])
            for table in findings(results)
        ],
        failures=failures(results),
        not_tested=not_tested(results),
        provenance=list(provenance(results)),
    )


def verdict(results: Results) -> str:
    """What all experiments together say, in plain words: of each its worst case, where one was measured."""
    heads = [report.worst_case.headline if report.worst_case else report.headline for _, report in finished(results)]
    lost = [head for head in heads if head.claim and clearly_lose(head)]
    unknown = len(results.bench.experiments) - sum(head.beyond_control is not None for head in heads)
    text = (
        f"In **{len(lost)} of {len(results.bench.experiments)}** experiments attackers lose more than to the matched "
        "control (95% interval above 0, each by itself, with brittle attackers and without)"
    )
    if unknown:
        text += f"; {unknown} of them {'has' if unknown == 1 else 'have'} no result"
    return " ".join([text + ".", *caveats(results)])


def _heads(results: Results) -> list[tuple[Experiment, Headline]]:
    return [(one.experiment, report.headline) for one, report in finished(results)]


def _doses(results: Results) -> Iterator[Chart]:
    """What is removed over the one numeric setting that varies, if there is just one; a line for whatever else varies.

    Seeds are numbers, but no doses. Two charts: of G, the share of the fine-tuning gain that is removed, and of the
    points themselves.
    """
    bench = results.bench
    varied = [key for key in bench.experiments[0].settings if len({one.settings[key] for one in bench.experiments}) > 1]
    doses = [key for key in varied if not key.endswith(".seed")]
    numeric = [key for key in doses if all(_is_number(one.settings[key]) for one in bench.experiments)]
    if len(numeric) != 1:
        return
    (dose,) = numeric
    name = dose.rpartition(".")[2].replace("_", " ")
    others = [key for key in varied if key != dose] or ["protect.variant"]
    for measure, unit, what in (
        ("gain_removed", "G (% of the gain removed)", "G in percent"),
        ("beyond_control", _POINTS, "Points lost beyond the matched control"),
    ):
        points: dict[str, dict[float, Estimate]] = {}
        for one, head in _heads(results):
            if (estimate := getattr(head, measure)) is not None:
                label = ", ".join(plain(one.settings[key]) for key in others)
                points.setdefault(label, {})[one.settings[dose]] = estimate
        lines = [
            Line(label, x, *([100 * getattr(line[dose], end) for dose in x] for end in ("value", "low", "high")))
            for label, line in points.items()
            if len(x := sorted(line)) > 1
        ]
        if lines:
            said = f"{what} over {name}. {spoken(lines)}."
            yield dose_chart(lines, name, unit, said, f"{what} over {name}, with 95% intervals; means over attackers.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _effects(results: Results) -> Iterator[Chart]:
    """Points lost beyond the control, experiment by experiment."""
    intervals = [
        Interval(results.bench.label(one), *(100 * end for end in vars(head.beyond_control).values()))
        for one, head in _heads(results)
        if head.beyond_control is not None
    ]
    if not intervals:
        return
    said = "; ".join(f"{one.label}: {one.value:.1f} ({one.low:.1f} to {one.high:.1f})" for one in intervals)
    yield interval_chart(
        intervals, _POINTS, f"Points lost beyond the matched control. {said}.",
        "What each protection adds to a random change of the same size, with 95% intervals; means over attackers.",
    )  # fmt: skip
