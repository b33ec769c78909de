"""`--surrogate auto`: the best surrogate that can be had here, and why."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from mmguard import zoo
from mmguard.lvlm.weights import hub_commit
from mmguard.runtime.devices import device_of, require_usable

_HUB_MODELS = (
    # (hub id, GiB of accelerator memory for a protection in bfloat16). The paper's surrogate first. For cards that are
    # sold with 24, 12 and 6 GB: they report a little less, an RTX 4090 23.64 GiB.
    ("Qwen/Qwen3-VL-4B-Instruct", 22),
    ("Qwen/Qwen3-VL-2B-Instruct", 11),
    ("HuggingFaceTB/SmolVLM-500M-Instruct", 5.5),
)
_CPU_MODEL = "HuggingFaceTB/SmolVLM-256M-Instruct"


@dataclass(frozen=True)
class Choice:
    """A surrogate's name, and in words why it was chosen."""

    name: str
    reason: str


def choose_surrogate(device: str = "auto") -> Choice:
    """A hub model that fits the device where the hub answers or the cache has it, else the zoo's default.

    Args:
        device: `auto`, `cpu`, `cuda`, `cuda:1`…

    Raises:
        ConfigError: the device is a GPU that is not there.
    """
    place = require_usable(device_of(device))
    on_gpu = place.type == "cuda"
    memory = torch.cuda.get_device_properties(place).total_memory / 2**30 if on_gpu else 0.0
    name = next((name for name, needed in _HUB_MODELS if memory >= needed), _CPU_MODEL)
    if source := _source(name):
        where = f"a GPU with {memory:.1f} GiB" if on_gpu else "no GPU: the smallest real model; expect minutes an image"
        return Choice(name, f"{source}, and there is {where}")
    return Choice(
        f"zoo:{zoo.NAMES[0]}",
        f"the hub does not answer, and the cache has no {name}. A zoo model demonstrates the method; it does not "
        "protect against large models: give --surrogate with a local model folder for that",
    )


def _source(name: str) -> str | None:
    """Why a hub model can be had, in words; None if it cannot."""
    if hub_commit(name):
        return "the hub answers"
    from huggingface_hub import try_to_load_from_cache
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

    files = [SAFE_WEIGHTS_NAME]
    if isinstance(index := try_to_load_from_cache(name, SAFE_WEIGHTS_INDEX_NAME), str):
        files = list(set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()))
    here = all(isinstance(try_to_load_from_cache(name, file), str) for file in files)
    return "the cache has it" if here else None
