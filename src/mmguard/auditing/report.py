"""An audit's result, for people (Markdown, the verdict first) and for programs (JSON)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mmguard.auditing.attacks import families
from mmguard.auditing.best_of import WorstCase
from mmguard.auditing.losses import LossCurve
from mmguard.auditing.markdown import bullets, facts, table
from mmguard.auditing.stats import MIN_SEEDS, Estimate, Finding, Headline, Marginal, in_percent

NOT_TESTED: dict[str, frozenset[str]] = {
    "compression of the images as JPEG": frozenset({"jpeg"}),
    "compression of the images as WebP": frozenset({"webp"}),
    "cropping of the images": frozenset({"rcp"}),
    "resizing of the images": frozenset({"resize"}),
    "filters on the images: blur, median, denoising": frozenset(
        {"blur", "median", "bilateral", "cleaner", "denoise", "tv"}
    ),
    "grayscale": frozenset({"gray"}),
    "fewer levels of colour": frozenset({"bits"}),
    "augmentation of the images, drawn anew in every epoch": frozenset({"ueraser", "randaugment"}),
    "purification of the images by diffusion models": frozenset({"diffusion"}),
    "purification of the images by autoencoders": frozenset({"vae"}),
    "purification that was learned from leaked originals": frozenset(),
    "changes of punctuation": frozenset({"punct"}),
    "changes of case": frozenset({"case"}),
    "changes of white space": frozenset({"space"}),
    "questions cut at random": frozenset({"drop"}),
    "questions cut at their end": frozenset({"tail", "last"}),
    "removal of the inserted words by spelling or vocabulary": frozenset({"spell", "vocab"}),
    "removal of the inserted words by what the questions have in common": frozenset({"template", "window"}),
    "removal of the words that go with an answer": frozenset({"telling", "overlap"}),
    "removal of the inserted words by perplexity": frozenset({"perplexity"}),
    "paraphrase of the questions": frozenset({"paraphrase"}),
    "translation of the questions, and removal of the inserted words by hand": frozenset(),
    "filters that drop samples of unusual training loss from among clean ones": frozenset({"loss-filter"}),
    "filters that drop samples of unusual features from among clean ones": frozenset({"feature-filter"}),
    "filters that drop near duplicates": frozenset({"dedup"}),
    "detectors of protected samples that learned from leaked originals": frozenset({"leaked-detector"}),
    "training for less or more time": frozenset({"epochs"}),
    "other learning rates": frozenset({"lr"}),
    "stopping early": frozenset({"early-stop"}),
    "adversarial training on pixels": frozenset({"adversarial-pixel"}),
    "adversarial training on image features": frozenset({"adversarial-feature"}),
    "training of the projector before that of other weights": frozenset({"staged-unfreezing"}),
    "mixing the release with clean data of the same kind": frozenset({"mix"}),
    "attackers other than those in the table: other models, above all larger ones, other recipes, and attacks of "
    "other kinds or strengths": frozenset(),
    "use without training: a model that is merely shown a protected image still understands it": frozenset(),
}
"""What an audit does not test, each with the families of attacks of which one is enough to test it."""


_TELL_APART = frozenset({"loss-filter", "feature-filter"})
"""Where all samples are protected these have nothing to find: they are tested on mixtures only."""


def not_tested(attacks: Iterable[str]) -> tuple[str, ...]:
    """What remains untested once these attacks were made."""
    parts = [frozenset(families(name)) for name in attacks]
    made = {family for one in parts for family in (one if "mix" in one else one - _TELL_APART)}
    return tuple(line for line, testing in NOT_TESTED.items() if not testing & made)


@dataclass(frozen=True)
class Failure:
    """An attacker that could not be audited, under all recipes or one, without attacks or under one."""

    attacker: str
    reason: str
    attack: str | None = None
    recipe: str | None = None
    """None where the attacker failed as such; the first audits did not tell."""


@dataclass(frozen=True)
class Filtered:
    """What a filter did to the training data of an arm: means over seeds."""

    attacker: str
    recipe: str
    attack: str
    arm: str
    dropped: float
    """Share of the samples."""
    auc: float | None
    """How well it tells changed samples from clean ones; None where the data is not a mixture of both."""


def commits_of(provenance: Mapping[str, Any]) -> tuple[str, ...]:
    """What the runs of an audit were made with; the first audits named only what gathered them."""
    return tuple(provenance.get("commits") or [provenance.get("commit") or "unknown"])


@dataclass(frozen=True)
class AuditReport:
    """Everything that an audit found out. Accuracies, means of the items' scores, are shares from 0 to 1."""

    headline: Headline
    findings: tuple[Finding, ...]
    """Without attacks on the data."""
    under_attack: tuple[Finding, ...] = ()
    """All arms under the same attack, of every attack, attacker and recipe."""
    worst_case: WorstCase | None = None
    """Attackers who choose the best of all that; None without attacks."""
    mixtures: tuple[Marginal, ...] = ()
    """What the data adds for attackers who have clean data too. No part of the worst case."""
    sifted: tuple[Filtered, ...] = ()
    """What filters dropped."""
    failures: tuple[Failure, ...] = ()
    warnings: tuple[str, ...] = ()
    not_tested: tuple[str, ...] = tuple(NOT_TESTED)
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

    def to_markdown(self, provenance: bool = True) -> str:
        """The report as Markdown: verdict, tables, what was not tested, and with what it was made."""
        parts = ["# Audit", self.verdict, *(f"**Warning:** {warning}" for warning in self.warnings)]
        if self.findings:
            parts += [table(*findings_table(self.findings)), LEGEND]
        parts += [section.to_markdown(f"## {section.title}") for section in sections(self)]
        if self.failures:
            parts += [
                "## What failed",
                bullets(f"{one.attacker}: {one.reason}" for one in self.failures),
            ]
        parts += ["## Not tested, and not protected against", bullets(self.not_tested)]
        if provenance:
            parts += ["## Provenance", facts(self.provenance)]
        return "\n\n".join(parts) + "\n"

    def write(self, folder: Path) -> None:
        """Writes `report.json` and `report.md` into a folder, which is made if need be."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_text(self.to_json(), encoding="utf-8")
        (folder / "report.md").write_text(self.to_markdown(), encoding="utf-8")


@dataclass(frozen=True)
class Section:
    """A table of a report, with its words."""

    title: str
    head: list[str]
    lines: list[list[str]]
    legend: str
    remarks: tuple[str, ...] = ()
    """What is to be said of single lines."""

    def to_markdown(self, heading: str) -> str:
        """The section under a heading: table, remarks, legend."""
        remarks = [bullets(self.remarks)] if self.remarks else []
        return "\n\n".join([heading, table(self.head, self.lines), *remarks, self.legend])


UNDER_ATTACK, BEST_RECIPE = "Under attack", "Where attackers choose the recipe"
MIXTURES, FILTERS = "Mixed with clean data", "What filters dropped"


def sections(report: AuditReport) -> Iterator[Section]:
    """What was found besides: under attack, of mixtures and of filters, of each only where there was one."""
    if report.under_attack or report.worst_case:
        yield Section(
            UNDER_ATTACK if report.under_attack else BEST_RECIPE,
            *_attack_table(report),
            ATTACK_LEGEND,
            tuple(_choices(report)),
        )
    if report.mixtures:
        yield Section(MIXTURES, *_mixture_table(report), MIXTURE_LEGEND)
    if report.sifted:
        yield Section(FILTERS, *_filter_table(report), FILTER_LEGEND)


LEGEND = (
    "Accuracies in percent on clean test data, means over seeds (and of partial scores, where the task's metric "
    "gives them); differences in points with 95% intervals over seeds and test items, as wide as so few seeds make "
    "them. *Drop*: clean − release. *Control cost*: clean − matched control, "
    "which changes as much at random: words in the same places, noise anywhere in the picture. "
    "*Beyond control*: control − release. *Gain removed*: "
    "beyond control, in percent of what fine-tuning on the control gains over zero-shot; – where that gain "
    "is not clearly positive. *Brittle*: the control alone costs more than 5 points, so this attacker fails "
    "at any change; it is left out of the verdict. *Doubtful*: it costs 3 to 5 points, or what clean data teaches is "
    "not clearly above 0. *Untaught*: clean data teaches it less than 2 points; it is left out, too. *Unjudged*: too "
    "few seeds, or no control."
)


def _verdict(report: AuditReport) -> str:
    headline = report.worst_case.headline if report.worst_case else report.headline
    few = any(finding.seeds < MIN_SEEDS for finding in report.findings)
    untaught = headline.untaught > 0
    if not report.findings:
        text = "**No result.** No attacker finished, so nothing can be said about this release."
    elif headline.beyond_control is None and headline.brittle:
        which = "Every attacker is brittle or untaught" if untaught else "Every attacker is brittle"
        text = (
            f"**No result.** {which}: changes made at random already cost {'some' if untaught else 'it'} more than 5 "
            "points, so what the protection adds cannot be told. Train longer, or take sturdier attackers."
        )
    elif headline.beyond_control is None and untaught:
        text = (
            "**No result.** Clean data taught the attackers less than 2 points: train longer, or take others; or set "
            "`metric` in the rows of the test, if replies can be right in other words than the answers."
        )
    elif headline.beyond_control is None:
        text = "**No result.** The matched control was not run, so what the protection adds cannot be told."
    else:
        text = _effect(report, headline, headline.beyond_control)
        if report.worst_case and report.headline.beyond_control:
            without = "Without attacks" if report.under_attack else "In the mean over recipes"
            text += f" {without} they lose {_points(report.headline.beyond_control)}."
    if report.findings and report.failures:
        text += f" **Not counted**, since it failed: {_failed(report.failures)}."
    if few:
        text += f" **No claim follows**: that takes at least {MIN_SEEDS} seeds."
    if any(finding.attacker.startswith("zoo:") for finding in report.findings):
        text += " The zoo's tiny models demonstrate the method; they do not predict how large models would fare."
    return text


def _failed(failures: Iterable[Failure]) -> str:
    """Attackers, recipes and attacks, each once: `a; b (lora) under gray, vae:x`."""
    by_attacker: dict[str, list[str]] = {}
    for one in failures:
        name = f"{one.attacker} ({one.recipe})" if one.recipe else one.attacker
        by_attacker.setdefault(name, []).append(one.attack or "")
    return "; ".join(
        attacker if "" in attacks else f"{attacker} under {', '.join(dict.fromkeys(attacks))}"
        for attacker, attacks in by_attacker.items()
    )


def clearly_lose(headline: Headline) -> bool:
    """Whether attackers clearly lose more than to the control, with brittle ones counted and without.

    Who is brittle is told by the same control, which is noisy: leaving them out favours the protection a little.
    """
    found = headline.beyond_control, headline.all_beyond_control
    return all(one is not None and one.low > 0 for one in found)


def _effect(report: AuditReport, headline: Headline, beyond: Estimate) -> str:
    several = headline.counted > 1
    of_gain, apart = _of_gain(headline)
    mean = f", in the mean over {headline.counted} attackers" if several else ""
    amount = f"{_points(beyond)} beyond the matched control{of_gain}{mean}{_conditions(report)}"
    rest = apart + (f" The attacker that lost least is {headline.strongest}." if several else "")
    rest += _left_out(headline)
    if clearly_lose(headline):
        return f"{'**Attackers lose**' if headline.claim else 'In these few runs attackers lost'} {amount}.{rest}"
    if beyond.low > 0:
        return f"**No clear evidence of protection**: attackers lose {amount}.{rest} That is not clearly above 0."
    if beyond.high < 0 and headline.claim:
        gained = Estimate(-beyond.value, -beyond.high, -beyond.low)
        return (
            "**No evidence of protection**: attackers learn more from the release than from the matched "
            f"control, by {_points(gained)}{mean}{_conditions(report)}.{rest}"
        )
    return f"**No evidence of protection**: attackers lose {amount}.{rest}"


def _of_gain(headline: Headline) -> tuple[str, str]:
    """What is lost as a share of the gain: as a clause where all have one, else as a sentence on those that do."""
    share = headline.gain_removed
    if share is None:
        return "", ""
    value, low, high = (f"{100 * number:.0f}" for number in (share.value, share.low, share.high))
    percent = f"{value}% of what fine-tuning gains ({low} to {high}%)"
    if headline.with_gain == headline.counted:
        return f", {percent}", ""
    if headline.with_gain == 1:
        return "", f" The only one of them that clearly gains loses {percent}."
    return "", f" The {headline.with_gain} of them that clearly gain lose {percent} in the mean."


def _conditions(report: AuditReport) -> str:
    """What attackers do of whom the headline tells."""
    if report.worst_case and report.under_attack:
        return (
            ", in the worst case: if each chooses the recipe and the attack that serve it best, of those tried, "
            "mixtures apart"
        )
    if report.under_attack:
        attacks = "the attacks are judged apart, with too few test images to choose one by"
    elif any(one.attack for one in report.failures):
        attacks = "no attack was carried out"
    else:
        attacks = f"no attack{' but mixtures' if report.mixtures else ''} was tried"
    who = "in the worst case: if each chooses the recipe that serves it best and trains" if report.worst_case else ""
    return f", {who or 'if they train'} on the release as it is; {attacks}"


def _left_out(headline: Headline) -> str:
    """Who is in no mean."""
    left = []
    if headline.untaught:
        left.append(f"{headline.untaught} untaught by clean data")
    if headline.brittle and (of_all := headline.all_beyond_control):
        left.append(f"{headline.brittle} brittle; with the brittle counted it is {_points(of_all)}")
    return f" Left out: {', and '.join(left)}." if left else ""


ATTACK_LEGEND = (
    "All arms of a row are under the same attack on the training data or the training; the test is clean. "
    "`early-stop` chooses its weights on one half of the test images, and its rows are accuracies on the other. "
    "*Best of*: the attacker chooses recipe and attack on one half of the test images, for each arm by itself, and is "
    "judged on the other half."
)


def _attack_table(report: AuditReport) -> tuple[list[str], list[list[str]]]:
    tried = sorted((*report.findings, *report.under_attack), key=lambda one: one.attacker)
    worst = report.worst_case
    lines = [_attack_row(one.attack or "none", one) for one in tried]
    lines += [_attack_row("chosen", one) for one in (worst.findings if worst else ())]
    head = ["attacker", "recipe", "attack", "clean", "control", "release", "beyond control", "gain removed", "status"]
    return head, lines


MIXTURE_LEGEND = (
    "A thief who has clean data of the same kind trains on it and on the stolen data; *mixture* names the percentage "
    "that is clean. *Clean part alone*: accuracy of training on that part alone, repeated so that it takes as many "
    "steps. The other columns say what the rest of the data adds to it, in points: left unprotected, changed at random "
    "(control), and protected (release): perfectly protected data adds 0. *Beyond control*: control − release."
)

FILTER_LEGEND = (
    "*Dropped*: percent of the training samples. *AUC*: how well what the filter goes by tells protected (in the "
    "control, randomly changed) samples from clean ones, where data is a mixture of both, whichever look more "
    "suspicious: 1 is perfect; chance comes to a little more than 0.5, or to about 0.54 in earlier results, which took "
    "the better side in every seed by itself. Means over seeds."
)


def _mixture_table(report: AuditReport) -> tuple[list[str], list[list[str]]]:
    head = [
        "attacker", "recipe", "mixture", "clean part alone", "+ unprotected", "+ control", "+ release",
        "beyond control",
    ]  # fmt: skip
    lines = [
        [
            one.attacker,
            one.recipe,
            one.attack,
            *map(in_percent, (one.alone, *(one.added[arm] for arm in ("clean", one.matched, "release")))),
            in_percent(one.beyond_control),
        ]
        for one in report.mixtures
    ]
    return head, lines


def _filter_table(report: AuditReport) -> tuple[list[str], list[list[str]]]:
    lines = [
        [
            one.attacker,
            one.recipe,
            one.attack,
            one.arm,
            f"{100 * one.dropped:.0f}",
            "–" if one.auc is None else f"{one.auc:.2f}",
        ]
        for one in report.sifted
    ]
    return ["attacker", "recipe", "attack", "data", "dropped", "AUC"], lines


def _choices(report: AuditReport) -> list[str]:
    """What attackers chose who could choose."""
    worst = report.worst_case
    return [
        f"{finding.attacker} chose "
        + ", ".join(f"{what} for {'the control' if arm == finding.matched else arm}" for arm, what in choice.items())
        for finding, choice in (zip(worst.findings, worst.choices, strict=True) if worst else ())
    ]


def _attack_row(attack: str, finding: Finding) -> list[str]:
    return [
        finding.attacker,
        finding.recipe,
        attack,
        *(f"{100 * finding.accuracy[arm]:.1f}" for arm in ("clean", finding.matched, "release")),
        in_percent(finding.beyond_control),
        in_percent(finding.gain_removed),
        finding.status,
    ]


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
                    in_percent(one)
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


def _points(estimate: Estimate) -> str:
    ends = f"{100 * estimate.low:.1f} to {100 * estimate.high:.1f}"
    return f"{100 * estimate.value:.1f} points (95% interval {ends})"
