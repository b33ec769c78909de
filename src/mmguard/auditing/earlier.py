"""Runs of earlier audits, by the scores that are left of them: clean data and controls are the same for all releases of
a dataset, on all machines, and need not be run for each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from mmguard.auditing.evidence import Evidence
from mmguard.auditing.plan import Plan
from mmguard.auditing.runs import Result, Run
from mmguard.auditing.selection import MixedArm
from mmguard.config import Recipe

_SETTINGS = ("epochs", "batch_size", "lr", "lora_rank", "warmup", "max_new_tokens", "eval_batch_size")
"""Those of an audit that the scores of a run depend on."""


def results_of(evidence: Iterable[Evidence], plan: Plan) -> dict[Run, Result]:
    """What evidence of other audits says of runs without attacks that a plan has, too.

    Only what was made by the same attacker with the same weights, recipe, seed and settings, from the same data, judged
    by the same test, with the same versions on the same kind of device counts, and is known to.

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
        if any(there["config"].get(key) != here["config"][key] for key in _SETTINGS):
            continue
        for scores in one.scores:
            weights = here["weights"].get(scores.attacker)
            if scores.attack is not None or weights is None or there["weights"].get(scores.attacker) != weights:
                continue
            found[Run(scores.attacker)] = Result(scores.zero_shot)
            for arm, by_seed in scores.by_arm.items():
                if there["data sha256"].get(arm) == here["data sha256"].get(arm):
                    for seed, row in zip(there["seeds"], by_seed, strict=True):
                        run = Run(scores.attacker, cast("Recipe", scores.recipe), cast("MixedArm", arm), seed)
                        found[run] = Result(row)
    return {run: result for run, result in found.items() if run in runs}
