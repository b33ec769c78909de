"""Settings that make no sense are refused when they are made, with their name and what to give instead."""

from __future__ import annotations

from math import inf, nan
from typing import Any

import pytest

from mmguard.config import AuditConfig, EngineConfig, ProtectConfig
from mmguard.errors import ConfigError


@pytest.mark.parametrize("eps", [8 / 255, 8.0, 128, -1, True, "8"])
def test_eps_counts_in_levels(eps: Any) -> None:
    with pytest.raises(ConfigError, match=rf"eps {eps}: give a whole number from 0 to 127: it counts in 1/255"):
        ProtectConfig(eps=eps)


@pytest.mark.parametrize(
    ("kind", "name", "values"),
    [
        (ProtectConfig, "trigger_words", (-1, 1.5)),
        (ProtectConfig, "rounds", (0, 2.0)),
        (ProtectConfig, "inner_steps", (-1, 1.5)),
        (ProtectConfig, "pgd_steps", (-1, 0.5)),
        (ProtectConfig, "top_c", (0, 1.5)),
        (ProtectConfig, "lambda_train", (-1, nan, inf)),
        (ProtectConfig, "lambda_bind", (-1, nan, inf)),
        (ProtectConfig, "bind_layers", (0, 1.5)),
        (ProtectConfig, "tau", (0, 1.1, nan)),
        (ProtectConfig, "inner_batch_size", (0, 1.5)),
        (ProtectConfig, "inner_lr", (0, -1e-4, nan, inf)),
        (ProtectConfig, "inner_rank", (0, 8.0)),
        (ProtectConfig, "batch_size", (0, 1.5)),
        (ProtectConfig, "max_pixels", (-1, 1000, 2048.0)),
        (ProtectConfig, "seed", (0.5, "1")),
        (EngineConfig, "workers", (0, 1.5)),
        (AuditConfig, "seeds", (0, 1.5)),
        (AuditConfig, "epochs", (0, nan, inf)),
        (AuditConfig, "batch_size", (0, 1.5)),
        (AuditConfig, "lr", (0, -1, nan, inf)),
        (AuditConfig, "lora_rank", (0, 1.5)),
        (AuditConfig, "warmup", (-0.1, 1, nan)),
        (AuditConfig, "max_new_tokens", (0, 1.5)),
        (AuditConfig, "eval_batch_size", (0, 1.5)),
        (AuditConfig, "bootstrap", (99, 100.5)),
        (AuditConfig, "seed", (-1, 0.5)),
    ],
)
def test_settings_out_of_range_are_named(kind: Any, name: str, values: tuple[Any, ...]) -> None:
    for value in values:
        with pytest.raises(ConfigError, match=rf"^{name.replace('_', '-')} {value!r}: give "):
            kind(**{name: value})


@pytest.mark.parametrize(
    ("samples", "given", "steps"),
    [
        (10_000, {}, 60),
        (160, {}, 60),
        (20, {}, 8),
        (1, {}, 1),
        (20, {"inner_steps": 99}, 99),
        (10_000, {"variant": "mislead"}, 400),
        (300, {"variant": "mislead"}, 225),
    ],
)
def test_surrogates_see_no_sample_more_often_than_attackers_do(samples: int, given: dict[str, Any], steps: int) -> None:
    assert ProtectConfig(**given).inner_steps_for(samples) == steps
