"""One run of an audit: what it depends on, how it is made, and where its result is kept."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mmguard.auditing import recipes
from mmguard.auditing.arms import WORDED, Arm, ImageStore, Pairing, Row, ingredients, rows
from mmguard.auditing.attackers import Attacker, fine_tune, load_attacker, schedule, vocabulary
from mmguard.auditing.attacks import attack_named
from mmguard.auditing.attacks.base import Attack, Selection
from mmguard.auditing.evaluate import evaluate
from mmguard.auditing.filters import Judge
from mmguard.auditing.selection import MixedArm, Sifted, clean_places, mixture, repeated, sift
from mmguard.auditing.stats import FloatArray
from mmguard.config import AuditConfig, Recipe
from mmguard.lvlm.weights import weights_digest
from mmguard.runtime.devices import auto_means, device_of
from mmguard.runtime.executor import Report
from mmguard.runtime.memory import release_memory
from mmguard.runtime.provenance import commit, digest, versions
from mmguard.types import Sample

PACKAGES = ("mmguard", "torch", "transformers", "peft", "trl", "accelerate")
"""Libraries whose version a run depends on."""

ATTACK_PACKAGES = ("kornia", "pillow", "pyspellchecker", "scikit-image", "torchvision")
"""Those that a run under attack depends on, too."""

FILTER_PACKAGES = ("rapidfuzz", "scikit-learn", "scipy")
"""Those that a run on filtered data depends on, too."""

PURIFY_PACKAGES = ("diffusers",)
"""Those that a run depends on, too, whose images a model drew anew."""

REVISION = 1
"""Of the code of runs: raised when a change alters what comes of one, so that results from before do not count."""

ATTACK_REVISION = 1
"""The same of the code of attacks alone."""

COMPARISON_REVISION = 2
"""The same of filters on mixtures: the first took all of the data for usual."""

_TRAINING_SHARE = 0.9
"""What part of a run is training; the rest is answering the test. For the progress bar only."""


@dataclass(frozen=True)
class Run:
    """One fine-tuning and its test, or the test of the untouched model."""

    attacker: str
    recipe: Recipe | None = None
    """None for the untouched model."""
    arm: MixedArm | Literal["zero-shot"] = "zero-shot"
    seed: int = 0
    attack: str | None = None
    """What is done to the training data first, or to the training."""

    def __str__(self) -> str:
        return f"{self.attacker} {self.name}"

    @classmethod
    def under(cls, attacker: str, recipe: Recipe, arm: MixedArm, seed: int, attack: str | None) -> Run:
        """A fine-tuning under an attack; where it changes nothing, the one without it, or under less of it."""
        selection = attack_named(attack).selection if attack else Selection()
        if arm == "clean-part":  # a thief has no cause to filter it
            attack = f"mix-{selection.clean_percent}"
        elif arm == "clean" and selection.clean_percent is not None and selection.judge in (None, "leaked"):
            attack = None  # clean data mixed with clean data; and a detector has nothing to learn from
        return cls(attacker, recipe, arm, seed, attack)

    @property
    def name(self) -> str:
        """What the attacker does."""
        if self.recipe is None:
            return self.arm
        return f"{self.recipe} {self.arm} seed {self.seed}" + (f" under {self.attack}" if self.attack else "")

    @property
    def weight(self) -> float:
        """How long it takes, a fine-tuning being 1."""
        return 1.0 if self.recipe else 1 - _TRAINING_SHARE


@dataclass(frozen=True)
class Result:
    """What came of a run."""

    scores: FloatArray
    """Of every test sample, from 0 to 1. Shape: `(N,)`."""
    losses: tuple[float, ...] = ()
    """Training loss of every step, in nats a token; none of the untouched model, and of runs that did not keep it."""
    sifted: Sifted | None = None
    """What a filter did to the training data; None without one."""
    commits: tuple[str, ...] = ()
    """The state of our own code that it was made with, or several of which it is one."""


@dataclass
class Runner:
    """Makes runs; a copy of it does so in every worker process."""

    pairing: Pairing
    samples: list[Sample]
    """Of the clean test."""
    validation: list[Sample]
    """Those of them on which attackers may choose, and are not judged if they do: `choosing_half`."""
    test_digest: str
    config: AuditConfig
    device: str = "auto"
    threads: int | None = None
    """How many threads a run has; torch's choice if not given."""
    _store: ImageStore = field(default_factory=ImageStore)
    _weights: dict[str, str | None] = field(default_factory=dict)
    _data: dict[str, str] = field(default_factory=dict)

    def __call__(self, run: Run, report: Report) -> Result:
        """Makes a run."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        try:
            with auto_means(self.device):  # for the models of attacks
                return self._made(run, report)
        finally:
            if device_of(self.device).type != "cpu":
                release_memory()  # a trainer and its model hold each other: the next model would lie beside this one

    def _made(self, run: Run, report: Report) -> Result:
        losses: list[float] = []
        sifted = None
        if run.recipe is None:
            attacker = load_attacker(run.attacker, self.device)
        else:

            def on_step(step: int, steps: int, loss: float) -> None:
                losses[step - 1 :] = [float(f"{loss:.5g}")]  # which forgets those of a training that began anew
                report(_TRAINING_SHARE * step / steps)

            attack = attack_named(run.attack) if run.attack else Attack("none")
            # Noise, and images after an attack, are those of this run alone: in the common store they would leave no
            # room for others.
            store = ImageStore(files=self._store)
            data, sifted = self._training_data(run, attack, store)
            attacker = fine_tune(
                run.attacker,
                data,
                run.recipe,
                self.config,
                run.seed,
                device=self.device,
                store=store,
                on_step=on_step,
                training=attack.training,
                validate=self._validate,
            )
        scores = evaluate(attacker, self.samples, self.config, self._store)
        return Result(scores, tuple(losses), sifted, (commit() or "unknown",))

    def _training_data(self, run: Run, attack: Attack, store: ImageStore) -> tuple[list[Row], Sifted | None]:
        """The rows that a run is trained on, and what a filter did to them."""
        assert run.recipe is not None
        assert run.arm != "zero-shot"
        selection, words = attack.selection, vocabulary(run.attacker) if run.arm in WORDED else ()
        clean = clean_places(self.pairing, selection, run.seed)
        shown = self.config.max_pixels
        originals = rows("clean", self.pairing, words, run.seed, max_pixels=shown)
        if run.arm == "clean-part":
            return repeated([originals[place] for place in clean], len(originals)), None
        stolen = rows(run.arm, self.pairing, words, run.seed, attack, shown)
        data = mixture(stolen, originals, clean)
        if selection.judge is None:
            return data, None
        judge = Judge(run.attacker, run.recipe, self.config, run.seed, self.device, store)
        leaked = {place: stolen[place] for place in clean[: selection.leaked]}
        suspicion, drop = judge.of(data, selection, clean, leaked)
        return sift(data, suspicion, drop, range(len(data)) if run.arm == "clean" else clean)

    def describe(self, run: Run) -> dict[str, Any]:
        """Everything that the scores of a run depend on.

        Raises:
            ConfigError: the model's `mmguard.json` cannot be read.
            SurrogateError: the zoo has no such model.
        """
        settings: dict[str, Any] = {
            "max_new_tokens": self.config.max_new_tokens,
            "max_pixels": self.config.max_pixels,
        }
        if (kind := device_of(self.device).type) != "cpu":
            # Models have 16-bit weights there, so that what fills up a batch may change its answers.
            settings |= {"device": kind, "eval_batch_size": self.config.eval_batch_size}
        if run.recipe is not None:
            lr, epochs = schedule(run.attacker, run.recipe, self.config)
            settings |= {"lr": lr, "epochs": epochs, "lora_rank": recipes.rank(run.recipe, self.config)}
            settings |= {"batch_size": self.config.batch_size, "warmup": self.config.warmup}
        description = {
            "attacker": run.attacker,
            "weights": self.weights_digest(run.attacker),
            "recipe": run.recipe,
            "arm": run.arm,
            "seed": run.seed,
            "settings": settings,
            "data": self.data_digest("clean" if run.arm == "clean-part" else run.arm),
            "test": self.test_digest,
            "versions": versions(*PACKAGES),
            "revision": REVISION,
        }
        if run.attack is None:
            return description
        attack = attack_named(run.attack)
        packages = [*PACKAGES, *ATTACK_PACKAGES]
        packages += FILTER_PACKAGES if attack.selection.judge else ()
        packages += PURIFY_PACKAGES if attack.models and attack.image else ()
        description |= {"attack": run.attack, "attack revision": ATTACK_REVISION, "versions": versions(*packages)}
        if attack.models:
            description["attack weights"] = {name: self.weights_digest(name) for name in attack.models}
        if attack.selection.clean_percent is not None:
            description["clean data"] = self.data_digest("clean")
            if attack.selection.compares:
                description["comparison revision"] = COMPARISON_REVISION
        return description

    def weights_digest(self, model: str) -> str | None:
        """Tells one state of an attacker's weights from another (`lvlm.weights.weights_digest`)."""
        if model not in self._weights:
            self._weights[model] = weights_digest(model)
        return self._weights[model]

    def _validate(self, attacker: Attacker) -> float:
        """Accuracy on the validation samples."""
        return float(evaluate(attacker, self.validation, self.config, self._store).mean())

    def data_digest(self, arm: Arm | Literal["zero-shot"]) -> str | None:
        """Hash of what an arm's rows are made of; None for the untouched model, which has none."""
        if arm == "zero-shot":
            return None
        if arm not in self._data:
            self._data[arm] = digest(ingredients(arm, self.pairing))
        return self._data[arm]


