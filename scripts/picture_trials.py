"""Tries one perturbation for all pictures with one answer, without words: fine-tunes an attacker on each kind.

    python scripts/picture_trials.py --task scene-text --attacker zoo:mllama-tiny --seeds 2

For docs/research-log.md: a lead costs minutes here, an audit of a release hours. All pictures of a task have one size.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from mmguard.auditing.arms import ImageStore, Row
from mmguard.auditing.attackers import fine_tune
from mmguard.auditing.attacks import attack_named
from mmguard.auditing.evaluate import evaluate
from mmguard.config import AuditConfig, ProtectConfig
from mmguard.data.images import load_image
from mmguard.data.readers import read_dataset
from mmguard.data.tasks import target_text, user_text
from mmguard.lvlm.prompt import Example
from mmguard.lvlm.surrogate import load_surrogate
from mmguard.perturb.budget import ImageBudget, apply, to_unit
from mmguard.protection.ensemble import Ensemble
from mmguard.types import Sample

Deltas = dict[str, Tensor]
"""A perturbation for each answer, int8 `(3, H, W)`."""


def random_signs(samples: Sequence[Sample], budget: ImageBudget) -> Deltas:
    """The strongest noise of the budget, one for each answer."""
    shape = load_image(samples[0].image).shape
    generator = torch.Generator().manual_seed(0)
    answers = sorted({sample.answer for sample in samples})
    return {
        one: ((torch.randint(0, 2, shape, generator=generator) * 2 - 1) * budget.eps).to(torch.int8) for one in answers
    }


def optimised(
    samples: Sequence[Sample], surrogates: Sequence[str], config: ProtectConfig, budget: ImageBudget, foreign: bool
) -> Deltas:
    """For each answer the perturbation that makes surrogates give it, found on pictures with that answer or on any.

    The surrogates are adapted anew in every round, on pictures as they are protected by then.
    """
    images = {sample.id: load_image(sample.image) for sample in samples}
    deltas, rng = random_signs(samples, budget), random.Random(0)
    ensemble = Ensemble([load_surrogate(name) for name in surrogates], config)

    def shown(sample: Sample, answer: str) -> Tensor:
        return to_unit(apply(images[sample.id], budget.project(images[sample.id], deltas[answer])))

    def example(sample: Sample, answer: str) -> Example:
        return Example(sample.question, target_text(replace(sample, answer=answer)), sample.options, ())

    def inner() -> Sequence[tuple[list[Example], list[Tensor]]]:
        drawn = [rng.sample(list(samples), config.inner_batch_size) for _ in range(config.inner_steps)]
        return [([example(s, s.answer) for s in some], [shown(s, s.answer) for s in some]) for some in drawn]

    by_answer: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_answer[sample.answer].append(sample)
    with ensemble.adaptable():
        for round_ in range(config.rounds):
            ensemble.adapt(inner(), seed=round_)
            with ensemble.adapted():
                for _, answer in product(range(config.pgd_steps), sorted(deltas)):
                    some = rng.sample(list(samples) if foreign else by_answer[answer], config.batch_size)
                    leaves = [shown(one, answer).requires_grad_(True) for one in some]
                    examples = [example(one, answer) for one in some]
                    ensemble.backward(examples, leaves, ensemble.references(examples, leaves))
                    step = torch.stack([leaf.grad for leaf in leaves if leaf.grad is not None]).sum(0).sign()
                    moved = deltas[answer].to(torch.int16) - step.to(torch.int16)
                    deltas[answer] = moved.clamp(-budget.eps, budget.eps).to(torch.int8)
    return deltas


def protected(samples: Sequence[Sample], deltas: Deltas, budget: ImageBudget, folder: Path) -> list[Path]:
    """The pictures with the perturbation of their answer, as files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, sample in enumerate(samples):
        image = load_image(sample.image)
        after = apply(image, budget.project(image, deltas[sample.answer]))
        paths.append(folder / f"{number}.png")
        Image.fromarray(after.permute(1, 2, 0).numpy()).save(paths[-1])
    return paths


def main() -> None:
    """Prints the accuracy of every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="scene-text", help="laboratory task")
    parser.add_argument("--surrogates", nargs="+", default=["zoo:qwen3vl-tiny", "zoo:minicpmv-tiny"])
    parser.add_argument("--attacker", default="zoo:mllama-tiny")
    parser.add_argument("--kinds", nargs="+", default=["none", "random", "own", "any"])
    parser.add_argument("--attacks", nargs="+", default=["none"])
    parser.add_argument("--eps", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("out/picture-trials"))
    given = parser.parse_args()
    original = read_dataset(f"drawings:{given.task}:train:300").samples
    test = read_dataset(f"drawings:{given.task}:test:400").samples
    budget = ImageBudget(given.eps)
    config = ProtectConfig(
        variant="image",
        eps=given.eps,
        rounds=3,
        pgd_steps=16,
        inner_steps=60,
        inner_lr=3e-3,
        inner_batch_size=8,
        batch_size=8,
    )
    kinds: dict[str, Callable[[], Deltas]] = {
        "random": lambda: random_signs(original, budget),
        "own": lambda: optimised(original, given.surrogates, config, budget, foreign=False),
        "any": lambda: optimised(original, given.surrogates, config, budget, foreign=True),
    }
    audit = AuditConfig()
    for kind in given.kinds:
        paths = [one.image for one in original]
        if kind != "none":
            paths = protected(original, kinds[kind](), budget, given.out / kind)
        for attack, seed in product(given.attacks, range(given.seeds)):
            on_images = attack_named(attack) if attack != "none" else None
            rows = [
                Row(
                    one.id,
                    path,
                    user_text(one.question, one.options),
                    target_text(one),
                    attack=on_images,
                    attack_seed=seed,
                )
                for one, path in zip(original, paths, strict=True)
            ]
            store = ImageStore()
            attacker = fine_tune(given.attacker, rows, "lora", audit, seed, store=store)
            right = evaluate(attacker, test, audit, store).mean()
            print(f"{kind:10} {attack:8} seed {seed}: {right:.1%}", flush=True)


if __name__ == "__main__":
    main()
