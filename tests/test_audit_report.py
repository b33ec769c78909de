"""The report says what was found, how surely, and what was not tested."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from mmguard.auditing.best_of import worst_case
from mmguard.auditing.report import NOT_TESTED, AuditReport, Failure, Filtered, not_tested
from mmguard.auditing.stats import Scores, analyse, marginal_values


def _arm(share: float, seeds: int = 3) -> np.ndarray:
    return np.tile(np.arange(200) < round(200 * share), (seeds, 1))


def _report(release: float, control: float = 0.8, seeds: int = 3, name: str = "big", zero=0.2, **more) -> AuditReport:
    return _of((release, control, zero), seeds=seeds, name=name, **more)


def _of(*attackers: tuple[float, float, float], seeds: int = 3, name: str = "big", **more) -> AuditReport:
    """Of attackers that are right on 80 percent after clean data, by what release, control and nothing teach them."""
    scores = []
    for release, control, zero in attackers:
        by_arm = {"clean": _arm(0.8, seeds), "release": _arm(release, seeds), "control": _arm(control, seeds)}
        scores.append(Scores(name, "lora", by_arm, _arm(zero)[0], "control"))
    findings, headline = analyse(scores)
    return AuditReport(headline, tuple(findings), **more)


def test_protection():
    report = _report(0.5)
    assert report.verdict.startswith("**Attackers lose** 30.0 points (95% interval ")
    assert "50% of what fine-tuning gains" in report.verdict
    assert "No claim" not in report.verdict


def test_no_evidence():
    assert _report(0.8).verdict.startswith("**No evidence of protection**: attackers lose 0.0 points")


def test_worse_than_the_control():
    verdict = _report(0.9).verdict
    assert verdict.startswith("**No evidence of protection**: attackers learn more")
    assert "by 10.0 points" in verdict


def test_a_drop_that_the_control_shares_is_no_protection():
    # The release costs 4 points, but so does the control.
    assert _report(0.76, control=0.76).verdict.startswith("**No evidence of protection**")


@pytest.mark.parametrize("seeds", [1, 2])
def test_few_seeds(seeds):
    verdict = _report(0.5, seeds=seeds).verdict
    assert "Attackers lose**" not in verdict
    assert "**No claim follows**: that takes at least 3 seeds" in verdict


def test_only_brittle_attackers():
    report = _report(0.3, control=0.6)
    assert report.verdict.startswith("**No result.** Every attacker is brittle")
    assert "| brittle |" in report.to_markdown()


def test_who_is_untaught_is_not_called_brittle():
    brittle, untaught = (0.3, 0.6, 0.2), (0.8, 0.8, 0.8)
    assert _of(untaught).verdict.startswith("**No result.** Clean data taught the attackers less than 2 points")
    assert _of(brittle, untaught).verdict.startswith("**No result.** Every attacker is brittle or untaught:")
    assert " Left out: 1 untaught by clean data." in _of((0.5, 0.8, 0.2), untaught).verdict


def test_no_claim_where_all_attackers_together_do_not_clearly_lose():
    lost, brittle, hardened = (0.5, 0.8, 0.2), (0.3, 0.7, 0.2), (0.8, 0.5, 0.2)
    assert _of(lost, brittle).verdict.startswith("**Attackers lose** 30.0 points")
    verdict = _of(lost, hardened).verdict
    assert verdict.startswith("**No clear evidence of protection**: attackers lose 30.0 points")
    assert " Left out: 1 brittle; with the brittle counted it is 0.0 points (" in verdict
    assert verdict.endswith(" That is not clearly above 0.")


def test_a_share_of_the_gain_is_that_of_all_attackers_or_said_of_whose_it_is():
    all_gain, of_one = _of((0.5, 0.8, 0.2), (0.65, 0.8, 0.2)).verdict, _of((0.5, 0.8, 0.2), (0.6, 0.76, 0.75)).verdict
    assert "matched control, 38% of what fine-tuning gains (" in all_gain
    assert "beyond the matched control, in the mean over 2 attackers," in of_one
    assert " The only one of them that clearly gains loses 50% of what fine-tuning gains (" in of_one


def test_the_verdict_says_which_attacks_it_is_about():
    assert ", if they train on the release as it is; no attack was tried." in _report(0.5).verdict
    assert "; no attack but mixtures was tried." in _mixed((20, 80)).verdict
    failed = replace(_report(0.5), failures=(Failure("c", "broke", "gray"),))
    assert "; no attack was carried out." in failed.verdict
    attacked = _attacked(0.7)
    assert "that serve it best, of those tried, mixtures apart." in attacked.verdict
    assert "; the attacks are judged apart" in replace(attacked, worst_case=None).verdict


def test_no_attacker_finished():
    findings, headline = analyse([])
    report = AuditReport(headline, tuple(findings), failures=(Failure("x/y", "SurrogateError: no such model"),))
    assert report.verdict.startswith("**No result.** No attacker finished")
    assert "- x/y: SurrogateError: no such model" in report.to_markdown()


def test_the_verdict_names_what_failed():
    report = replace(
        _report(0.5),
        failures=(
            Failure("b", "broke"), Failure("c", "broke", "gray"), Failure("c", "broke, too", "vae:x"),
            Failure("big", "broke", None, "full"), Failure("big", "broke", "gray", "lora"),
        ),
    )  # fmt: skip
    assert "since it failed: b; c under gray, vae:x; big (full); big (lora) under gray." in report.verdict


def test_zoo_attackers_do_not_predict_large_ones():
    assert "do not predict how large models" in _report(0.5, name="zoo:llava-tiny").verdict
    assert "do not predict" not in _report(0.5, name="llava-hf/llava-1.5-7b-hf").verdict


def test_undefined_share_is_shown_as_missing():
    report = _report(0.2, control=0.8, zero=0.8)
    row = next(line for line in report.to_markdown().splitlines() if line.startswith("| big"))
    assert row.split(" | ")[-2] == "–"
    assert "% of what fine-tuning" not in report.verdict
    assert json.loads(report.to_json())["findings"][0]["gain_removed"] is None


def test_markdown_has_all_parts_in_order():
    report = _report(
        0.5, warnings=("two test images leaked",), provenance={"versions": {"trl": "1.0"}, "seeds": [0, 1]}
    )
    text = report.to_markdown()
    parts = [
        "# Audit",
        report.verdict,
        "two test images leaked",
        "| attacker | recipe | zero-shot | clean | release | control | drop |",
        "| big | lora | 20.0 | 80.0 | 50.0 | 80.0 | 30.0 (",
        *NOT_TESTED,
        "versions: trl 1.0",
        "seeds: [0, 1]",
    ]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


def _attacked(under_gray: float) -> AuditReport:
    """The release leaves 50 of 80 points, and so many more under grayscale."""
    every = [(None, 0.5), ("gray", under_gray), ("jpeg-50", 0.4)]
    options = []
    for attack, release in every:
        shares = {"clean": 0.8, "release": release, "control": 0.8}
        # Every fifth item and so on: the same in both halves.
        by_arm = {arm: np.tile(np.arange(200) % 20 < 20 * share, (3, 1)).astype(float) for arm, share in shares.items()}
        options.append(Scores("big", "lora", by_arm, (np.arange(200) % 20 < 4) * 1.0, "control", attack, "valid"))
    findings, headline = analyse(options[:1])
    under_attack, _ = analyse(options[1:])
    worst = worst_case(options, list(np.arange(200) // 20))
    return AuditReport(
        headline, tuple(findings), under_attack=tuple(under_attack), worst_case=worst,
        not_tested=not_tested(["gray", "jpeg-50"]),
    )  # fmt: skip


def _mixed(percents: tuple[int, ...]) -> AuditReport:
    """What is left of 80 points adds, unprotected, half of what is not clean; protected, nothing."""

    def arm(share: float) -> np.ndarray:
        return np.tile(np.arange(200) < round(200 * share), (3, 1)).astype(float)

    scores = []
    for percent in percents:
        alone = 0.8 - (100 - percent) / 200
        by_arm = {"clean": arm(0.8), "release": arm(alone), "control": arm(0.8), "clean-part": arm(alone)}
        scores.append(Scores("big", "lora", by_arm, arm(0.1)[0], "control", f"mix-{percent}"))
    filtered = Filtered("big", "lora", "mix-20+loss-filter-20", "release", 0.2, 0.75)
    return replace(_report(0.5), mixtures=tuple(marginal_values(scores, resamples=200)), sifted=(filtered,))


def test_mixtures_and_filters_have_sections() -> None:
    text = _mixed((20, 80)).to_markdown()
    places = [text.index(part) for part in ("## Mixed with clean data", "## What filters dropped", "## Not tested")]
    assert places == sorted(places)
    lines = [[cell.split(" (")[0].strip() for cell in line.split("|")[3:8]] for line in text.splitlines()
             if line.startswith("| big | lora | mix-")]  # fmt: skip
    assert lines[:2] == [["mix-20", "40.0", "40.0", "40.0", "0.0"], ["mix-80", "70.0", "10.0", "10.0", "0.0"]]
    assert "| big | lora | mix-20+loss-filter-20 | release | 20 | 0.75 |" in text
    assert "## Under attack" not in text


def test_the_worst_case_is_the_verdict():
    verdict = _attacked(0.7).verdict
    assert verdict.startswith("**Attackers lose** 10.0 points (95% interval ")
    assert "17% of what fine-tuning gains" in verdict
    assert "in the worst case: if each chooses the recipe and the attack that serve it best" in verdict
    assert verdict.endswith("Without attacks they lose 30.0 points (95% interval 23.5 to 36.5).")
    assert _attacked(0.8).verdict.startswith("**No evidence of protection**: attackers lose 0.0 points")


def test_attacks_have_a_section_of_their_own():
    text = _attacked(0.7).to_markdown()
    section = text[text.index("## Under attack") : text.index("## Not tested")]
    cells = [
        [cell.strip() for cell in line.strip("| ").split("|")] for line in section.splitlines() if line[:5] == "| big"
    ]
    assert [line[2:6] for line in cells] == [
        ["none", "80.0", "80.0", "50.0"],
        ["gray", "80.0", "80.0", "70.0"],
        ["jpeg-50", "80.0", "80.0", "40.0"],
        ["chosen", "80.0", "80.0", "70.0"],
    ]
    assert [line[6].split(" ")[0] for line in cells] == ["30.0", "10.0", "40.0", "10.0"]
    assert "- big chose lora for clean, lora for the control, lora under gray for release" in section
    assert "grayscale" not in text[text.index("## Not tested") :]
    assert "## Under attack" not in _report(0.5).to_markdown()


def test_attacks_in_json():
    stored = json.loads(_attacked(0.7).to_json())
    assert [one["attack"] for one in stored["under_attack"]] == ["gray", "jpeg-50"]
    assert stored["findings"][0]["attack"] is None
    assert stored["worst_case"]["choices"][0]["release"] == "lora under gray"
    assert stored["worst_case"]["headline"]["beyond_control"]["value"] == pytest.approx(0.1)
    assert json.loads(_report(0.5).to_json())["worst_case"] is None


def test_write(tmp_path):
    report = _report(0.5)
    report.write(tmp_path / "new" / "folder")
    stored = json.loads((tmp_path / "new" / "folder" / "report.json").read_text(encoding="utf-8"))
    assert stored == report.to_dict()
    assert stored["verdict"] == report.verdict
    assert stored["findings"][0]["accuracy"] == pytest.approx({"clean": 0.8, "release": 0.5, "control": 0.8})
    assert stored["headline"]["beyond_control"]["value"] == pytest.approx(0.3)
    assert (tmp_path / "new" / "folder" / "report.md").read_text(encoding="utf-8") == report.to_markdown()
