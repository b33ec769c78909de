"""Where a model's parts are: proven by what happens when they are switched off."""

from __future__ import annotations

import pytest
import torch

from mmguard.errors import SurrogateError
from mmguard.lvlm.families import family as parts
from mmguard.lvlm.loading import load_surrogate
from mmguard.lvlm.prompt import Example
from test_lvlm_pixels import photograph
from tiny import FAMILIES, built


@pytest.mark.parametrize("family", FAMILIES)
def test_the_image_reaches_the_text_through_tower_and_projector_alone(family: str) -> None:
    model = load_surrogate(built(family))
    found = parts(model.model, family)
    image = photograph(0, 40, 60)
    encoded = model.encode([Example("What is it?", "red")], [image])

    def slope(*off: str) -> float:
        """Largest gradient of the loss at the image, with the weights of some modules at zero."""
        leaf = image.clone().requires_grad_()
        weights = [weight for name in off for weight in model.model.get_submodule(name).parameters()]
        kept = [weight.detach().clone() for weight in weights]
        for weight in weights:
            weight.zero_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(model.forward(encoded, model.pixels([leaf])).nll.sum(), leaf)
        for weight, old in zip(weights, kept, strict=True):
            weight.copy_(old)
        return float(gradient.abs().max())

    with torch.no_grad():
        assert slope() > 0
        assert slope(found.vision) == 0
        assert slope(*found.projector) == 0
        for name in found.projector:  # each is a way into the text of its own
            assert slope(*(other for other in found.projector if other != name)) > 0


def test_a_model_built_in_another_way_is_named() -> None:
    model = load_surrogate(built("qwen2_vl")).model
    model.config.model_type = "qwen9_vl"
    with pytest.raises(SurrogateError, match=r"mine: no module between model.visual.*'qwen9_vl'.*families"):
        parts(model, "mine")
    del model.model.visual
    with pytest.raises(SurrogateError, match="mine: its vision tower"):
        parts(model, "mine")
