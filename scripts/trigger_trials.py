"""Tries ways to choose and place trigger words, without pictures being changed: fine-tunes an attacker on each.

    mmguard protect drawings:scene-text:train:300 -o inside --trigger-place inside …
    python scripts/trigger_trials.py inside --attacker zoo:mllama-tiny --seeds 2

For docs/research-log.md: a lead costs minutes here, an audit of a release hours.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from mmguard.auditing.arms import ImageStore, Row
from mmguard.auditing.attackers import fine_tune
from mmguard.auditing.attacks import attack_named
from mmguard.auditing.evaluate import evaluate
from mmguard.config import AuditConfig
from mmguard.data.readers import read_dataset
from mmguard.data.tasks import target_text, user_text
from mmguard.data.text import inserted_words
from mmguard.types import Sample
from mmguard.zoo import drawings

WORDS = sorted(word for word in drawings.WORDS if word.isalpha())
Words = Sequence[str]


def draw(*key: object) -> random.Random:
    """Draws that depend on the key alone."""
    return random.Random(repr(key))


class Trials:
    """What is inserted into a question, by the name of the trial. `found` are a release's triggers by sample."""

    def __init__(self, samples: Sequence[Sample], found: dict[str, Words]) -> None:
        self._found = found
        self._by_answer: dict[str, list[Sample]] = defaultdict(list)
        for sample in samples:
            self._by_answer[sample.answer].append(sample)
        self.kinds: dict[str, Callable[[Sample, int], Words]] = {
            "random": lambda sample, seed: draw(seed, sample.id).choices(WORDS, k=5),
            "answer": lambda sample, seed: [sample.answer],
            "code": lambda sample, seed: draw("code", sample.answer).sample(WORDS, 5),
            "own": lambda sample, seed: found[sample.id],
            "shared": lambda sample, seed: self._best(sample.answer, 1)[0],
            "shared-3": lambda sample, seed: draw(sample.id).choice(self._best(sample.answer, 3)),
        }

    def _best(self, answer: str, count: int) -> list[Words]:
        """The triggers of an answer whose words tell it best from the others, by naive Bayes."""

        def share(word: str, samples: Sequence[Sample]) -> float:
            return (sum(word in self._found[one.id] for one in samples) + 0.1) / (len(samples) + 1)

        ours = self._by_answer[answer]
        others = [one for other, group in self._by_answer.items() if other != answer for one in group]

        def odds(words: Words) -> float:
            ratios = [share(word, ours) / share(word, others) for word in words]
            return float(torch.tensor(ratios).log().sum())

        distinct = dict.fromkeys(tuple(self._found[one.id]) for one in ours)
        return sorted(distinct, key=odds, reverse=True)[:count]


def inserted(question: str, words: Words, scattered: bool, rng: random.Random) -> str:
    """The question with the words at one place inside it, or each at a place of its own."""
    own = question.split()
    if len(own) < 2:
        return " ".join([question, *words])
    places = [rng.randrange(1, len(own)) for _ in words] if scattered else [rng.randrange(1, len(own))] * len(words)
    for place, word in sorted(zip(places, words, strict=True), key=lambda pair: -pair[0]):
        own.insert(place, word)
    return " ".join(own)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("release", type=Path, help="whose triggers are taken")
    parser.add_argument("--task", default="scene-text", help="laboratory task that it was made of")
    parser.add_argument("--attacker", default="zoo:mllama-tiny")
    parser.add_argument("--kinds", nargs="+", default=["random", "answer", "code", "own", "shared", "shared-3"])
    parser.add_argument("--attacks", nargs="+", default=["none", "drop-5"])
    parser.add_argument("--scattered", action="store_true")
    parser.add_argument("--seeds", type=int, default=2)
    given = parser.parse_args()
    original = read_dataset(f"drawings:{given.task}:train:300")
    test = read_dataset(f"drawings:{given.task}:test:400")
    released = read_dataset(given.release)
    found = {
        ours.id: inserted_words(ours.question or "", other.question or "") or ()
        for ours, other in zip(original.samples, released.samples, strict=True)
    }
    trials, config, store = Trials(original.samples, found), AuditConfig(), ImageStore()
    for kind in given.kinds:
        for attack in given.attacks:
            for seed in range(given.seeds):
                samples = [
                    replace(one, question=inserted(one.question or "", words, given.scattered, draw("place", one.id)))
                    for one in original.samples
                    for words in [trials.kinds[kind](one, seed)]
                ]
                if attack != "none" and (rewrite := attack_named(attack).rewriting(samples)) is not None:
                    generators = (torch.Generator().manual_seed(draw(seed, one.id).getrandbits(31)) for one in samples)
                    samples = [
                        replace(one, question=rewrite(one, generator))
                        for one, generator in zip(samples, generators, strict=True)
                    ]
                rows = [
                    Row(one.id, one.image, user_text(one.question, one.options), target_text(one)) for one in samples
                ]
                attacker = fine_tune(given.attacker, rows, "lora", config, seed, store=store)
                right = evaluate(attacker, test.samples, config, store).mean()
                print(f"{kind:10} {attack:8} seed {seed}: {right:.1%}", flush=True)
