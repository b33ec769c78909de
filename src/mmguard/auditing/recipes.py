"""How a thief fine-tunes: which weights learn, by which of PEFT's methods (method.md, section 4)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from peft import LoraConfig
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.integrations.bitsandbytes import validate_bnb_backend_availability
from transformers.utils.import_utils import is_bitsandbytes_available

from mmguard.config import AuditConfig, Recipe
from mmguard.errors import ConfigError
from mmguard.lvlm.families import family
from mmguard.lvlm.tuning import lora_config


@dataclass(frozen=True)
class Plan:
    """What a recipe trains."""

    lora: bool = True
    """LoRA on every linear layer but the output head; with `projector` or `language`, on those of the language model
    alone."""
    language: bool = False
    """Vision tower and projector stay as they are, as LLaMA-Factory does by default."""
    rank: int | None = None
    """Rank of the LoRA; `AuditConfig.lora_rank` if not given."""
    dora: bool = False
    """Weight-decomposed LoRA (Liu et al., 2024): the length of each weight's columns learns too."""
    four_bit: bool = False
    """The frozen weights are held in 4 bits (QLoRA; Dettmers et al., 2023)."""
    projector: bool = False
    """The weights of the projector between vision tower and language model learn themselves."""
    everything: bool = False
    """All weights learn themselves."""
    lr: float = 2e-4
    """Learning rate, from the paper's grid of 1e-5 to 3e-4."""


PLANS: dict[Recipe, Plan] = {
    "lora": Plan(),
    "lora-r8": Plan(rank=8),
    "lora-r16": Plan(rank=16),
    "lora-r64": Plan(rank=64),
    "lora-language": Plan(language=True),
    "dora": Plan(dora=True),
    "qlora": Plan(four_bit=True),
    "projector": Plan(lora=False, projector=True),
    "projector+lora": Plan(projector=True),
    "full": Plan(lora=False, everything=True, lr=2e-5),
}


def require(recipe: Recipe) -> None:
    """Checks that a recipe can be followed here.

    Raises:
        ConfigError: it needs a package that is not there, or a device that the package does not support.
    """
    if not PLANS[recipe].four_bit:
        return
    if not is_bitsandbytes_available():
        raise ConfigError(f"recipe {recipe}: needs bitsandbytes for 4-bit weights: pip install -U bitsandbytes")
    try:
        validate_bnb_backend_availability(raise_exception=True)
    except RuntimeError as error:
        raise ConfigError(f"recipe {recipe}: {error}; or choose lora, which does without") from error


def rank(recipe: Recipe, config: AuditConfig) -> int | None:
    """The rank of a recipe's LoRA; None if it has none."""
    plan = PLANS[recipe]
    return (plan.rank or config.lora_rank) if plan.lora else None


def quantisation(recipe: Recipe) -> BitsAndBytesConfig | None:
    """How the frozen weights are held: QLoRA's 4-bit NormalFloat, doubly quantised; None for all other recipes."""
    if not PLANS[recipe].four_bit:
        return None
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def adapters(recipe: Recipe, config: AuditConfig, model: PreTrainedModel, name: str) -> LoraConfig | None:
    """The adapters that PEFT is to put into a model; None if the recipe has none.

    Args:
        recipe: the recipe.
        config: its LoRA rank, where the recipe names none; alpha is twice the rank, dropout 0.1.
        model: without adapters.
        name: of the model, for messages.

    Raises:
        SurrogateError: the recipe trains the projector or passes over it, and there is no telling where it is.
    """
    plan, r = PLANS[recipe], rank(recipe, config)
    if r is None:
        return None
    lora = replace(lora_config(r), use_dora=plan.dora)
    if plan.projector or plan.language:
        parts = family(model, name)
        paths = "|".join(map(re.escape, (parts.vision, *parts.projector)))
        lora.exclude_modules = rf"({paths})(\..*)?"
    return lora


@contextmanager
def learning(recipe: Recipe, model: PreTrainedModel, name: str) -> Iterator[None]:
    """Lets the weights of a model learn that a recipe trains themselves, not through an adapter.

    They are 32-bit meanwhile, since a step is smaller than what 16-bit weights can tell apart.

    Args:
        recipe: the recipe.
        model: frozen; adapters may be in it already.
        name: of the model, for messages.

    Raises:
        SurrogateError: as `adapters`.
    """
    dtype = model.dtype
    modules = _own(PLANS[recipe], model, name)
    for module in modules:
        module.float().requires_grad_(True)
    try:
        yield
    finally:
        for module in modules:
            module.to(dtype).requires_grad_(False)


def _own(plan: Plan, model: PreTrainedModel, name: str) -> list[nn.Module]:
    if plan.everything:
        return [model]
    return [model.get_submodule(part) for part in family(model, name).projector] if plan.projector else []
