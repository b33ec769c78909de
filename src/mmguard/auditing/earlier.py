"""Runs of earlier audits, by the scores that are left of them: clean data and controls are the same for all releases of
a dataset, on all machines, and need not be run for each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

from mmguard.auditing.attacks import attack_named
from mmguard.auditing.attacks.base import Attack
from mmguard.auditing.evidence import Evidence
from mmguard.auditing.plan import Plan
from mmguard.auditing.report import commits_of
from mmguard.auditing.runs import COMPARISON_REVISION, Result, Run
from mmguard.auditing.selection import MixedArm, Sifted
from mmguard.auditing.stats import FloatArray, Scores
from mmguard.config import Recipe

_SETTINGS = ("epochs", "batch_size", "lr", "lora_rank", "warmup", "max_new_tokens", "max_pixels", "eval_batch_size")
"""Those of an audit that the scores of a run depend on."""

UNNAMED = {"max_pixels": 0}
"""What was done before it became a setting."""


def results_of(evidence: Iterable[Evidence], plan: Plan) -> dict[Run, Result]:
    """What evidence of other audits says of runs that a plan has, too.

    Only what was made by the same attacker with the same weights, recipe, seed and settings, from the same data, judged
    by the same test, with the same versions on the same kind of device counts, and is known to. Runs under an attack
    that has a model are made again.

    Args:
        evidence: of other audits.
        plan: of this one.
    """
    here, runs = plan.provenance, set(plan.runs)
    found: dict[Run, Result] = {}
    for one in evidence:
        there = one.provenance
        if any(there.get(key) != here[key] for key in ("versions", "test sha256", "device")):
            continue
        if there.get("revision", 1) != here["revision"]:  # which the first results do not name
            continue
        config = UNNAMED | there["config"]
        if any(config.get(key) != here["config"][key] for key in _SETTINGS):
            continue
        for scores in one.scores:
            weights = here["weights"].get(scores.attacker)
            if weights is None or there["weights"].get(scores.attacker) != weights:
                continue
            if scores.attack is not None and not _same_attack(scores.attack, plan, there):
                continue
            found[Run(scores.attacker)] = Result(scores.zero_shot, commits=commits_of(there))
            for arm, by_seed in scores.by_arm.items():
                if _same_data(arm, scores.attack, there, here):
                    found |= dict(_runs(one, scores, cast("MixedArm", arm), by_seed))
    return {run: result for run, result in found.items() if run in runs}


def _same_attack(name: str, plan: Plan, there: Any) -> bool:
    """Whether a plan has an attack that did the same there; the first audits do not name what that depends on.

    Others are not even looked up: there they may have been known by names that mean nothing here.
    """
    if name not in plan.attacks or there.get("attack versions") != plan.provenance["attack versions"]:
        return False
    attack = attack_named(name)
    return not attack.models and compares_alike(attack, there)


def compares_alike(attack: Attack, there: Any) -> bool:
    """Whether an attack's filter, if it compares samples with a thief's own, did there what it does today."""
    return not attack.selection.compares or there.get("comparison revision", 1) == COMPARISON_REVISION


def _same_data(arm: str, attack: str | None, there: Any, here: Any) -> bool:
    mixes = attack is not None and attack_named(attack).selection.clean_percent is not None
    arms = {"clean" if arm == "clean-part" else arm} | ({"clean"} if mixes else set())
    return all(there["data sha256"].get(one) == here["data sha256"].get(one) is not None for one in arms)


def _runs(one: Evidence, scores: Scores, arm: MixedArm, by_seed: FloatArray) -> Iterator[tuple[Run, Result]]:
    """The runs of an arm, and what filters did in the mean."""
    key = scores.attacker, scores.recipe, scores.attack, arm
    known = (f for f in one.sifted if (f.attacker, f.recipe, f.attack, f.arm) == key)
    sifted = next((Sifted(f.dropped, f.auc) for f in known), None)
    for seed, row in zip(one.provenance["seeds"], by_seed, strict=True):
        run = Run.under(scores.attacker, cast("Recipe", scores.recipe), arm, seed, scores.attack)
        yield run, Result(row, (), sifted, commits_of(one.provenance))
