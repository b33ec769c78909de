"""The embedded zoo: tiny LVLMs of real architectures, with weights, so that everything runs with no network and no GPU.

They were pretrained by `scripts/pretrain_zoo.py` on drawings (`mmguard.zoo.drawings`). They demonstrate and measure the
method; a release made with them alone does not protect against large models.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from mmguard.errors import SurrogateError

_WEIGHTS = Path(__file__).parent / "weights"

MEASURED: tuple[str, ...] = ("qwen3vl-tiny", "gemma3-tiny", "mllama-tiny")
"""Models that lose little to random changes on most of our tasks (docs/results.md, docs/results/): an audit's attackers
unless others are named."""

NAMES: tuple[str, ...] = (
    *MEASURED, "qwen3vl-micro", "qwen3vl-small", "llava-tiny", "smolvlm-tiny", "qwen25vl-tiny", "internvl-tiny",
    "glm4v-tiny", "minicpmv-tiny",
)  # fmt: skip
"""The models, the default surrogate first."""


@dataclass(frozen=True)
class ZooModel:
    """What is known of one model without loading it."""

    name: str
    family: str
    """`model_type` of its configuration."""
    parameters: int
    path: Path
    """A plain Hugging Face folder: AutoProcessor and AutoModelForImageTextToText load it with no code of ours."""


def path(name: str) -> Path:
    """The folder of a zoo model.

    Raises:
        SurrogateError: there is no model of this name.
    """
    if name not in NAMES:
        raise SurrogateError(f"zoo:{name}: no such model; the zoo has {', '.join(NAMES)}")
    folder = _WEIGHTS / name
    if not (folder / "config.json").is_file():
        raise SurrogateError(f"zoo:{name}: {folder} holds no model; reinstall mmguard, or run scripts/pretrain_zoo.py")
    return folder


def info(name: str) -> ZooModel:
    """Name, family, size and folder of a zoo model, read from its small files only."""
    folder = path(name)
    card = json.loads((folder / "mmguard.json").read_text(encoding="utf-8"))
    return ZooModel(name=name, family=card["family"], parameters=card["parameters"], path=folder)
