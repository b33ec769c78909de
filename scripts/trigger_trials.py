"""Tries ways to choose and place trigger words, without pictures being changed: fine-tunes an attacker on each.

    mmguard protect drawings:scene-text:train:300 -o inside --trigger-place inside …
    python scripts/trigger_trials.py inside --attacker zoo:mllama-tiny --seeds 2
    python scripts/trigger_trials.py asked --asked --kinds asked own --place end --clean 20

For docs/research-log.md: a lead costs minutes here, an audit of a release hours.
"""

from __future__ import annotations

import argparse
import random
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch

from mmguard.auditing.arms import ImageStore, Row
from mmguard.auditing.attackers import fine_tune
from mmguard.auditing.attacks import attack_named
from mmguard.auditing.evaluate import evaluate
from mmguard.config import AuditConfig, ProtectConfig
from mmguard.data.readers import read_dataset
from mmguard.data.tasks import target_text, user_text
from mmguard.data.text import inserted_words
from mmguard.lvlm.loading import load_surrogate
from mmguard.lvlm.surrogate import Vocabulary
from mmguard.perturb.trigger import Trigger
from mmguard.protection.run import protect
from mmguard.protection.sharing import ranked
from mmguard.types import Sample
from mmguard.zoo import drawings

WORDS = sorted(word for word in drawings.WORDS if word.isalpha())
Words = Sequence[str]


def draw(*key: object) -> random.Random:
    """Draws that depend on the key alone."""
    return random.Random(repr(key))


def kinds_of(samples: Sequence[Sample], found: dict[str, Trigger]) -> dict[str, Callable[[Sample, int], Words]]:
    """What is inserted into a question in a run of a seed, by the name of the trial.

    Args:
        samples: the owner's.
        found: a release's triggers, by sample.
    """
    by_answer: dict[str, list[Trigger]] = defaultdict(list)
    for sample in samples:
        by_answer[sample.answer].append(found[sample.id])
    best, words = ranked(by_answer), asked_words(samples)
    return {
        "random": lambda sample, seed: draw(seed, sample.id).choices(WORDS, k=5),
        "answer": lambda sample, seed: [sample.answer],
        "code": lambda sample, seed: draw("code", sample.answer).sample(WORDS, 5),
        "asked": lambda sample, seed: draw(seed, sample.id).choices(words, k=5),
        "own": lambda sample, seed: found[sample.id],
        "shared": lambda sample, seed: best[sample.answer][0],
        "shared-3": lambda sample, seed: draw(sample.id).choice(best[sample.answer][:3]),
    }


def asked_words(samples: Sequence[Sample]) -> list[str]:
    """The words of which the questions consist."""
    return sorted({word for sample in samples for word in re.findall(r"[A-Za-z]+", sample.question or "")})


def protect_with_asked_words(task: str, folder: Path) -> None:
    """Writes a release whose triggers consist of words that the questions have."""
    data = read_dataset(f"drawings:{task}:train:300")
    allowed = set(asked_words(data.samples))
    surrogates = [load_surrogate(name) for name in ("zoo:qwen3vl-tiny", "zoo:minicpmv-tiny")]
    for one in surrogates:
        every = one.admissible_tokens()
        kept = [place for place, word in enumerate(every.words) if word in allowed]
        vars(one)["_admissible"] = Vocabulary(every.ids[kept], tuple(every.words[place] for place in kept))
    config = ProtectConfig(
        variant="crs", rounds=3, top_c=16, inner_steps=60, inner_lr=3e-3, inner_batch_size=8, lambda_bind=0.3
    )
    protect(data, surrogates, config, folder)


def inserted(question: str, words: Words, place: str, rng: random.Random) -> str:
    """The question with the words at one place inside it, each at a place of its own (`scattered`), or at its end."""
    own = question.split()
    if len(own) < 2 or place == "end":
        return " ".join([question, *words])
    places = (
        [rng.randrange(1, len(own)) for _ in words]
        if place == "scattered"
        else [rng.randrange(1, len(own))] * len(words)
    )
    for before, word in sorted(zip(places, words, strict=True), key=lambda pair: -pair[0]):
        own.insert(before, word)
    return " ".join(own)


def attacked(samples: Sequence[Sample], attack: str, seed: int) -> Sequence[Sample]:
    """The samples after an attack on their questions."""
    rewrite = attack_named(attack).rewriting(samples) if attack != "none" else None
    if rewrite is None:
        return samples
    draws = [torch.Generator().manual_seed(draw(seed, one.id).getrandbits(31)) for one in samples]
    return [replace(one, question=rewrite(one, rng)) for one, rng in zip(samples, draws, strict=True)]


def main() -> None:
    """Prints the accuracy of every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("release", type=Path, help="whose triggers are taken")
    parser.add_argument("--task", default="scene-text", help="laboratory task that it was made of")
    parser.add_argument("--attacker", default="zoo:mllama-tiny")
    parser.add_argument("--kinds", nargs="+", default=["random", "answer", "code", "own", "shared", "shared-3"])
    parser.add_argument("--attacks", nargs="+", default=["none", "drop-5"])
    parser.add_argument("--asked", action="store_true", help="make the release first, of words of its own questions")
    parser.add_argument("--clean", type=int, default=0, help="percent of the samples that stay as they are")
    parser.add_argument("--alone", action="store_true", help="leave out all samples but those that stay as they are")
    parser.add_argument("--epochs", type=float, help="passes over the samples")
    parser.add_argument("--place", default="inside", choices=["inside", "scattered", "end"])
    parser.add_argument("--seeds", type=int, default=2)
    given = parser.parse_args()
    if given.asked:
        protect_with_asked_words(given.task, given.release)
    original = read_dataset(f"drawings:{given.task}:train:300").samples
    test = read_dataset(f"drawings:{given.task}:test:400").samples
    released = read_dataset(given.release).samples
    found = {
        ours.id: inserted_words(ours.question or "", other.question or "") or ()
        for ours, other in zip(original, released, strict=True)
    }
    kinds, config, store = kinds_of(original, found), AuditConfig(epochs=given.epochs), ImageStore()
    for kind, attack, seed in product(given.kinds, given.attacks, range(given.seeds)):
        clean = draw("clean", seed).sample([one.id for one in original], len(original) * given.clean // 100)
        samples = [
            one
            if one.id in clean
            else replace(
                one,
                question=inserted(one.question or "", kinds[kind](one, seed), given.place, draw("place", one.id)),
            )
            for one in original
            if one.id in clean or not given.alone
        ]
        rows = [
            Row(one.id, one.image, user_text(one.question, one.options), target_text(one))
            for one in attacked(samples, attack, seed)
        ]
        attacker = fine_tune(given.attacker, rows, "lora", config, seed, store=store)
        right = evaluate(attacker, test, config, store).mean()
        print(f"{kind:10} {attack:8} seed {seed}: {right:.1%}", flush=True)


if __name__ == "__main__":
    main()
