"""Tries perturbations of pictures without words: fine-tunes attackers on each kind.

    python scripts/picture_trials.py --task scene-text --attackers zoo:mllama-tiny --seeds 2
    python scripts/picture_trials.py --kinds wrong --surrogates zoo:mllama-tiny --attackers zoo:mllama-tiny --clean 20

For docs/research-log.md: a lead costs minutes here, an audit of a release hours. All pictures of a task have one size.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cosine_similarity
from torchmetrics.functional.image import peak_signal_noise_ratio

from mmguard.auditing.arms import ImageStore, Row
from mmguard.auditing.attackers import fine_tune
from mmguard.auditing.attacks import attack_named
from mmguard.auditing.evaluate import evaluate
from mmguard.auditing.training import projectors
from mmguard.config import AuditConfig, ProtectConfig
from mmguard.data.images import load_image
from mmguard.data.readers import read_dataset
from mmguard.data.tasks import target_text, user_text
from mmguard.lvlm.loading import load_surrogate
from mmguard.lvlm.prompt import Example
from mmguard.lvlm.surrogate import Surrogate
from mmguard.perturb.budget import ImageBudget, apply, to_unit
from mmguard.protection.decoys import decoys
from mmguard.protection.ensemble import Ensemble
from mmguard.types import Sample

Aim = Literal["answers", "features", "gradients"]

Deltas = dict[str, Tensor]
"""A perturbation for each sample, by its id; int8 `(3, H, W)`."""


def random_signs(samples: Sequence[Sample], budget: ImageBudget) -> dict[str, Tensor]:
    """The strongest noise of the budget, one for each answer."""
    shape = load_image(samples[0].image).shape
    generator = torch.Generator().manual_seed(0)
    answers = sorted({sample.answer for sample in samples})
    return {
        one: ((torch.randint(0, 2, shape, generator=generator) * 2 - 1) * budget.eps).to(torch.int8) for one in answers
    }


def shown(image: Tensor, delta: Tensor, budget: ImageBudget) -> Tensor:
    """What is released of a picture, uint8."""
    return apply(image, budget.project(image, delta))


def example(sample: Sample, answer: str) -> Example:
    return Example(sample.question, target_text(replace(sample, answer=answer)), sample.options, ())


def by_sample(samples: Sequence[Sample], by_answer: dict[str, Tensor]) -> Deltas:
    """To each sample the perturbation of its answer."""
    return {one.id: by_answer[one.answer] for one in samples}


def optimised(
    samples: Sequence[Sample], surrogates: Sequence[str], config: ProtectConfig, budget: ImageBudget, foreign: bool
) -> Deltas:
    """For each answer the perturbation that makes surrogates give it, found on pictures with that answer or on any.

    The surrogates are adapted anew in every round, on pictures as they are protected by then.
    """
    images = {sample.id: load_image(sample.image) for sample in samples}
    deltas, rng = random_signs(samples, budget), random.Random(0)
    ensemble = Ensemble([load_surrogate(name) for name in surrogates], config)

    def placed(sample: Sample, answer: str) -> Tensor:
        return to_unit(shown(images[sample.id], deltas[answer], budget))

    by_answer: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_answer[sample.answer].append(sample)
    with ensemble.adaptable():
        for round_ in range(config.rounds):
            batches = (rng.sample(list(samples), config.inner_batch_size) for _ in range(config.inner_steps))
            ensemble.adapt(
                (([example(o, o.answer) for o in some], [placed(o, o.answer) for o in some]) for some in batches),
                seed=round_,
            )
            with ensemble.adapted():
                for _, answer in product(range(config.pgd_steps), sorted(deltas)):
                    shared = list(samples) if foreign else by_answer[answer]
                    some = rng.sample(shared, min(config.batch_size, len(shared)))
                    leaves = [placed(one, answer).requires_grad_(True) for one in some]
                    examples = [example(one, answer) for one in some]
                    ensemble.backward(examples, leaves, ensemble.references(examples, leaves))
                    step = torch.stack([leaf.grad for leaf in leaves if leaf.grad is not None]).sum(0).sign()
                    moved = deltas[answer].to(torch.int16) - step.to(torch.int16)
                    deltas[answer] = moved.clamp(-budget.eps, budget.eps).to(torch.int8)
    return by_sample(samples, deltas)


def misleading(
    samples: Sequence[Sample],
    surrogates: Sequence[str],
    config: ProtectConfig,
    budget: ImageBudget,
    robust: Sequence[str],
    aim: Aim = "answers",
) -> Deltas:
    """For each sample the perturbation that makes surrogates which were fine-tuned on clean pictures, as attackers are,
    give its decoy: a picture of one thing, by its features, under the name of another.

    Args:
        samples: all of the training data.
        surrogates: names of models.
        config: batch size, rounds and steps.
        budget: of every picture.
        robust: attacks on images of which one is drawn for every picture in every step, or none.
        aim: what is moved: the `answers` of the surrogates to the decoys; the image `features` that the language model
            is given to those of a picture with the decoy for answer; or, with the right answer, the `gradients` of all
            matrices to those that teach the decoys (gradient matching).
    """
    right, wrong = {one.id: target_text(one) for one in samples}, decoys(samples)
    images = {one.id: load_image(one.image) for one in samples}
    rng, generator = random.Random(0), torch.Generator().manual_seed(0)
    deltas = {one.id: budget.random(images[one.id], generator) for one in samples}
    rows = [Row(one.id, one.image, user_text(one.question, one.options), target_text(one)) for one in samples]
    trained = [trained_on(name, rows) for name in surrogates]
    views = [attack_named(name).image for name in robust]
    like = {one.id: rng.choice([o for o in samples if right[o.id] == wrong[one.id]] or [one]) for one in samples}

    def losses(some: Sequence[Sample], leaves: Sequence[Tensor], answered: Mapping[str, str]) -> Tensor:
        examples = [example(one, answered[one.id]) for one in some]
        passes = (one.forward(one.encode(examples, leaves), one.pixels(leaves)) for one in trained)
        return torch.stack([one.nll for one in passes]).mean(0)

    def distance(some: Sequence[Sample], leaves: Sequence[Tensor]) -> Tensor:
        """From the image features of others, by the square and relative to these."""
        others = [to_unit(images[like[one.id].id]) for one in some]
        examples = [example(one, right[one.id]) for one in some]
        parts = []
        for one in trained:
            with torch.no_grad():
                target = features(one, examples, others)
            parts.append((features(one, examples, leaves) - target).square().sum() / target.square().sum())
        return torch.stack(parts).mean() * len(some)

    def alignment(some: Sequence[Sample], leaves: Sequence[Tensor]) -> Tensor:
        """Of what these pictures teach under their right answers with what all would teach under the decoys."""
        examples = [example(one, right[one.id]) for one in some]
        cosines = []
        for one, weights, towards in zip(trained, learning, lessons, strict=True):
            nll = one.forward(one.encode(examples, leaves), one.pixels(leaves)).nll.mean()
            taught = torch.autograd.grad(nll, weights, create_graph=True, allow_unused=True, materialize_grads=True)
            cosines.append(cosine_similarity(flat(taught), towards, dim=0))
        return torch.stack(cosines).mean() * len(some)

    def unit(some: Sequence[Sample]) -> list[Tensor]:
        return [to_unit(apply(images[one.id], deltas[one.id])) for one in some]

    def seen(leaf: Tensor) -> Tensor:
        view = rng.choice([None, *views])
        return leaf if view is None else view(leaf, generator).clamp(0, 1)

    @torch.no_grad()
    def now() -> list[float]:
        """The surrogates' mean loss of wrong and right answers, in nats a token, and the distance."""
        found = ((losses(o, unit(o), wrong), losses(o, unit(o), right), distance(o, unit(o))) for o in batches)
        return [sum(float(part.sum()) for part in parts) / len(samples) for parts in zip(*found, strict=True)]

    batches = [samples[start : start + config.batch_size] for start in range(0, len(samples), config.batch_size)]
    learning = [[w for w in one.model.parameters() if w.ndim == 2] for one in trained] if aim == "gradients" else []
    lessons = []
    for one, weights in zip(trained, learning, strict=False):
        one.model.set_attn_implementation("eager")  # a gradient's gradient has no fused kernel
        for weight in weights:
            weight.requires_grad_(True)
        for some in batches:
            losses(some, unit(some), wrong).sum().backward(inputs=weights)
        lessons.append(flat([torch.zeros_like(w) if w.grad is None else w.grad for w in weights]))
    pursued: dict[Aim, Callable[[Sequence[Sample], Sequence[Tensor]], Tensor]] = {
        "answers": lambda some, leaves: losses(some, leaves, wrong).sum(),
        "features": distance,
        "gradients": lambda some, leaves: -alignment(some, leaves),
    }
    before = now()
    for some in batches:
        for _ in range(config.rounds * config.pgd_steps):
            leaves = [leaf.requires_grad_(True) for leaf in unit(some)]
            shown_as = [seen(leaf) for leaf in leaves]
            pursued[aim](some, shown_as).backward(inputs=leaves)
            for one, leaf in zip(some, leaves, strict=True):
                if leaf.grad is not None:
                    deltas[one.id] = budget.descend(images[one.id], deltas[one.id], leaf.grad)
    told = ("loss of the wrong answers", "loss of the right answers", "distance from the features of decoys")
    for what, was, is_ in zip(told, before, now(), strict=True):
        print(f"surrogates' {what}: {was:.2f} before, {is_:.2f} after", flush=True)
    return deltas


def flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])


def features(surrogate: Surrogate, examples: Sequence[Example], images: Sequence[Tensor]) -> Tensor:
    """What the language model is given of images, flat."""
    found: list[Tensor] = []

    def hook(module: nn.Module, args: Any, output: Tensor | list[Tensor]) -> None:
        found.extend(one.flatten() for one in (output if isinstance(output, list) else [output]))

    handles = [module.register_forward_hook(hook) for module in projectors(surrogate.model, surrogate.name)]
    surrogate.forward(surrogate.encode(examples, images), surrogate.pixels(images))
    for handle in handles:
        handle.remove()
    return torch.cat(found)


class Textured(ImageBudget):
    """The same budget in the mean square, more of it where a picture is busy and less where it is flat."""

    def project(self, image: Tensor, delta: Tensor) -> Tensor:
        light = image.float().mean(0, keepdim=True)[None]
        level, square = (avg_pool2d(x, 7, 1, 3, count_include_pad=False) for x in (light, light.square()))
        busy = 2 + (square - level.square()).clamp(min=0).sqrt()[0]
        reach = (self.eps * busy / busy.square().mean().sqrt()).clamp(self.eps / 2, 2 * self.eps).round()
        free = ImageBudget(2 * self.eps)
        return free.project(image, delta.to(torch.int16).clamp(-reach.to(torch.int16), reach.to(torch.int16)))


