"""Libraries say less on the screen, but nothing that matters is lost."""

from __future__ import annotations

import logging

import pytest

from mmguard.runtime.quiet import quiet_libraries


def test_advice_of_bitsandbytes_is_dropped_and_nothing_else_of_it(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, "the user's")
    quiet_libraries()
    said = logging.getLogger("bitsandbytes.backends.cpu.ops")
    said.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s. Please make sure", "no kernels")
    said.warning("quantised %s cannot be loaded", "weights")
    said.error("broken")
    assert caplog.messages == ["quantised weights cannot be loaded", "broken"]
