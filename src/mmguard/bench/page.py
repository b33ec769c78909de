"""A benchmark's results as a Markdown page: means first, then a table of all attackers for each dataset."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from mmguard.auditing.markdown import bullets, table
from mmguard.auditing.report import AuditReport, commits_of, sections
from mmguard.auditing.stats import (
    MIN_SEEDS,
    Estimate,
    Finding,
    Headline,
    in_percent,
    mean_of_independent,
    mean_of_repetitions,
)
from mmguard.bench.config import Experiment, default_settings, plain
from mmguard.bench.results import Outcome, Results

LEGEND = (
    "Accuracies in percent on clean test data, means over seeds; differences in points with 95 % intervals over seeds "
    "and test items, as wide as so few seeds make them. *Control*: what the release changes is changed as much at "
    "random: noise for `image` and `mislead`, words for `text`, both for the others. *Drop*: clean − release. *Control "
    "cost*: clean − control; above 5 points the attacker is *brittle*, and its numbers are no evidence. *Beyond "
    "control*: control − release. *G*: the share of the fine-tuning gain that the release removes beyond the control; "
    "*of all* counts brittle attackers, too. Each row is one release: what another run of the same protection would "
    "have come to, with another seed, the intervals do not say."
)
_ZOO = (
    "The zoo's tiny models demonstrate the method; nothing here predicts how large models fare. Random words and noise "
    "were part of their pretraining, so that controls cost them little; and all were pretrained on the same kind of "
    "drawings, surrogates and attackers alike: a black box here is another architecture, not other knowledge."
)


def page(results: Results) -> str:
    """All of it: means, tables, what failed, what was not tested, and what it was made with."""
    parts = [f"# {results.bench.title}", introduction(results), means(results)]
    for dataset, sizes, head, lines in findings(results):
        parts += [f"## {dataset}", sizes, table(head, lines)]
        for label, report in reports(results, dataset):
            parts += [section.to_markdown(f"### {section.title}: {label}") for section in sections(report)]
    if failed := failures(results):
        parts += ["## Failures and warnings", bullets(failed)]
    if untested := not_tested(results):
        parts += ["## Not tested, and not protected against", bullets(untested)]
    return "\n\n".join([*parts, "## Made with", bullets(provenance(results))]) + "\n"


def means(results: Results) -> str:
    """The headlines: `means_table` and, where attacks were made, `worst_table` under their headings."""
    head, lines = means_table(results)
    parts = ["## Means over attackers that are not brittle"]
    if (compared := variants_table(head, lines))[1]:
        parts += ["G, variants side by side:", table(*compared), "In full:"]
    parts.append(table(head, lines) if lines else "No results.")
    if (repeated := releases_table(results))[1]:
        parts += ["### Means over releases that differ by their seed alone", table(*repeated)]
    if (worst := worst_table(results))[1]:
        parts += ["### In the worst case, where each chooses the best recipe and attack", table(*worst)]
    return "\n\n".join(parts)


def means_table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Head and lines: for each setting and dataset the mean over attackers that are not brittle.

    Where there are several datasets, their mean follows, each counting the same.
    """
    return _means(results, [(one, report, report.headline) for one, report in finished(results)])