def trained_on(name: str, rows: Sequence[Row]) -> Surrogate:
    """A model after an attacker's fine-tuning, of another seed than those of the attackers below."""
    attacker = fine_tune(name, rows, "lora", AuditConfig(), seed=100)
    return Surrogate(name, attacker.model, attacker.processor)


def protected(samples: Sequence[Sample], deltas: Deltas, budget: ImageBudget, folder: Path) -> list[Path]:
    """The pictures with their perturbations, as files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths, ratios = [], []
    for number, sample in enumerate(samples):
        image, delta = load_image(sample.image), deltas[sample.id]
        changed = shown(image, delta, budget)
        ratios.append(float(peak_signal_noise_ratio(to_unit(changed), to_unit(image), data_range=1.0)))
        paths.append(folder / f"{number}.png")
        Image.fromarray(changed.permute(1, 2, 0).numpy()).save(paths[-1])
    print(f"{folder.name}: PSNR {mean(ratios):.1f} dB", flush=True)
    return paths


def main() -> None:
    """Prints the accuracy of every run: on clean test data, and of those on unchanged pictures also on the others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="scene-text", help="laboratory task")
    parser.add_argument("--surrogates", nargs="+", default=["zoo:qwen3vl-tiny", "zoo:minicpmv-tiny"])
    parser.add_argument("--attackers", nargs="+", default=["zoo:mllama-tiny"])
    parser.add_argument("--kinds", nargs="+", default=["none", "random", "own", "any"])
    parser.add_argument("--attacks", nargs="+", default=["none"])
    parser.add_argument("--clean", type=int, default=0, help="percent of the samples that stay as they are")
    parser.add_argument("--eps", type=int, default=8)
    parser.add_argument("--textured", action="store_true", help="more budget where pictures are busy")
    parser.add_argument("--robust", nargs="*", default=[], help="image attacks that wrong… are made against")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--train", type=int, default=300, help="training pictures")
    parser.add_argument("--pgd-steps", type=int, default=16, help="in each of three rounds")
    parser.add_argument("--inner-steps", type=int, default=60, help="of own and any, in each round")
    parser.add_argument("--out", type=Path, default=Path("out/picture-trials"))
    given = parser.parse_args()
    original = read_dataset(f"drawings:{given.task}:train:300").samples[: given.train]
    test = read_dataset(f"drawings:{given.task}:test:400").samples
    budget = (Textured if given.textured else ImageBudget)(given.eps)
    config = ProtectConfig(
        variant="image",
        eps=given.eps,
        rounds=3,
        pgd_steps=given.pgd_steps,
        inner_steps=given.inner_steps,
        inner_lr=3e-3,
        inner_batch_size=8,
        batch_size=8,
    )
    kinds: dict[str, Callable[[], Deltas]] = {
        "random": lambda: by_sample(original, random_signs(original, budget)),
        "own": lambda: optimised(original, given.surrogates, config, budget, foreign=False),
        "any": lambda: optimised(original, given.surrogates, config, budget, foreign=True),
        "wrong": lambda: misleading(original, given.surrogates, config, budget, given.robust),
        "collide": lambda: misleading(original, given.surrogates, config, budget, given.robust, "features"),
        "match": lambda: misleading(original, given.surrogates, config, budget, given.robust, "gradients"),
    }
    pictures = {"none": [one.image for one in original]}
    for kind in set(given.kinds) - {"none"}:
        pictures[kind] = protected(original, kinds[kind](), budget, given.out / kind)
    audit, store = AuditConfig(), ImageStore()
    for name, attack, seed, kind in product(given.attackers, given.attacks, range(given.seeds), given.kinds):
        on_images = attack_named(attack) if attack != "none" else None
        clean = random.Random(seed).sample(range(len(original)), len(original) * given.clean // 100)
        rows = [
            Row(
                one.id,
                one.image if number in clean else pictures[kind][number],
                user_text(one.question, one.options),
                target_text(one),
                attack=on_images,
                attack_seed=seed,
            )
            for number, one in enumerate(original)
        ]
        attacker = fine_tune(name, rows, "lora", audit, seed, store=store)
        judged = {"test": test}
        if kind == "none":
            for other, paths in pictures.items():
                judged[f"training, {other}"] = [replace(o, image=p) for o, p in zip(original, paths, strict=True)]
        for what, samples in judged.items():
            right = evaluate(attacker, samples, audit, store).mean()
            print(f"{name:20} {attack:8} seed {seed} trained on {kind:8} judged on {what:18} {right:.1%}", flush=True)


if __name__ == "__main__":
    main()
