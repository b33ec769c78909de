"""`--surrogate auto` on every kind of machine, with a hub that answers or not."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch

from mmguard.errors import ConfigError
from mmguard.lvlm import choose


@pytest.mark.parametrize("error", [OSError("no route"), ValueError("bad"), RuntimeError("proxy says no")])
def test_whatever_keeps_the_hub_from_answering_the_zoo_serves(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object, name: str, timeout: float) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)
    choice = choose.choose_surrogate("cpu")
    assert choice.name == "zoo:qwen3vl-tiny"
    assert "does not protect against large models" in choice.reason


@pytest.mark.parametrize("weights", ["model.safetensors", "half.safetensors", "config.json"])
def test_without_the_hub_the_cache_serves_that_has_the_weights(
    weights: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = tmp_path / "models--HuggingFaceTB--SmolVLM-256M-Instruct"
    (model / "snapshots" / "abc").mkdir(parents=True)
    (model / "snapshots" / "abc" / weights).touch()
    if weights == "half.safetensors":  # of two, both of which are needed
        index = {"weight_map": {"a": weights, "b": "other.safetensors"}}
        (model / "snapshots" / "abc" / "model.safetensors.index.json").write_text(json.dumps(index))
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("abc")

    def fail(self: object, name: str, timeout: float) -> None:
        raise OSError("no route")

    look = partial(huggingface_hub.try_to_load_from_cache, cache_dir=tmp_path)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", look)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)
    choice = choose.choose_surrogate("cpu")
    if weights != "model.safetensors":
        assert choice.name == "zoo:qwen3vl-tiny"
    else:
        assert choice.name == "HuggingFaceTB/SmolVLM-256M-Instruct"
        assert "the cache has it" in choice.reason


@pytest.mark.parametrize(
    ("gib", "name"),
    [
        (80.0, "Qwen/Qwen3-VL-4B-Instruct"),
        (23.6, "Qwen/Qwen3-VL-4B-Instruct"),
        (16.0, "Qwen/Qwen3-VL-2B-Instruct"),
        (11.7, "Qwen/Qwen3-VL-2B-Instruct"),
        (5.8, "HuggingFaceTB/SmolVLM-500M-Instruct"),
        (4.0, "HuggingFaceTB/SmolVLM-256M-Instruct"),
    ],
)
def test_a_hub_model_fits_the_gpu(gib: float, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Card:
        total_memory = int(gib * 2**30)

    monkeypatch.setattr(choose, "_source", lambda name: "the hub answers")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Card)
    assert choose.choose_surrogate("cuda").name == name
    assert f"{gib} GiB" in choose.choose_surrogate("cuda").reason


def test_memory_is_that_of_the_gpu_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def card(device: torch.device) -> SimpleNamespace:
        return SimpleNamespace(total_memory=(80, 16)[device.index or 0] * 2**30)

    monkeypatch.setattr(choose, "_source", lambda name: "the hub answers")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", card)
    assert choose.choose_surrogate("cuda:0").name == "Qwen/Qwen3-VL-4B-Instruct"
    assert choose.choose_surrogate("cuda:1").name == "Qwen/Qwen3-VL-2B-Instruct"


def test_without_a_gpu_the_smallest_real_model_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "_source", lambda name: "the hub answers")
    choice = choose.choose_surrogate("cpu")
    assert choice.name == "HuggingFaceTB/SmolVLM-256M-Instruct"
    assert "no GPU" in choice.reason


def test_a_gpu_that_is_not_there_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="cuda:1: PyTorch finds 1 CUDA device"):
        choose.choose_surrogate("cuda:1")
