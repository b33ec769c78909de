"""The script behind docs/performance.md: every part of it runs, at sizes that say nothing about speed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "speed.py"


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, with next to nothing to do in each part."""
    monkeypatch.syspath_prepend(SCRIPT.parent)  # where `sizes` is
    spec = importlib.util.spec_from_file_location("speed", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "FEW", 2)
    monkeypatch.setattr(module, "MANY", 3)
    monkeypatch.setattr(module, "SIDE", 64)
    monkeypatch.setattr(module, "GROWTH", [(label, 64, *more) for label, _, *more in module.GROWTH[::4]])
    # A process for each takes its time; in one that has room left, so small a step may need no more than it holds.
    monkeypatch.setattr(module, "peak_memory", lambda kind, arguments: max(1.0, module._peak(kind, arguments)))
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: None)  # minutes, and a compiler
    return module


def test_every_part_runs(speed: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "performance.md"
    sizes = [
        "--surrogate",
        "zoo:qwen3vl-micro",
        "--batch",
        "1",
        "--image",
        "64",
        "--search",
        "64",
        "--most",
        "10",
        "--repeats",
        "1",
    ]
    monkeypatch.setattr(sys, "argv", ["speed.py", *sizes, "--scratch", str(tmp_path / "out"), "--report", str(page)])
    speed.main()
    text = page.read_text(encoding="utf-8")
    titles = ["One step", "Trigger search", "Whole protection", "Utilisation", "Alternatives"]
    assert [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")] == titles
    assert set(speed.SECTIONS) == {"steps", "search", "whole", "utilisation", "alternatives"}
    assert "| NO |" not in text, "the naive search finds what ours finds"
