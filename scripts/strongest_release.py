"""What it is worth to make several releases and publish the strongest: one attacker chooses, another judges.

    python scripts/strongest_release.py docs/results/releases.jsonl

For docs/research-log.md. All subsets of the releases in the file are taken for what an owner may have made.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from itertools import combinations, permutations
from pathlib import Path
from statistics import mean

from scipy.stats import spearmanr

from mmguard.auditing.markdown import table
from mmguard.bench.results import read_lines

Gains = list[float]
"""The share of an attacker's gain that each release removes, G."""


def gains(path: Path) -> Mapping[str, Gains]:
    """G of every release, by attacker."""
    found: dict[str, Gains] = {}
    for line in read_lines(path):
        for one in line.evidence.report().findings:
            if one.gain_removed is not None:
                found.setdefault(one.attacker, []).append(one.gain_removed.value)
    return found


def chosen(by: Gains, judge: Gains, number: int) -> float:
    """G against the judge, of the release out of so many that the other attacker loses most to; the mean over all
    choices of so many releases."""
    subsets = combinations(range(len(by)), number)
    return mean(judge[max(subset, key=by.__getitem__)] for subset in subsets)


def main() -> None:
    """Prints a row for each pair of attackers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", type=Path, help="results.jsonl of releases that differ by their seed alone")
    found = gains(parser.parse_args().lines)
    numbers = range(1, len(next(iter(found.values()))) + 1)
    rows = []
    for one, other in permutations(found, 2):
        worth = [f"{chosen(found[one], found[other], number):.2f}" for number in numbers]
        rows.append([one, other, *worth, f"{spearmanr(found[one], found[other]).statistic:.2f}"])
    print(table(["chooses", "is judged by", *(f"of {number}" for number in numbers), "rank correlation"], rows))


if __name__ == "__main__":
    main()
