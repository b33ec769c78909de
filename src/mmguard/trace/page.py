"""What was traced, for people (one web page, and its figures) and for programs (JSON)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mmguard.auditing.markdown import plain
from mmguard.auditing.stats import Estimate, in_percent
from mmguard.pages.charts import Bars, Chart, Heat, Line, bar_chart, heat_chart, line_chart
from mmguard.pages.render import render
from mmguard.trace.masses import ARMS, GROUPS, Map, Trace


def verdict(trace: Trace) -> str:
    """What was found, in plain words."""
    sentences = []
    for group, what in (("trigger", "the inserted words"), ("perturbed", "the most perturbed image tokens")):
        masses = [trace.mass(arm, group) for arm in ("release", "control", "clean")]
        values = [_percent(mass.mean) for mass in masses if mass is not None]
        if values:
            text = f"Of the answer's attention {values[0]} rests on {what}, against {values[1]} with random changes"
            sentences.append(text + (f" and {values[2]} on the original." if group == "perturbed" else "."))
    if not sentences:
        sentences.append(f"Of the release nothing could be traced: {'; '.join(trace.missing)}.")
    return " ".join([*sentences, "This shows the mechanism; whether attackers learn less is for an audit to say."])


def to_dict(trace: Trace) -> dict[str, Any]:
    """The trace as plain data, without the maps."""
    values = asdict(replace(trace, maps=()))
    del values["maps"]
    return {"verdict": verdict(trace), **values}


def to_html(trace: Trace) -> str:
    """The trace as a page that is complete in itself."""
    return render(
        "trace.html",
        trace=trace,
        verdict=verdict(trace),
        bars=_bars(trace),
        curves=list(_curves(trace).values()),
        head=["", *ARMS],
        lines=list(_lines(trace)),
        maps=[_map(one) for one in trace.maps],
        provenance={name: plain(value) for name, value in trace.provenance.items()},
    )


def write(trace: Trace, folder: Path) -> None:
    """Writes `trace.html`, `trace.json` and, for use elsewhere, every chart into `figures/`."""
    figures = {"masses": _bars(trace), **{f"layers-{group}": chart for group, chart in _curves(trace).items()}}
    figures |= {f"map-{number}": _map(one) for number, one in enumerate(trace.maps, 1)}
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    (folder / "trace.html").write_text(to_html(trace), encoding="utf-8")
    text = json.dumps(to_dict(trace), indent=1, ensure_ascii=False, allow_nan=False)
    (folder / "trace.json").write_text(text + "\n", encoding="utf-8")
    for name, chart in figures.items():
        (folder / "figures" / f"{name}.svg").write_bytes(chart.svg)


def _groups(trace: Trace) -> list[str]:
    return [group for group in GROUPS if trace.mass("release", group)]


def _bars(trace: Trace) -> Chart:
    bars = [
        Bars(group, {arm: 100 * mass.mean.value for arm in ARMS if (mass := trace.mass(arm, group))})
        for group in _groups(trace)
    ]
    said = "; ".join(f"{one.title}: " + ", ".join(f"{k} {v:.1f}" for k, v in one.values.items()) for one in bars)
    return bar_chart(
        bars, "percent of the answer's attention", f"Attention of the answer in percent. {said}.",
        "What the answer attends to, in the mean over layers.",
    )  # fmt: skip


def _curves(trace: Trace) -> dict[str, Chart]:
    charts = {}
    for group in _groups(trace):
        lines = []
        for arm in ARMS:
            if (mass := trace.mass(arm, group)) is not None:
                ends = ([100 * getattr(one, end) for one in mass.layers] for end in ("value", "low", "high"))
                lines.append(Line(arm, range(len(mass.layers)), *ends))
        charts[group] = line_chart(
            lines, "layer", f"% on {group}", f"Attention of the answer on {GROUPS[group]}, layer by layer.",
            f"Attention on {GROUPS[group]}.",
        )  # fmt: skip
    return charts


def _map(one: Map) -> Chart:
    panels = [
        Heat(
            arm,
            one.images[arm].permute(1, 2, 0).numpy(),
            one.boxes.numpy(),
            one.attention[arm].double().numpy(),
            one.perturbed.numpy(),
        )
        for arm in ARMS
    ]
    return heat_chart(
        panels, f"Sample {one.sample}: where the answer looks, on the original, the release and the control.",
        f"Sample {one.sample}",
    )  # fmt: skip


def _lines(trace: Trace) -> Iterator[list[str]]:
    for group in _groups(trace):
        yield [group, *(in_percent(mass.mean if (mass := trace.mass(arm, group)) else None) for arm in ARMS)]


def _percent(one: Estimate) -> str:
    return f"{100 * one.value:.1f}% ({100 * one.low:.1f} to {100 * one.high:.1f})"