def variants_table(head: list[str], lines: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """G of `means_table`, whose head and lines are given, variants side by side; nothing where there are no groups.

    A cell that no attacker counts for, since all are brittle or none gains anything, is a dash; what was not measured
    is empty.
    """
    if "group" not in head:
        return [], []
    variant, value = head.index("variant"), head.index("G")
    rest = [place for place in range(head.index("attackers")) if place != variant]
    shares = {(*(line[place] for place in rest), line[variant]): line[value] for line in lines}
    variants = list(dict.fromkeys(line[variant] for line in lines))
    rows = dict.fromkeys(tuple(line[place] for place in rest) for line in lines)
    filled = [[*row, *(shares.get((*row, one), "") for one in variants)] for row in rows]
    return [*(head[place] for place in rest), *variants], filled


def releases_table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Head and lines: for each dataset and setting that was protected with several seeds, the mean over releases.

    Intervals go by how releases differ, and by what is uncertain of each: `mean_of_repetitions`.
    """
    columns = {key: name for key, name in results.bench.columns.items() if key != "protect.seed"}
    groups: dict[tuple[str, ...], list[tuple[Estimate, Estimate]]] = {}
    for one, report in finished(results):
        lost, gain = report.headline.beyond_control, report.headline.gain_removed
        if lost is not None and gain is not None:
            setting = one.experiment.dataset, *_cells(one.experiment, columns)
            groups.setdefault(setting, []).append((lost, gain))
    lines = []
    if "protect.seed" in results.bench.columns:
        for setting, found in groups.items():
            if len(found) > 1:
                lost_, gain_ = (mean_of_repetitions(values) for values in zip(*found, strict=True))
                lines.append([*setting, str(len(found)), in_percent(lost_), _share(gain_)])
    return ["dataset", *columns.values(), "releases", "beyond control", "G"], lines


def worst_table(results: Results) -> tuple[list[str], list[list[str]]]:
    """The same of attackers who choose the best recipe and attack; no lines where no attacks were made."""
    return _means(
        results, [(one, report, report.worst_case.headline) for one, report in finished(results) if report.worst_case]
    )


def _means(
    results: Results, heads: Sequence[tuple[Outcome, AuditReport, Headline]]
) -> tuple[list[str], list[list[str]]]:
    columns = results.bench.columns
    groups: dict[tuple[str, ...], list[tuple[str, str, Headline]]] = {}
    for one, report, head in heads:
        dataset = one.experiment.dataset
        test = str(report.provenance.get("test sha256", dataset))
        groups.setdefault(_cells(one.experiment, columns), []).append((dataset, test, head))
    lines = []
    for setting, members in groups.items():
        rows = [(dataset, head) for dataset, _, head in members]
        # Answers to one and the same test are not independent.
        if len(members) > 1 and len({test for _, test, _ in members}) == len(members):
            rows.append((f"**mean of {len(members)}**", _over([head for *_, head in members])))
        for dataset, head in rows:
            points = in_percent(head.beyond_control), in_percent(head.all_beyond_control)
            shares = _share(head.gain_removed), _share(head.all_gain_removed)
            counts = str(head.counted), str(head.brittle)
            lines.append([dataset, *setting, *counts, *points, *shares, head.strongest or "–"])
    names = ["dataset", *columns.values(), "attackers", "brittle", "beyond control", "beyond control of all"]
    return [*names, "G", "G of all", "lost least"], lines


_Done = Sequence[tuple[Outcome, AuditReport]]


def finished(results: Results) -> _Done:
    """The experiments that have a report, with it."""
    return [(one, one.report) for one in results.outcomes if one.report is not None]


def not_tested(results: Results) -> tuple[str, ...]:
    """What at least one of the experiments does not test."""
    return tuple(dict.fromkeys(line for _, report in finished(results) for line in report.not_tested))


def introduction(results: Results) -> str:
    """What the numbers are, and what they are not."""
    return " ".join([f"Written by `mmguard bench --config {results.bench.path}`.", *caveats(results), LEGEND])


def caveats(results: Results) -> list[str]:
    """What stands between these results and a conclusion."""
    made = [report for _, report in finished(results)]
    sentences = []
    if not results.complete:
        sentences.append("**Not complete**: experiments or attackers are missing.")
    if any(finding.seeds < MIN_SEEDS for report in made for finding in report.findings):
        sentences.append(f"**No claim follows** where there are fewer than {MIN_SEEDS} seeds.")
    if any(finding.attacker.startswith("zoo:") for report in made for finding in report.findings):
        sentences.append(_ZOO)
    return sentences


def _over(heads: Sequence[Headline]) -> Headline:
    """The mean over datasets; of what one of them lacks there is none."""

    def mean(found: Sequence[Estimate | None]) -> Estimate | None:
        there = [one for one in found if one is not None]
        return mean_of_independent(there) if len(there) == len(found) else None

    return Headline(
        counted=sum(head.counted for head in heads),
        brittle=sum(head.brittle for head in heads),
        untaught=sum(head.untaught for head in heads),
        beyond_control=mean([head.beyond_control for head in heads]),
        gain_removed=mean([head.gain_removed for head in heads]),
        with_gain=sum(head.with_gain for head in heads),
        all_beyond_control=mean([head.all_beyond_control for head in heads]),
        all_gain_removed=mean([head.all_gain_removed for head in heads]),
        strongest=None,
        claim=all(head.claim for head in heads),
    )


def findings(results: Results) -> Iterator[tuple[str, str, list[str], list[list[str]]]]:
    """For each dataset its name, the sizes of its parts, and head and lines of the table of all attackers."""
    every = finished(results)
    for dataset in dict.fromkeys(one.experiment.dataset for one, _ in every):
        of_it = [(one, report) for one, report in every if one.experiment.dataset == dataset]
        yield dataset, _sizes(of_it[0][1]), *_findings(results, of_it)


def reports(results: Results, dataset: str) -> Iterator[tuple[str, AuditReport]]:
    """The reports on a dataset, each with what tells its experiment from the others."""
    for one, report in finished(results):
        if one.experiment.dataset == dataset:
            yield results.bench.label(one.experiment), report


def _findings(results: Results, done: _Done) -> tuple[list[str], list[list[str]]]:
    columns = results.bench.columns
    recipes = {finding.recipe for _, report in done for finding in report.findings}
    lines = []
    for one, report in done:
        for finding in report.findings:
            recipe = [finding.recipe] * (len(recipes) > 1)
            lines.append([finding.attacker, *recipe, *_cells(one.experiment, columns), *_numbers(finding)])
    head = ["attacker", *["recipe"] * (len(recipes) > 1), *columns.values(), "zero-shot", "clean", "control", "release"]
    return [*head, "drop", "control cost", "beyond control", "G", "status"], lines


def _numbers(finding: Finding) -> list[str]:
    accuracies = (finding.zero_shot, *(finding.accuracy[arm] for arm in ("clean", finding.matched, "release")))
    return [
        *(f"{100 * accuracy:.1f}" for accuracy in accuracies),
        *map(in_percent, (finding.drop, finding.control_cost, finding.beyond_control)),
        _share(finding.gain_removed),
        finding.status,
    ]


def _sizes(report: AuditReport) -> str:
    known = {key: str(value) for key, value in report.provenance.items()}
    return (
        "{training samples} training samples on {training images} images, {test samples} test samples on "
        "{test images}; seeds {seeds}."
    ).format_map(known)


def failures(results: Results) -> list[str]:
    """What went wrong, and what to know of what did not."""
    return list(_failures(results))


def _failures(results: Results) -> Iterable[str]:
    for one in results.outcomes:
        label = results.bench.label(one.experiment)
        if one.failure:
            yield f"{label}: {one.failure}"
        for failure in one.report.failures if one.report else ():
            yield f"{label}: {failure.attacker}: {failure.reason}"
        for warning in one.report.warnings if one.report else ():
            yield f"{label}: warning: {warning}"


def provenance(results: Results) -> Iterable[str]:
    """What all experiments have in common and is no default, and what they were made with."""
    every = [one.settings for one in results.bench.experiments]
    default = default_settings()
    for key, value in every[0].items():
        if all(one[key] == value for one in every) and value not in (default.get(key), None, ()):
            yield f"{key}: {plain(value)}"
    # Of every experiment: some may have been made elsewhere, or earlier.
    made = [report.provenance for _, report in finished(results)]
    yield from dict.fromkeys(", ".join(map(" ".join, one.get("versions", {}).items())) for one in made)
    commits = dict.fromkeys(commit for one in made for commit in commits_of(one))
    yield f"commit {' and '.join(commits)}; hashes of data, weights and releases are in the .json file beside this page"


def _cells(one: Experiment, columns: Iterable[str]) -> tuple[str, ...]:
    return tuple(plain(one.settings[key]) for key in columns)


def _share(estimate: Estimate | None) -> str:
    return "–" if estimate is None else f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"
