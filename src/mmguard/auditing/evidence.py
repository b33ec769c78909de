"""All that the runs of an audit brought to light. The report follows from it, and can be written anew at any time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from mmguard.auditing.attacks import attack_named
from mmguard.auditing.best_of import choosing_half, worst_case
from mmguard.auditing.losses import LossCurve
from mmguard.auditing.report import AuditReport, Failure, Filtered, not_tested
from mmguard.auditing.stats import Finding, FloatArray, Scores, analyse, marginal_values


@dataclass(frozen=True)
class Evidence:
    """The scores of every answer, and what to know of them."""

    scores: tuple[Scores, ...]
    """Of every attacker and recipe, without attacks and under each."""
    groups: tuple[int, ...]
    """Number of the image of every test sample."""
    attacks: tuple[str, ...]
    """What was tried, whether or not there are scores of it."""
    resamples: int
    """Of the bootstrap; so is the seed."""
    seed: int
    sifted: tuple[Filtered, ...] = ()
    failures: tuple[Failure, ...] = ()
    warnings: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    losses: tuple[LossCurve, ...] = ()
    """For charts; no part of the plain data, since each run's file has it step by step."""

    def report(self) -> AuditReport:
        """What it says of every attacker, recipe and attack of which all runs were made."""
        plain = [one for one in self.scores if one.attack is None]
        findings, headline = analyse(plain, self.groups, self.resamples, self.seed)
        # How an attacker bears any change is told by the runs that change nothing else.
        status = {(one.attacker, one.recipe): one.status for one in findings}
        judged = [replace(one, status=status[one.attacker, one.recipe]) for one in self.scores]
        # What clean data does for an attacker says nothing of the release: mixtures are judged by what that adds to it.
        mixtures = [one for one in self.scores if "clean-part" in one.by_arm]
        options = [one for one in judged if "clean-part" not in one.by_arm]
        attacked = [one for one in options if one.attack is not None]
        chooses = attacked or len({one.recipe for one in plain}) > 1
        return AuditReport(
            headline=headline,
            findings=tuple(findings),
            under_attack=tuple(self._under_attack(attacked)),
            worst_case=worst_case(options, self.groups, self.resamples, self.seed) if chooses else None,
            mixtures=tuple(marginal_values(mixtures, self.groups, self.resamples, self.seed)),
            sifted=self.sifted,
            failures=self.failures,
            warnings=self.warnings,
            not_tested=not_tested({one.attack for one in (*attacked, *mixtures) if one.attack}),
            provenance=dict(self.provenance),
            losses=self.losses,
        )

    def _under_attack(self, attacked: Sequence[Scores]) -> Iterator[Finding]:
        """Judges attacks: one that chose its weights on some of the test items, on the others alone."""
        unseen = ~choosing_half(self.groups)
        for chose, items in ((False, np.full_like(unseen, True)), (True, unseen)):
            scores = [one.on(items) for one in attacked if attack_named(str(one.attack)).training.keep_best == chose]
            groups = np.asarray(self.groups)[items].tolist()
            yield from analyse(scores, groups, self.resamples, self.seed)[0]

    def to_dict(self) -> dict[str, Any]:
        """All of it but the losses, ready for JSON; `from_dict` reads it again."""
        return {
            "scores": [
                {
                    "attacker": one.attacker,
                    "recipe": one.recipe,
                    "attack": one.attack,
                    "matched": one.matched,
                    "zero-shot": _packed(one.zero_shot),
                    "arms": {arm: [_packed(seed) for seed in scores] for arm, scores in one.by_arm.items()},
                }
                for one in self.scores
            ],
            "groups": list(self.groups),
            "attacks": list(self.attacks),
            "resamples": self.resamples,
            "seed": self.seed,
            "sifted": [asdict(one) for one in self.sifted],
            "failures": [asdict(one) for one in self.failures],
            "warnings": list(self.warnings),
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Evidence:
        """Evidence as `to_dict` wrote it.

        Raises:
            KeyError, TypeError, ValueError: it was not written by `to_dict`.
        """
        items = len(plain["groups"])
        scores = tuple(
            Scores(
                attacker=one["attacker"],
                recipe=one["recipe"],
                by_arm={
                    arm: np.stack([_unpacked(seed, items) for seed in seeds]) for arm, seeds in one["arms"].items()
                },
                zero_shot=_unpacked(one["zero-shot"], items),
                matched=one["matched"],
                attack=one["attack"],
            )
            for one in plain["scores"]
        )
        return cls(
            scores=scores,
            groups=tuple(plain["groups"]),
            attacks=tuple(plain["attacks"]),
            resamples=plain["resamples"],
            seed=plain["seed"],
            sifted=tuple(Filtered(**one) for one in plain["sifted"]),
            failures=tuple(Failure(**one) for one in plain["failures"]),
            warnings=tuple(plain["warnings"]),
            provenance=plain["provenance"],
        )


def _packed(scores: FloatArray) -> str | list[float]:
    """Scores of test items: where all are 0 or 1 a bit each, as hexadecimal digits; else as they are."""
    if np.isin(scores, (0, 1)).all():
        return np.packbits(scores.astype(bool)).tobytes().hex()
    found: list[float] = scores.tolist()
    return found


def _unpacked(packed: str | Sequence[float], items: int) -> FloatArray:
    """The inverse of `_packed`."""
    if isinstance(packed, str):
        return np.unpackbits(np.frombuffer(bytes.fromhex(packed), np.uint8))[:items].astype(np.float64)
    return np.array(packed, dtype=np.float64)
