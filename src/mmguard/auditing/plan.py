"""An audit before it is run: its data is read and paired, its test is clean, and its runs are known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from mmguard.auditing import recipes
from mmguard.auditing.arms import ARMS, Arm, Pairing, pair, pixel_digest, with_controls_of
from mmguard.auditing.attackers import default_attackers, refusals
from mmguard.auditing.attacks import attack_named, resolve
from mmguard.auditing.best_of import choosing_half
from mmguard.auditing.runs import (
    ATTACK_PACKAGES,
    ATTACK_REVISION,
    COMPARISON_REVISION,
    FILTER_PACKAGES,
    PACKAGES,
    REVISION,
    Run,
    Runner,
    Shelf,
)
from mmguard.auditing.selection import MixedArm, clean_places
from mmguard.config import AuditConfig
from mmguard.data.readers import read_dataset
from mmguard.data.tasks import target_text, user_text
from mmguard.errors import ConfigError, DataError, SampleError, SurrogateError
from mmguard.lvlm.captions import captions
from mmguard.lvlm.loading import load_surrogate
from mmguard.lvlm.pixels import shrunk_size
from mmguard.release.layout import sha256
from mmguard.runtime.devices import device_of, require_first
from mmguard.runtime.memory import release_memory
from mmguard.runtime.provenance import commit, digest, versions
from mmguard.types import Dataset, Rejection, Sample

_LISTED = 5
"""Files that a warning names."""

_PATIENCE = 256
"""Tokens of an answer, at most: a model that has not learned to stop is not waited for longer."""

_FEW = 0.1
"""The share of questions of which an attack on texts is to change one, or it is not worth its name."""


@dataclass(frozen=True)
class Plan:
    """What an audit consists of."""

    attackers: tuple[str, ...]
    arms: tuple[Arm, ...]
    attacks: tuple[str, ...]
    """What the thief does to the data of the arms in `attacked`, or to the training on it."""
    config: AuditConfig
    runner: Runner
    shelf: Shelf
    groups: list[int]
    """Number of the image of every test sample."""
    data_warnings: tuple[str, ...]
    """What a reader should know of how the data was read."""
    provenance: dict[str, Any]

    @cached_property  # tries all attacks on texts, which a plan that is only looked at need not wait for
    def warnings(self) -> tuple[str, ...]:
        """What a reader of the report should know: of the attacks, and of the data."""
        return (*_idle(self.attacks, self.runner.pairing), *self.data_warnings)

    @property
    def seeds(self) -> range:
        """The seed of every repetition."""
        return range(self.config.seed, self.config.seed + self.config.seeds)

    @property
    def attacked(self) -> tuple[Arm, ...]:
        """The arms that are also run under every attack: clean, release and the matched control."""
        return tuple(arm for arm in self.arms if arm in ("clean", "release", self.runner.pairing.matched))

    @property
    def runs(self) -> list[Run]:
        """All runs, attacker by attacker, each beginning with the untouched model and ending with the attacks."""
        fine_tunings = [
            (recipe, arm, seed, attack)
            for attack in (None, *self.attacks)
            for recipe in self.config.recipes
            for arm in self.arms_under(attack)
            for seed in self.seeds
        ]
        runs = (run for name in self.attackers for run in (Run(name), *(Run.under(name, *one) for one in fine_tunings)))
        return list(dict.fromkeys(runs))

    def arms_under(self, attack: str | None) -> tuple[MixedArm, ...]:
        """The arms that are run under an attack, or without any; of a mixture its clean part alone, too."""
        if attack is None:
            return self.arms
        mixes = attack_named(attack).selection.clean_percent is not None
        return (*self.attacked, "clean-part") if mixes else self.attacked


def plan_audit(
    release: str | Path,
    original: str | Path,
    test: str | Path,
    attackers: Sequence[str] | None = None,
    config: AuditConfig = AuditConfig(),
    *,
    arms: Sequence[Arm] | None = None,
    controls: str | Path | None = None,
    runs: Path | None = None,
    device: str = "auto",
    split: str | None = None,
    limit: int | None = None,
    test_split: str | None = None,
    test_limit: int | None = None,
) -> Plan:
    """Reads everything that an audit is given.

    Args:
        release: the released folder; nothing beside it is read.
        original: the dataset that it was made from.
        test: a clean test set of the same task.
        attackers: model names (hub id, folder, `zoo:NAME`); `zoo.MEASURED` if not given.
        config: how attackers fine-tune, and how they are judged.
        arms: only these besides clean, release and its matched control; by default all that differ for this release.
        controls: release of the same data and budget that the controls are made from; the audited one if not given.
        runs: folder of finished runs, which audits can share; None keeps nothing.
        device: `auto`, `cpu`, `cuda`, …
        split: split of the original; of a benchmark, `train` if not given.
        limit: train on the first so many released images alone.
        test_split: split of the test set; of a benchmark, `test` if not given.
        test_limit: use only the questions of so many test images.

    Raises:
        DataError: a dataset cannot be read, or every test image is also a training image.
        ReleaseError: the release does not belong to the original, or changes nothing.
        ConfigError: an unknown arm or attack, or a recipe that cannot be followed here.
    """
    if unknown := set(arms or ()) - set(ARMS):
        raise ConfigError(f"arm {', '.join(sorted(unknown))}: choose from {', '.join(ARMS)}")
    require_first(device)
    for recipe in config.recipes:
        recipes.require(recipe)
    attacks = tuple(attack.name for attack in resolve(config.attacks))
    released, originals = read_dataset(release, limit=limit), read_dataset(original, split=split)
    pairing = pair(released, originals)
    names = tuple(dict.fromkeys(attackers if attackers is not None else default_attackers()))
    pairing = _taken(pairing, _refused(names, pairing.digests.values(), config.max_pixels), released.root)
    pairing, captioned = _captioned(pairing, names[0], device, config.max_pixels)
    for attack in attacks:
        clean_places(pairing, attack_named(attack).selection, config.seed)  # complains of what cannot be mixed
    if controls is not None:
        pairing = with_controls_of(pairing, pair(read_dataset(controls), originals))
    samples, groups, test_digest, warnings = _clean_test(
        read_dataset(test, test_split, test_limit, part="test"), pairing, names, config.max_pixels
    )
    config = replace(config, max_new_tokens=max(config.max_new_tokens, min(_longest(samples), _PATIENCE)))
    validation = [sample for sample, chosen in zip(samples, choosing_half(groups), strict=True) if chosen]
    if not validation and any(attack_named(name).training.keep_best for name in attacks):
        raise DataError(f"{test}: early-stop validates on one half of the test images: give at least 2")
    wanted = ("clean", "release", pairing.matched, *(ARMS if arms is None else arms))
    plan = Plan(
        attackers=names,
        arms=tuple(arm for arm in pairing.arms if arm in wanted),
        attacks=attacks,
        config=config,
        runner=Runner(pairing, samples, validation, test_digest, config, device),
        shelf=Shelf(runs),
        groups=groups,
        data_warnings=(*_partly(released, limit), *captioned, *warnings),
        provenance={},
    )
    plan.provenance.update(_provenance(plan, released), limit=limit)
    return plan


def _partly(released: Dataset, limit: int | None) -> Iterator[str]:
    if limit is not None and len(released.by_image()) >= limit:
        yield f"attackers saw no more than the first {limit} released images: with more they may learn otherwise."


def _refused(attackers: Sequence[str], digests: Iterable[str], max_pixels: int) -> dict[str, str]:
    """Why an attacker takes no image of a shape, by the shape as a digest has it."""
    shapes = sorted({digest.partition(":")[0] for digest in digests})
    shown = {shape: shrunk_size(_size(shape), max_pixels) for shape in shapes}
    found: dict[tuple[int, int], str] = {}
    for name in reversed(attackers):
        found |= refusals(name, {shown[shape] for shape in shapes})
    return {shape: found[shown[shape]] for shape in shapes if shown[shape] in found}


def _size(shape: str) -> tuple[int, int]:
    height, width = shape.split("x")
    return int(height), int(width)


def _taken(pairing: Pairing, refused: Mapping[str, str], root: Path) -> Pairing:
    """The pairs whose images every attacker takes: what one refuses is left out of all arms, and for all attackers.

    Raises:
        DataError: none is left, or none that the release changed.
    """
    kept, rejected = [], []
    for ours, released in pairing.pairs:
        reason = refused.get(pairing.digests[released.image].partition(":")[0])
        if reason is None:
            kept.append((ours, released))
        else:
            rejected.append(Rejection(f"released sample {released.id}", f"{released.image}: {reason}"))
    if not kept:
        raise DataError(f"{root}: no image is left to train on: {rejected[0].reason}: name other attackers")
    taken = replace(pairing, pairs=kept, rejected=[*pairing.rejected, *rejected])
    if not taken.images_changed and not taken.texts_changed:
        raise DataError(f"{root}: no change is left to train on: {rejected[0].reason}: name other attackers")
    return taken


def _captioned(pairing: Pairing, attacker: str, device: str, max_pixels: int) -> tuple[Pairing, list[str]]:
    """The pairs with texts to train on, and a warning where a model had to write them.

    A thief who steals pictures without text captions what he stole, the released ones. All arms get these texts, so
    that they differ in pictures only.

    Raises:
        DataError: the model says nothing of any picture.
        SurrogateError: the model cannot be loaded.
    """
    silent = list(dict.fromkeys(released.image for _, released in pairing.pairs if not released.answer))
    if not silent:
        return pairing, []
    said = captions(load_surrogate(attacker, device).limited(max_pixels), silent)
    release_memory()
    pairs = [(_answered(a, b, said), _answered(b, b, said)) for a, b in pairing.pairs]
    told = [both for both in pairs if both[1].answer]
    if not told:
        raise DataError(f"{attacker}: says nothing of any released picture: name another attacker first")
    left_out = f"; the {len(pairs) - len(told)} that it says nothing of were left out" if len(told) < len(pairs) else ""
    warning = f"{len(silent)} pictures came without text: {attacker} captioned the released ones{left_out}."
    return replace(pairing, pairs=told), [warning]


def _idle(attacks: Sequence[str], pairing: Pairing) -> Iterator[str]:
    """A warning for each attack on texts that leaves nearly all questions of this release as they are: it tests little.

    Attacks by language models are not asked, which would take long.
    """
    samples = [released for _, released in pairing.pairs if released.question is not None]
    for attack in map(attack_named, attacks if pairing.texts_changed else ()):
        rewrite = None if attack.models else attack.rewriting(samples)
        if rewrite is None:
            continue
        draw = torch.Generator().manual_seed(0)
        changed = sum(rewrite(one, draw) != one.question for one in samples)
        if changed < _FEW * len(samples):
            yield f"{attack.name}: changes {changed} of {len(samples)} released questions, and so tests little of texts"


def _answered(sample: Sample, released: Sample, said: Mapping[Path, str]) -> Sample:
    """The sample with the caption of its released picture, if that needed one."""
    if released.answer:
        return sample
    text = said[released.image]
    return replace(sample, answer=text, answers=(text,))


def _clean_test(
    dataset: Dataset, pairing: Pairing, attackers: Sequence[str], max_pixels: int
) -> tuple[list[Sample], list[int], str, list[str]]:
    """The test samples that are fit for use, the number of the image of each, their hash, and warnings.

    An image that is also trained on proves nothing, and one that an attacker cannot be shown compares nothing: their
    questions are left out.
    """
    if not all(sample.answer for sample in dataset.samples):
        raise DataError(
            f"{dataset.root}: has pictures without text, which test nothing: give each a caption or question"
        )
    trained = set(pairing.digests.values())
    digests: dict[Path, str] = {}
    unreadable, unfit, leaked = [], [], set()
    for path in dataset.by_image():
        try:
            pixels = pixel_digest(path)
        except SampleError as error:
            unreadable.append(str(error))
            continue
        if pixels in trained:
            leaked.add(path)
        else:
            digests[path] = pixels
    refused = _refused(attackers, digests.values(), max_pixels)
    for path, pixels in list(digests.items()):
        if reason := refused.get(pixels.partition(":")[0]):
            unfit.append(f"{path}: {reason}")
            del digests[path]
    samples = [sample for sample in dataset.samples if sample.image in digests]
    if not samples:
        raise DataError(
            f"{dataset.root}: no test image is left: {len(leaked)} are training images too, "
            f"{len(unreadable)} cannot be read, {len(unfit)} cannot be shown to an attacker; give a test set that has "
            "no image in common with the dataset"
        )
    warnings = []
    if leaked:
        warnings.append(
            f"{len(leaked)} of {len(leaked) + len(digests)} test images are training images too; "
            "their questions were left out."
        )
    if unreadable:
        warnings.append(f"{len(unreadable)} test images cannot be read and were left out: {_listed(unreadable)}")
    if unfit:
        warnings.append(f"{len(unfit)} test images were left out for all attackers: {_listed(unfit)}")
    if pairing.rejected:
        reasons = list(dict.fromkeys(rejection.reason for rejection in pairing.rejected))
        warnings.append(f"{len(pairing.rejected)} released samples were left out of all arms: {_listed(reasons)}")
    number = {pixels: place for place, pixels in enumerate(dict.fromkeys(digests.values()))}
    groups = [number[digests[sample.image]] for sample in samples]
    return samples, groups, digest([_content(sample, digests) for sample in samples]), warnings


def _longest(samples: Sequence[Sample]) -> int:
    """How many tokens the longest right answer has, at most: one a byte, as figures have in some tokenizers."""
    right = ((target_text(one),) if one.options else (one.answer, *one.answers) for one in samples)
    return max(len(answer.encode()) for answers in right for answer in answers)


def _listed(reasons: Sequence[str]) -> str:
    """Some reasons, and how many more there are."""
    more = len(reasons) - _LISTED
    return "; ".join(reasons[:_LISTED]) + (f"; and {more} more" if more > 0 else "")


def _content(sample: Sample, digests: dict[Path, str]) -> list[Any]:
    return [
        digests[sample.image],
        user_text(sample.question, sample.options),
        target_text(sample),
        sample.answers,
        sample.metric,
    ]


def _provenance(plan: Plan, released: Dataset) -> dict[str, Any]:
    """What is needed to run the audit again."""
    pairing, samples = plan.runner.pairing, plan.runner.samples
    return {
        "versions": versions(*PACKAGES),
        "attack versions": {"revision": ATTACK_REVISION, **versions(*ATTACK_PACKAGES, *FILTER_PACKAGES)},
        "revision": REVISION,
        "comparison revision": COMPARISON_REVISION,
        "commit": commit(),
        "device": device_of(plan.runner.device).type,
        "attackers": list(plan.attackers),
        "weights": {name: _weights(plan, name) for name in plan.attackers},
        "config": asdict(plan.config),
        "seeds": list(plan.seeds),
        "release data sha256": sha256(*released.files),
        "data sha256": {arm: plan.runner.data_digest(arm) for arm in plan.arms},
        "test sha256": plan.runner.test_digest,
        "training samples": len(pairing.pairs),
        "training images": len({released.image for _, released in pairing.pairs}),
        "test samples": len(samples),
        "test images": len({sample.image for sample in samples}),
        "images changed": pairing.images_changed,
        "texts changed": pairing.texts_changed,
    }


def _weights(plan: Plan, attacker: str) -> str | None:
    """Tells one state of an attacker's weights from another; None if there is no such model, as its runs will say."""
    try:
        return plan.runner.weights_digest(attacker)
    except SurrogateError:
        return None