class Shelf:
    """Finished runs on disk, each in a file of its own that is named and found by its description.

    Several audits can share a folder, and then runs that they have in common.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def find(self, description: dict[str, Any]) -> Result | None:
        """The stored result of a run, if it was made in just this way."""
        if self._folder is None:
            return None
        try:
            stored = json.loads(self._path(description).read_text(encoding="utf-8"))
            if {key: stored[key] for key in description} == description:
                sifted = Sifted(**stored["sifted"]) if "sifted" in stored else None
                scores, losses = np.array(stored["scores"], dtype=np.float64), tuple(stored.get("losses", ()))
                return Result(scores, losses, sifted, (stored.get("commit") or "unknown",))
        except (OSError, ValueError, KeyError, TypeError):
            pass  # not made yet, or cut off while it was being written: made again either way
        return None

    def keep(self, description: dict[str, Any], result: Result) -> None:
        """Stores the result of a run."""
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._path(description)
        unfinished = path.with_suffix(f".{os.getpid()}.tmp")  # another audit may make the same run
        made = {**description, "commit": commit(), "scores": result.scores.tolist(), "losses": result.losses}
        if result.sifted is not None:
            made["sifted"] = asdict(result.sifted)
        unfinished.write_text(json.dumps(made), encoding="utf-8")
        unfinished.replace(path)

    def _path(self, description: dict[str, Any]) -> Path:
        assert self._folder is not None
        parts = ("attacker", "recipe", "arm", "seed", "attack")
        name = "_".join(str(description[part]) for part in parts if part in description)
        return self._folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name)[-120:]}_{digest(description)[:16]}.json"
