"""Where the parts of a model are: its vision tower, and the projector between tower and language model.

Both follow from the model wherever the projector is a module of its own. `_IN_TOWER` is for the families that keep
it inside the tower, and a new family needs an entry in it only if it does, too.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel

from mmguard.errors import SurrogateError

_IN_TOWER: dict[str, tuple[str, ...]] = {
    # model_type: the modules of the tower that turn its features into the language model's tokens
    "glm4v": ("merger",),
    "qwen2_vl": ("merger",),
    "qwen2_5_vl": ("merger",),
    "qwen3_vl": ("merger", "deepstack_merger_list"),
    "qwen3_vl_moe": ("merger", "deepstack_merger_list"),
}


@dataclass(frozen=True)
class Family:
    """Names of a model's parts, as `get_submodule` takes them."""

    vision: str
    """The vision tower. A projector may lie inside it."""
    projector: tuple[str, ...]
    """What lies between vision tower and language model, in the order of the model."""


def family(model: PreTrainedModel, name: str) -> Family:
    """Where the parts of an image-text model are.

    Args:
        model: a Hugging Face `...ForConditionalGeneration`, without adapters around it.
        name: of the model, for messages.

    Raises:
        SurrogateError: the model is built in a way of its own, and there is no record of it.
    """
    base = model.base_model
    tower, language = model.get_encoder(modality="image"), model.get_decoder()
    parts = {child: part for part, child in base.named_children()}
    model_type = model.config.model_type
    if tower not in parts or language not in parts:
        raise SurrogateError(
            f"{name}: its vision tower and its language model are no parts of {type(base).__name__} that "
            "transformers' get_encoder and get_decoder find: use a model of another family"
        )
    prefix = f"{model.base_model_prefix}." if base is not model else ""
    vision = prefix + parts[tower]
    if model_type in _IN_TOWER:
        projector = [f"{vision}.{part}" for part in _IN_TOWER[model_type]]
    else:
        projector = [prefix + part for child, part in parts.items() if child not in (tower, language)]
    if not projector:
        raise SurrogateError(
            f"{name}: no module between {vision} and the language model: its projector must be inside {vision}. "
            f"Say where, under {model_type!r} in mmguard.lvlm.families._IN_TOWER"
        )
    return Family(vision, tuple(projector))
