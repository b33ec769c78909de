"""The page of a benchmark: what it says in words, and the curve where one number varies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mmguard.bench.config import Bench
from mmguard.bench.html import to_html, verdict
from mmguard.bench.results import Outcome, Results
from test_audit_report import _attacked, _mixed
from test_bench_page import bench, report

EVIL = "<script>alert(1)</script>"


def sweep(**settings: list[object]) -> Bench:
    """Experiments that differ in a setting of the protection, for each of two variants."""
    toy = bench(("cats",))
    ((key, values),) = settings.items()
    every = tuple(replace(one, protect=replace(one.protect, **{key: v})) for one in toy.experiments for v in values)
    return Bench(Path("configs/toy.yaml"), "Toy", every)


def filled(toy: Bench) -> Results:
    return Results(toy, tuple(Outcome(one, {}, report({"a": (40, 40, 20)})) for one in toy.experiments))


def test_verdict_counts() -> None:
    toy = bench(("cats", "dogs"))
    right = [(40, 40, 30), (40, 40, 10), (40, 40, 40), (40, 10, 5)]
    outcomes = [Outcome(one, {}, report({"zoo:a": r})) for one, r in zip(toy.experiments, right, strict=True)]
    text = verdict(Results(toy, tuple(outcomes)))
    assert text.startswith("In **2 of 4** experiments attackers lose more")
    assert "; 1 of them has no result." in text  # its attacker is brittle
    assert "nothing here predicts" in text


def test_verdict_goes_by_the_worst_case_and_by_enough_seeds() -> None:
    toy = bench(("cats",))
    harmless, few = _attacked(0.8), report({"a": (40, 40, 20)}, seeds=1)
    assert harmless.headline.beyond_control is not None
    assert harmless.headline.beyond_control.low > 0
    results = Results(toy, tuple(Outcome(e, {}, r) for e, r in zip(toy.experiments, (harmless, few), strict=True)))
    assert verdict(results).startswith("In **0 of 2** experiments")


def test_verdict_counts_only_what_holds_with_brittle_attackers_too() -> None:
    toy = bench(("cats",))
    right = {"a": (40, 40, 20)}, {"a": (40, 40, 30), "brittle": (40, 20, 35)}
    outcomes = [Outcome(one, {}, report(each)) for one, each in zip(toy.experiments, right, strict=True)]
    assert verdict(Results(toy, tuple(outcomes))).startswith("In **1 of 2** experiments")


def test_verdict_of_nothing() -> None:
    text = verdict(Results(bench(("cats",)), ()))
    assert text.startswith("In **0 of 2** experiments")
    assert "2 of them have no result" in text
    assert "**Not complete**" in text
    assert "No results." in to_html(Results(bench(("cats",)), ()))


def test_a_curve_where_one_number_varies() -> None:
    html = to_html(filled(sweep(eps=[8, 2, 4])))
    curves = "over eps. bph: 50 at 2, 50 at 4, 50 at 8; text: 50 at 2, 50 at 4, 50 at 8."
    assert f"G in percent {curves}" in html
    assert f"Points lost beyond the matched control {curves}" in html


def test_no_curve_where_none_or_several_vary() -> None:
    assert "G in percent over" not in to_html(filled(bench(("cats", "dogs"))))
    toy = sweep(eps=[2, 4])
    several = [replace(one, protect=replace(one.protect, rounds=one.protect.eps)) for one in toy.experiments]
    assert "G in percent over" not in to_html(filled(replace(toy, experiments=tuple(several))))


def test_seeds_are_no_doses() -> None:
    assert "G in percent over" not in to_html(filled(sweep(seed=[0, 1, 2])))


def test_points_of_who_learns_nothing_are_left_out() -> None:
    toy = sweep(eps=[2, 4, 8])
    results = filled(toy)
    none = Outcome(toy.experiments[0], {}, report({"a": (0, 0, 0)}))
    html = to_html(replace(results, outcomes=(none, *results.outcomes[1:])))
    assert "G in percent over eps. bph: 50 at 4, 50 at 8;" in html
    assert "matched control over eps. bph: 50 at 4, 50 at 8;" in html


def test_attacks_have_their_tables() -> None:
    toy = bench(("cats",))
    results = Results(toy, tuple(Outcome(one, {}, _attacked(0.7)) for one in toy.experiments))
    results = replace(results, outcomes=tuple(_with_sizes(one) for one in results.outcomes))
    html = to_html(results)
    assert html.index("In the worst case") < html.index("Under attack: cats, bph") < html.index("Not tested")
    assert "lora under gray for release" in html


def test_mixtures_and_filters_have_theirs_with_a_curve() -> None:
    toy = bench(("cats",))
    results = Results(toy, tuple(_with_sizes(Outcome(one, {}, _mixed((20, 80)))) for one in toy.experiments))
    html = to_html(results)
    places = [
        html.index(f"<h3>{title}: cats, {variant}</h3>")
        for variant in ("bph", "text")
        for title in ("Mixed with clean data", "What filters dropped")
    ]
    assert places == sorted(places)
    assert html.count("unprotected: 40 at 20, 10 at 80") == 2
    assert "Under attack" not in html


def _with_sizes(one: Outcome) -> Outcome:
    assert one.report is not None
    return replace(one, report=replace(one.report, provenance=report({"a": (0, 0, 0)}).provenance))


def test_tables_are_those_of_the_markdown_page_and_text_is_text() -> None:
    toy = bench((EVIL,))
    outcomes = (
        Outcome(toy.experiments[0], {}, report({EVIL: (40, 40, 20)})),
        Outcome(toy.experiments[1], {}, None, f"broke: {EVIL}"),
    )
    html = to_html(Results(replace(toy, title=EVIL), outcomes))
    assert "<script" not in html
    assert '<td class="number">50.0<br><small>' in html
    assert "broke: &lt;script&gt;" in html
