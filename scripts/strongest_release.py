"""What it is worth to make several releases and publish the strongest: one attacker chooses, another judges.

    python scripts/strongest_release.py docs/results/releases.jsonl
    python scripts/strongest_release.py LINES --original drawings:scene-text:train:200 --releases R/releases

For docs/research-log.md. All subsets of the releases in the file are taken for what an owner may have made. With the
releases themselves, also whether the words in them tell which is strong.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import combinations, permutations
from pathlib import Path
from statistics import mean

from scipy.stats import spearmanr

from mmguard.auditing.arms import inserted
from mmguard.auditing.markdown import table
from mmguard.auditing.report import AuditReport
from mmguard.bench.results import read_lines
from mmguard.data.readers import read_dataset
from mmguard.release.layout import sha256
from mmguard.types import Dataset

_MOST = 10
"""Words that count as the most frequent."""

Gains = list[float]
"""The share of an attacker's gain that each release removes, G."""


def gains(reports: Iterable[AuditReport]) -> Mapping[str, Gains]:
    """G of every release, by attacker."""
    found: dict[str, Gains] = {}
    for report in reports:
        for one in report.findings:
            if one.gain_removed is not None:
                found.setdefault(one.attacker, []).append(one.gain_removed.value)
    return found


def chosen(by: Gains, judge: Gains, number: int) -> float:
    """G against the judge, of the release out of so many that the other attacker loses most to; the mean over all
    choices of so many releases."""
    subsets = combinations(range(len(by)), number)
    return mean(judge[max(subset, key=by.__getitem__)] for subset in subsets)


def words(original: Dataset, release: Dataset) -> tuple[int, float]:
    """How many different words a release inserts, and which share of all the ten most frequent are."""
    pairs = zip(original.samples, release.samples, strict=True)
    found = Counter(word for ours, theirs in pairs for word in inserted(ours, theirs.question))
    return len(found), sum(count for _, count in found.most_common(_MOST)) / found.total()


def by_words(reports: Mapping[str, AuditReport], original: str, releases: Path) -> str:
    """A table of what `words` says of releases, of which each report is known by their digest, weak ones first."""
    ours = read_dataset(original)
    folders = [path for path in releases.iterdir() if path.suffix != ".record"]
    theirs = {sha256(*dataset.files): words(ours, dataset) for dataset in map(read_dataset, folders)}
    worth = {digest: report.headline.gain_removed for digest, report in reports.items()}
    rows = sorted((gain.value, *theirs[digest]) for digest, gain in worth.items() if gain)
    gained, number, share = zip(*rows, strict=True)
    last = ["rank correlation", *(f"{spearmanr(gained, one).statistic:.2f}" for one in (number, share))]
    cells = [[f"{gain:.2f}", str(many), f"{often:.2f}"] for gain, many, often in rows]
    return table(["G", "different words", f"share of the {_MOST} most frequent"], [*cells, last])


def main() -> None:
    """Prints a row for each pair of attackers, and one for each release that is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", type=Path, help="results.jsonl of releases that differ by their seed alone")
    parser.add_argument("--original", help="the dataset of the releases")
    parser.add_argument("--releases", type=Path, help="folder of their folders")
    given = parser.parse_args()
    reports = {line.release["files sha256"]: line.evidence.report() for line in read_lines(given.lines)}
    found = gains(reports.values())
    numbers = range(1, len(next(iter(found.values()))) + 1)
    rows = []
    for one, other in permutations(found, 2):
        worth = [f"{chosen(found[one], found[other], number):.2f}" for number in numbers]
        rows.append([one, other, *worth, f"{spearmanr(found[one], found[other]).statistic:.2f}"])
    print(table(["chooses", "is judged by", *(f"of {number}" for number in numbers), "rank correlation"], rows))
    if given.releases:
        print(by_words(reports, given.original, given.releases))


if __name__ == "__main__":
    main()
