"""The audit: every attacker fine-tunes on every arm with every seed, and the answers are compared.

It plays the thief, who has the release and nothing else; the owner, who runs it, adds the original (for the
clean arm and the controls) and a clean test set.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from mmguard.auditing import recipes
from mmguard.auditing.arms import ARMS, Arm, ImageStore, Pairing, pair, pixel_digest
from mmguard.auditing.arms import rows as arm_rows
from mmguard.auditing.attackers import default_attackers, fine_tune, load_attacker, model_folder, schedule
from mmguard.auditing.evaluate import evaluate
from mmguard.auditing.report import AuditReport, Failure
from mmguard.auditing.stats import FloatArray, Scores, analyse
from mmguard.config import AuditConfig, Recipe
from mmguard.data.readers import read_dataset
from mmguard.data.tasks import target_text, user_text
from mmguard.errors import ConfigError, DataError, SampleError
from mmguard.release.layout import METADATA, sha256
from mmguard.runtime.progress import progress as bar
from mmguard.types import Dataset, Sample

Progress = Callable[[float, str], None]
"""Called with the share of the work that is done, from 0 to 1, and with what is being done."""

_PACKAGES = ("mmguard", "torch", "transformers", "peft", "trl", "accelerate")
_ZERO_SHOT = "zero-shot"
_TRAINING_SHARE = 0.9
"""What part of a run is training; the rest is answering the test. For the progress bar only."""


def audit(
    release: str | Path,
    original: str | Path,
    test: str | Path,
    attackers: Sequence[str] | None = None,
    config: AuditConfig = AuditConfig(),
    out: Path | None = None,
    arms: Sequence[Arm] | None = None,
    progress: Progress | bool = False,
    device: str = "auto",
    split: str | None = None,
    test_split: str | None = None,
    test_limit: int | None = None,
) -> AuditReport:
    """Measures what a release is worth against attackers who fine-tune on it.

    Args:
        release: the released folder; nothing beside it is read.
        original: the dataset that it was made from.
        test: a clean test set of the same task.
        attackers: model names (hub id, folder, `zoo:NAME`); the zoo if not given.
        config: how attackers fine-tune, and how they are judged.
        out: where finished runs are kept and the report is written. An audit that was interrupted goes on
            from there; runs made with other settings, data, models or library versions are made again. None
            keeps nothing.
        arms: run only these; clean and release always are. By default all that differ for this release.
        progress: a callback, or True for a bar on standard error.
        device: `auto`, `cpu`, `cuda`, …
        split: split of the original; of a benchmark, `train` if not given.
        test_split: split of the test set; of a benchmark, `test` if not given.
        test_limit: use only the questions of so many test images.

    Returns:
        The report. An attacker that fails is listed in it, and does not end the others.

    Raises:
        DataError: a dataset cannot be read, or every test image is also a training image.
        ReleaseError: the release does not belong to the original, or changes nothing.
        ConfigError: an unknown arm, or a recipe that cannot be followed here.
    """
    if unknown := set(arms or ()) - set(ARMS):
        raise ConfigError(f"arm {', '.join(sorted(unknown))}: choose from {', '.join(ARMS)}")
    for recipe in config.recipes:
        recipes.require(recipe)
    released = read_dataset(release)
    pairing = pair(released, read_dataset(original, split=split))
    tested = read_dataset(test, test_split, test_limit, part="test")
    samples, groups, test_digest, warnings = _clean_test(tested, pairing)
    wanted = tuple(arm for arm in pairing.arms if arms is None or arm in ("clean", "release", *arms))
    names = list(dict.fromkeys(attackers if attackers is not None else default_attackers()))
    runner = _Runner(pairing, samples, config, _Shelf(out and out / "runs", _data_key(pairing, test_digest)), device)
    scores: list[Scores] = []
    failures: list[Failure] = []
    with _reporting(progress, len(names) * len(config.recipes) * len(wanted) * config.seeds) as advance:
        for name in names:
            try:
                scores += runner.scores(name, wanted, advance)
            # Whatever an attacker's code raises (no memory, no such file, a bug of its model), the others can
            # go on.
            except Exception as error:
                failures.append(Failure(name, f"{type(error).__name__}: {error}"))
    findings, headline = analyse(scores, groups, config.bootstrap, config.seed)
    report = AuditReport(
        headline=headline,
        findings=tuple(findings),
        failures=tuple(failures),
        warnings=tuple(warnings),
        provenance=_provenance(released, pairing, samples, config, names, test_digest),
    )
    if out is not None:
        report.write(out)
    return report


class _Shelf:
    """Finished runs on disk, each under a key of everything that its result depends on."""

    def __init__(self, folder: Path | None, data_key: str) -> None:
        self._folder = folder
        self._data_key = data_key
        self._versions = {name: version(name) for name in _PACKAGES}

    def find(self, run: dict[str, Any]) -> FloatArray | None:
        """The stored scores of a run, if it was made in just this way."""
        if self._folder is None:
            return None
        try:
            stored = json.loads(self._path(run).read_text(encoding="utf-8"))
            if stored["key"] == self._key(run):
                return np.array(stored["scores"], dtype=np.float64)
        except (OSError, ValueError, KeyError, TypeError):
            pass  # not made yet, or cut off while it was being written: made again either way
        return None

    def keep(self, run: dict[str, Any], scores: FloatArray) -> None:
        """Stores the scores of a run."""
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"key": self._key(run), **run, "scores": scores.tolist()})
        path = self._path(run)
        unfinished = path.with_suffix(".tmp")
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)

    def _path(self, run: dict[str, Any]) -> Path:
        assert self._folder is not None
        name = "_".join(str(run[part]) for part in ("attacker", "recipe", "arm", "seed"))
        return self._folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name)[-120:]}_{_hash(name)[:8]}.json"

    def _key(self, run: dict[str, Any]) -> str:
        return _hash([self._data_key, self._versions, run])


@dataclass(frozen=True)
class _Runner:
    """Makes the runs that are still missing."""

    pairing: Pairing
    samples: list[Sample]
    config: AuditConfig
    shelf: _Shelf
    device: str
    store: ImageStore = field(default_factory=ImageStore)
    words: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Vocabulary of every attacker that was loaded."""

    def scores(self, name: str, arms: Sequence[Arm], advance: Callable[[float, str], None]) -> list[Scores]:
        """All runs of one attacker, one entry for each recipe."""
        zero_shot = self._zero_shot(name)
        entries = []
        for recipe in self.config.recipes:
            by_arm: dict[str, FloatArray] = {
                arm: np.stack(
                    [self._run(name, recipe, arm, self.config.seed + k, advance) for k in range(self.config.seeds)]
                )
                for arm in arms
            }
            entries.append(Scores(name, recipe, by_arm, zero_shot, self.pairing.matched))
        return entries

    def _zero_shot(self, name: str) -> FloatArray:
        run = self._describe(name, None, _ZERO_SHOT, 0)
        if (found := self.shelf.find(run)) is None:
            attacker = load_attacker(name, self.device)
            self.words[name] = attacker.words
            found = evaluate(attacker, self.samples, self.config, self.store)
            self.shelf.keep(run, found)
        return found

    def _run(self, name: str, recipe: Recipe, arm: Arm, seed: int, advance: Callable[[float, str], None]) -> FloatArray:
        run = self._describe(name, recipe, arm, seed)
        label = f"{name} {recipe} {arm} seed {seed}"
        if (found := self.shelf.find(run)) is not None:
            advance(1, label)
            return found
        advance(0, label)
        if name not in self.words:
            self.words[name] = load_attacker(name, "cpu").words
        attacker = fine_tune(
            name,
            arm_rows(arm, self.pairing, self.words[name], seed),
            recipe,
            self.config,
            seed,
            device=self.device,
            store=self.store,
            on_step=lambda share: advance(_TRAINING_SHARE * share, label),
        )
        found = evaluate(attacker, self.samples, self.config, self.store)
        advance(1 - _TRAINING_SHARE, label)
        self.shelf.keep(run, found)
        return found

    def _describe(self, name: str, recipe: Recipe | None, arm: str, seed: int) -> dict[str, Any]:
        """Everything that the result of a run depends on, besides data and library versions."""
        settings: dict[str, Any] = {"max_new_tokens": self.config.max_new_tokens}
        if recipe is not None:
            lr, epochs = schedule(name, recipe, self.config)
            settings |= {"lr": lr, "epochs": epochs}
            settings |= {"batch_size": self.config.batch_size, "warmup": self.config.warmup}
            settings |= {"lora_rank": recipes.rank(recipe, self.config)}
        return {
            "attacker": name,
            "weights": _fingerprint(model_folder(name)),
            "recipe": recipe,
            "arm": arm,
            "seed": seed,
            "settings": settings,
        }


