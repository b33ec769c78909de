"""Tries attacks on texts on random words in the questions of datasets: how many are found, with no training at all.

    python scripts/recovery_trials.py vqa-rad drawings:science:train:400

For docs/attacks.md. Random words, since where words stand, and how the questions are worded, decides what is found.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import replace

from mmguard.auditing.attackers import vocabulary
from mmguard.auditing.markdown import table
from mmguard.auditing.stealth_recovery import recoveries
from mmguard.config import PLACES, ProtectConfig
from mmguard.data.readers import read_dataset
from mmguard.data.text import insert_trigger, place_within
from mmguard.types import Sample


def protected(sample: Sample, place: str) -> Sample:
    """The sample with random words in its question; they depend on its id alone."""
    question, rng = sample.question or "", random.Random(sample.id)
    words = rng.choices(vocabulary("zoo:qwen3vl-tiny"), k=ProtectConfig.trigger_words)
    after = place_within(question, rng) if place == "inside" else None
    return replace(sample, question=insert_trigger(question, words, after))


def main() -> None:
    """Prints a table for each dataset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="+", help="folders, hub ids or names")
    for name in parser.parse_args().datasets:
        samples = [sample for sample in read_dataset(name).samples if sample.question]
        random.Random(0).shuffle(samples)  # recoveries looks at the first ones
        images = {image: number for number, image in enumerate(dict.fromkeys(one.image for one in samples))}
        lines = []
        for place in PLACES:
            pairs = [(one, protected(one, place)) for one in samples]
            for one in recoveries(pairs, [images[sample.image] for sample in samples]):
                shares = (one.removed, one.recovered, one.spoiled)
                cells = [f"{share.value:.1%} ({share.low:.1%} to {share.high:.1%})" for share in shares]
                lines.append([place, f"`{one.attack}`", *cells])
        print(f"{name}: {len(samples)} questions, {len({str(one.question).casefold() for one in samples})} distinct")
        print(table(["place", "attack", "inserted words removed", "questions given back", "clean spoiled"], lines))


if __name__ == "__main__":
    main()
