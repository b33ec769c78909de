"""Code and commands out of our pages, for tests to run them: as they stand, but with the least work."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from mmguard.auditing import run as auditing
from mmguard.config import AuditConfig, ProtectConfig
from mmguard.protection import run as protection

SMALL = "zoo:qwen3vl-tiny"


def blocks(page: str) -> list[tuple[str, str]]:
    """The fenced blocks of a page in order: language and text. Datasets that are drawn shrink to two pictures."""
    return [
        (language, re.sub(r"(drawings:[a-z-]+:[a-z]+):\d+", r"\1:2", text))
        for language, text in re.findall(r"^```(\w*)\n(.*?)^```", page, re.S | re.M)
    ]


def commands(text: str) -> Iterator[list[str]]:
    """The mmguard commands of a block of shell, each without its first word."""
    for line in text.replace("\\\n", "").splitlines():
        if line.startswith("mmguard "):
            yield shlex.split(line)[1:]


def least_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on protections and audits, by command or from Python, do one step of everything, with small models."""
    protect, audit = protection.protect, auditing.audit

    def protect_little(dataset: Any, surrogates: Any = (SMALL,), config: Any = None, *rest: Any, **named: Any) -> Any:
        config = replace(config or ProtectConfig(), rounds=1, inner_steps=1, pgd_steps=1, top_c=2)
        small = [name if str(name).startswith("zoo:") else SMALL for name in surrogates]
        return protect(dataset, small, config, *rest, **named)

    def audit_little(
        release: Any, original: Any, test: Any, attackers: Any = None, config: Any = None, *rest: Any, **named: Any
    ) -> Any:
        config = replace(config or AuditConfig(), seeds=1, epochs=1)
        named |= {"jobs": 1, "arms": ("control",)}
        return audit(release, original, test, attackers or ["zoo:llava-tiny"], config, *rest, **named)

    monkeypatch.setattr(protection, "protect", protect_little)
    monkeypatch.setattr(auditing, "audit", audit_little)
    monkeypatch.setattr("mmguard.lvlm.choose._source", lambda name: None)