def _clean_test(dataset: Dataset, pairing: Pairing) -> tuple[list[Sample], list[int], str, list[str]]:
    """The test samples that are fit for use, the number of the image of each, their hash, and warnings.

    An image that is also trained on proves nothing: its questions are left out.
    """
    trained = set(pairing.digests.values())
    digests: dict[Path, str] = {}
    unreadable, leaked = [], set()
    for path in dataset.by_image():
        try:
            digest = pixel_digest(path)
        except SampleError as error:
            unreadable.append(str(error))
            continue
        if digest in trained:
            leaked.add(path)
        else:
            digests[path] = digest
    samples = [sample for sample in dataset.samples if sample.image in digests]
    if not samples:
        raise DataError(
            f"{dataset.root}: no test image is left: {len(leaked)} are training images too, "
            f"{len(unreadable)} cannot be read; give a test set that has no image in common with the dataset"
        )
    warnings = []
    if leaked:
        warnings.append(
            f"{len(leaked)} of {len(leaked) + len(digests)} test images are training images too; "
            "their questions were left out."
        )
    if unreadable:
        warnings.append(f"{len(unreadable)} test images cannot be read and were left out; the first: {unreadable[0]}")
    if pairing.rejected:
        first = pairing.rejected[0]
        warnings.append(f"{len(pairing.rejected)} released samples were left out; the first: {first.reason}")
    number = {digest: place for place, digest in enumerate(dict.fromkeys(digests.values()))}
    groups = [number[digests[sample.image]] for sample in samples]
    return samples, groups, _hash([_content(sample, digests) for sample in samples]), warnings


