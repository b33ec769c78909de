"""The page of a benchmark: its tables say what the findings say, and its means are over what they claim to be over."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest

from mmguard.auditing.best_of import WorstCase
from mmguard.auditing.report import AuditReport, Failure
from mmguard.auditing.stats import Scores, analyse
from mmguard.bench.config import Bench, Experiment
from mmguard.bench.html import to_html
from mmguard.bench.page import means, page
from mmguard.bench.results import Outcome, Results
from mmguard.config import AuditConfig, ProtectConfig
from test_audit_report import _mixed

ITEMS = 40


def report(right: dict[str, tuple[int, int, int]], seeds: int = 3, recipes: tuple[str, ...] = ("lora",)) -> AuditReport:
    """An audit in which each attacker answers so many items of 40 rightly after clean, control and release training."""
    scores = []
    for attacker, (clean, control, release) in right.items():
        by_arm = {
            arm: np.tile((np.arange(ITEMS) < number).astype(float), (seeds, 1))
            for arm, number in (("clean", clean), ("control", control), ("release", release))
        }
        scores += [Scores(attacker, recipe, by_arm, np.zeros(ITEMS), "control") for recipe in recipes]
    findings, headline = analyse(scores, resamples=200)
    known = dict.fromkeys(("training samples", "training images", "test samples", "test images"), ITEMS)
    return AuditReport(headline, tuple(findings), provenance={**known, "seeds": list(range(seeds))})


def bench(datasets: tuple[str, ...]) -> Bench:
    one = Experiment("x", ("zoo:one",), ("a", "b"), "t", audit=AuditConfig(seeds=3), protect=ProtectConfig(rounds=7))
    variants = [replace(one, protect=replace(one.protect, variant=variant)) for variant in ("bph", "text")]
    every = [replace(variant, dataset=name) for variant in variants for name in datasets]
    return Bench(Path("configs/toy.yaml"), "Toy", tuple(every))


def rows(text: str, *beginning: str) -> list[list[str]]:
    lines = [line.strip("| ") for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.split("|")] for line in lines]
    return [line for line in cells if line[: len(beginning)] == list(beginning)]


def test_tables_and_means() -> None:
    toy = bench(("cats", "dogs"))
    # On cats, b is brittle: its control costs 20 of 40 items.
    reports = [{"a": (40, 40, 20), "b": (40, 20, 0)}, {"a": (40, 40, 30), "b": (40, 40, 10)}] * 2
    results = Results(toy, tuple(Outcome(e, {}, report(r)) for e, r in zip(toy.experiments, reports, strict=True)))
    text = page(results)
    assert text.startswith("# Toy\n\nWritten by `mmguard bench --config configs/toy.yaml`.")
    assert "Not complete" not in text
    assert "No claim" not in text
    cats, dogs, both = (rows(means(results), name, "bph")[0] for name in ("cats", "dogs", "**mean of 2**"))
    assert cats[2:4] == ["1", "1"]
    assert cats[4].startswith("50.0 (")
    assert dogs[2:4] == ["2", "0"]
    assert dogs[4].startswith("50.0 (")  # of a 25, of b 75
    assert dogs[8] == "a (lora)"
    assert both[2:4] == ["3", "1"]
    assert both[4].startswith("50.0 (")
    # Of all, b on cats included, which keeps nothing.
    assert [row[7].split(" ")[0] for row in (cats, dogs, both)] == ["0.75", "0.50", "0.62"]
    narrower = [float(cell[4].split("(")[1].split(" ")[0]) for cell in (cats, dogs, both)]
    assert narrower[2] > fmean(narrower[:2])
    brittle = rows(text.split("## cats")[1].split("## dogs")[0], "b", "text")
    assert [[*line[2:6], line[-1]] for line in brittle] == [["0.0", "100.0", "50.0", "0.0", "brittle"]]
    assert "- protect.rounds: 7" in text
    assert "protect.eps" not in text


def test_releases_of_one_setting_have_a_mean_that_goes_by_how_they_differ() -> None:
    one = bench(("cats",)).experiments[0]
    toy = replace(
        bench(("cats",)),
        experiments=tuple(replace(one, protect=replace(one.protect, seed=seed)) for seed in range(3)),
    )
    found = [{"a": (40, 40, right)} for right in (20, 24, 28)]
    results = Results(toy, tuple(Outcome(e, {}, report(r)) for e, r in zip(toy.experiments, found, strict=True)))
    (line,) = rows(means(results).split("### Means over releases")[1], "cats")
    # Lost are 50, 40 and 30 %: the standard error is 10 / sqrt(3), and Student's quantile of two degrees 4.303.
    student = 4.303 * 10 / 3**0.5
    own = [outcome.report.headline.beyond_control for outcome in results.outcomes if outcome.report]
    low, high = (fmean((100 * (getattr(one, end) - one.value)) ** 2 for one in own) for end in ("low", "high"))
    assert low > 0
    reach = 40 - (student**2 + low) ** 0.5, 40 + (student**2 + high) ** 0.5
    assert line[:4] == ["cats", "bph", "3", "40.0 ({:.1f} to {:.1f})".format(*reach)]
    assert "Means over releases" not in means(replace(results, bench=bench(("cats", "dogs"))))
    assert "Means over releases" in to_html(results)


def test_attacks_have_a_table_of_means_and_a_section() -> None:
    toy = bench(("cats",))
    plain, attacked = report({"a": (40, 40, 20)}), report({"a": (40, 40, 30)})
    under = replace(attacked.findings[0], attack="gray")
    choice = {"clean": "lora", "control": "lora", "release": "lora under gray"}
    worst = WorstCase((replace(under, attack=None, recipe="best of 2"),), (choice,), attacked.headline)
    tested = replace(plain, under_attack=(under,), worst_case=worst, not_tested=plain.not_tested[1:])
    results = Results(toy, (Outcome(toy.experiments[0], {}, tested), Outcome(toy.experiments[1], {}, plain)))
    before, after = means(results).split("### In the worst case")
    assert [line[1] for line in rows(before, "cats")] == ["bph", "text"]
    assert rows(before, "cats", "bph")[0][4].startswith("50.0 (")
    assert [line[1] for line in rows(after, "cats")] == ["bph"]
    assert rows(after, "cats", "bph")[0][4].startswith("25.0 (")
    section = page(results).split("### Under attack: cats, bph")[1]
    assert [line[2:6] for line in rows(section, "a")[:3]] == [
        ["none", "100.0", "100.0", "50.0"], ["gray", "100.0", "100.0", "75.0"], ["chosen", "100.0", "100.0", "75.0"],
    ]  # fmt: skip
    # One of the experiments does not test it.
    assert plain.not_tested[0] in page(results)
    assert "worst case" not in means(Results(toy, results.outcomes[1:]))


def test_mixtures_and_filters_have_sections_without_any_attack() -> None:
    toy = bench(("cats",))
    sizes = report({"a": (40, 40, 20)}).provenance
    mixed = replace(_mixed((20,)), provenance=sizes)
    results = Results(toy, (Outcome(toy.experiments[0], {}, mixed), Outcome(toy.experiments[1], {}, None, "broke")))
    text = page(results)
    section = text.split("### Mixed with clean data: cats, bph")[1].split("### What filters dropped: cats, bph")
    assert rows(section[0], "big", "lora", "mix-20")[0][3].startswith("40.0 (")
    assert rows(section[1], "big", "lora", "mix-20+loss-filter-20", "release") != []
    assert "Under attack" not in text


def test_same_dataset_twice_has_no_mean() -> None:
    toy = bench(("cats",))
    other = tuple(replace(one, attackers=("b",)) for one in toy.experiments)
    toy = replace(toy, experiments=toy.experiments + other)
    results = Results(toy, tuple(Outcome(one, {}, report({"a": (40, 40, 20)})) for one in toy.experiments))
    assert rows(means(results), "**mean of 2**") == []
    assert len(rows(means(results), "cats", "bph")) == 2


def test_data_with_one_and_the_same_test_has_no_mean() -> None:
    toy = bench(("cats", "dogs"))
    whole = report({"a": (40, 40, 20)})
    for tests, lines in ((("t", "t"), 0), (("t", "u"), 2)):
        named = [replace(whole, provenance={**whole.provenance, "test sha256": test}) for test in tests] * 2
        results = Results(toy, tuple(Outcome(e, {}, r) for e, r in zip(toy.experiments, named, strict=True)))
        assert len(rows(means(results), "**mean of 2**")) == lines


def test_no_mean_of_what_a_dataset_lacks() -> None:
    toy = bench(("cats", "dogs"))
    reports = [report({"a": (40, 40, 20)}), report({"a": (0, 0, 0)})] * 2  # no gain, no share
    results = Results(toy, tuple(Outcome(e, {}, r) for e, r in zip(toy.experiments, reports, strict=True)))
    mean = rows(means(results), "**mean of 2**", "bph")[0]
    assert mean[4:6] == ["–", "–"]


def test_recipes_get_a_column_where_there_are_several() -> None:
    toy = bench(("cats",))
    both = report({"a": (40, 40, 20)}, recipes=("lora", "full"))
    results = Results(toy, tuple(Outcome(one, {}, both) for one in toy.experiments))
    assert [line[:3] for line in rows(page(results), "a")[:2]] == [["a", "lora", "bph"], ["a", "full", "bph"]]


def test_what_is_missing_is_said() -> None:
    toy = bench(("cats",))
    with_failure = replace(
        report({"a": (40, 40, 20)}, seeds=1), failures=(Failure("b", "broke"),), warnings=("leaked",)
    )
    first, second = toy.experiments
    results = Results(toy, (Outcome(first, {}, with_failure), Outcome(second, {}, None, "no memory")))
    text = page(results)
    assert "**Not complete**" in text
    assert "**No claim follows** where there are fewer than 3 seeds." in text
    for line in ("- cats, bph: b: broke", "- cats, bph: warning: leaked", "- cats, text: no memory"):
        assert line in text.splitlines()
    assert not results.complete


def test_nothing_done_yet() -> None:
    toy = bench(("cats",))
    assert "No results." in page(Results(toy, ()))


@pytest.mark.parametrize("name", ["zoo:qwen3vl-tiny", "real/model"])
def test_zoo_is_no_prediction(name: str) -> None:
    toy = bench(("cats",))
    results = Results(toy, (Outcome(toy.experiments[0], {}, report({name: (40, 40, 20)})),))
    assert ("nothing here predicts" in page(results)) == name.startswith("zoo:")


def test_groups_have_means_of_their_own_and_variants_side_by_side() -> None:
    toy = bench(("cats", "dogs"))
    every = [replace(one, group=name) for name in ("gray box", "black box") for one in toy.experiments]
    # A group alone is no difference: attackers are.
    boxes = tuple(replace(one, attackers=("a",)) if one.group == "gray box" else one for one in every)
    lost = (10, 20, 30, 40, 0, 4, 8, 12)  # of 40
    found = [Outcome(one, {}, report({"a": (40, 40, 40 - n)})) for one, n in zip(boxes, lost, strict=True)]
    text = means(Results(replace(toy, experiments=boxes), tuple(found[:5] + found[6:])))
    head, *lines = rows(text.split("In full:")[0])
    assert head == ["dataset", "group", "bph", "text"]
    shares = {tuple(line[:2]): [cell.split(" ")[0] for cell in line[2:]] for line in lines}
    assert shares["cats", "gray box"] == ["0.25", "0.75"]
    assert shares["**mean of 2**", "gray box"] == ["0.38", "0.88"]
    assert shares["cats", "black box"] == ["0.00", "0.20"]
    assert shares["dogs", "black box"] == ["", "0.30"], "which has not been measured"
    assert "side by side" in to_html(Results(replace(toy, experiments=boxes), tuple(found)))
    assert "side by side" not in means(Results(toy, ()))