def _data_key(pairing: Pairing, test_digest: str) -> str:
    pairs = [[_content(sample, pairing.digests) for sample in both] for both in pairing.pairs]
    return _hash([pairs, test_digest])


def _content(sample: Sample, digests: dict[Path, str]) -> list[Any]:
    return [
        digests[sample.image],
        user_text(sample.question, sample.options),
        target_text(sample),
        sample.answers,
        sample.metric,
    ]


def _fingerprint(folder: Path | None) -> str | None:
    """Tells one state of a model's folder from another; files are told by size and time, not read."""
    if folder is None:
        return None
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return _hash(
        [[path.relative_to(folder).as_posix(), path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    )


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _provenance(
    released: Dataset,
    pairing: Pairing,
    samples: Sequence[Sample],
    config: AuditConfig,
    names: Sequence[str],
    test_digest: str,
) -> dict[str, Any]:
    metadata = released.root / METADATA
    return {
        "versions": {name: version(name) for name in _PACKAGES},
        "attackers": list(names),
        "config": asdict(config),
        "seeds": [config.seed + k for k in range(config.seeds)],
        "release metadata sha256": sha256(metadata) if metadata.is_file() else None,
        "data sha256": _data_key(pairing, test_digest),
        "training samples": len(pairing.pairs),
        "training images": len({released.image for _, released in pairing.pairs}),
        "test samples": len(samples),
        "test images": len({sample.image for sample in samples}),
        "images changed": pairing.images_changed,
        "texts changed": pairing.texts_changed,
    }


@contextmanager
def _reporting(progress: Progress | bool, total: int) -> Iterator[Callable[[float, str], None]]:
    """Yields `advance(runs, what)`, which reports to a callback, to a bar, or to nobody."""
    with bar("Audit", total, enabled=progress is True) as move:
        done = 0.0

        def advance(runs: float, what: str) -> None:
            nonlocal done
            done += runs
            move(runs)
            if callable(progress):
                progress(min(1.0, done / total), what)

        yield advance
