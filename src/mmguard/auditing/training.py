"""How a thief trains against a protection: keeping the best weights, adversarially, or in stages.

Everything here hooks into the trainer of `attackers`; the attacks that ask for it are in `attacks.training`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback

from mmguard.errors import ConfigError
from mmguard.lvlm.families import family

_LOOKS = 10
"""How often training is interrupted to validate."""

Adversary: TypeAlias = Callable[[nn.Module, dict[str, Any]], AbstractContextManager[dict[str, Any]]]
"""From model and batch to a context in which the loss is to be computed, and the batch to do so on."""


class KeepBest(TrainerCallback):
    """Ends with those weights, of ten evenly spaced points in training, that did best; of equals, with the last.

    Transformers' `load_best_model_at_end` saves adapters alone, and would lose a projector that learns beside them.
    """

    def __init__(self, validate: Callable[[Any], float]) -> None:
        self._validate = validate
        self._best = float("-inf")
        self._kept: dict[str, Tensor] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        step, steps = state.global_step, state.max_steps
        if step * _LOOKS // steps == (step - 1) * _LOOKS // steps:
            return
        model.eval()
        found = self._validate(model)
        model.train()
        if found >= self._best:
            self._best = found
            self._kept = {name: weight.detach().to("cpu", copy=True) for name, weight in _learning(model)}

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        with torch.no_grad():
            for name, weight in _learning(model):
                weight.copy_(self._kept[name])


class StagedUnfreezing(TrainerCallback):
    """The projector alone learns in the first half of the steps, and all that the recipe trains in the second.

    The optimiser knows all weights from the start; it passes over those without a gradient.
    """

    def __init__(self, model: PreTrainedModel, name: str) -> None:
        self._name = name
        self._projector = {id(weight) for module in projectors(model, name) for weight in module.parameters()}
        self._waiting: list[nn.Parameter] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        weights = [weight for _, weight in _learning(model)]
        self._waiting = [weight for weight in weights if id(weight) not in self._projector]
        if not 0 < len(self._waiting) < len(weights):
            raise ConfigError(
                f"{self._name}: staged-unfreezing needs a recipe that trains the projector and more, such as "
                "lora or projector+lora"
            )
        for weight in self._waiting:
            weight.requires_grad_(False)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == state.max_steps // 2:
            for weight in self._waiting:
                weight.requires_grad_(True)


def adversarial_pixels(levels: float) -> Adversary:
    """One step up the loss (FGSM) on what the processor made of the images.

    Args:
        levels: how far each pixel moves, in 255ths of the way from black to white, between which it stays.

    Returns:
        An adversary for batches that have `black` and `white` beside `pixel_values`: what the processor makes of such
        images, all of one shape.
    """

    @contextmanager
    def adversary(model: nn.Module, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        inputs = dict(inputs)
        black, white = inputs.pop("black"), inputs.pop("white")
        pixels = inputs["pixel_values"].detach()
        probed = pixels.clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(**inputs | {"pixel_values": probed}).loss, probed)
        moved = pixels + levels / 255 * (white - black) * slope.sign()
        # Resizing may have gone beyond black or white; such pixels are not drawn back.
        yield inputs | {"pixel_values": moved.clamp(torch.minimum(black, pixels), torch.maximum(white, pixels))}

    return adversary


def adversarial_features(share: float, modules: Sequence[nn.Module]) -> Adversary:
    """One step up the loss on the image features that the language model is given.

    Args:
        share: length of the step of each feature vector, in terms of its own length (L2).
        modules: those whose output, `(..., D)` or a list of such, are the features.
    """

    @contextmanager
    def adversary(model: nn.Module, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        probes: list[Tensor] = []

        def probe(features: Tensor) -> Tensor:
            probes.append(torch.zeros_like(features, requires_grad=True))
            return features + probes[-1]

        with _changed(modules, probe):
            loss = model(**inputs).loss
        slopes = iter(torch.autograd.grad(loss, probes))

        def push(features: Tensor) -> Tensor:
            direction = nn.functional.normalize(next(slopes), dim=-1, eps=torch.finfo(features.dtype).tiny)
            return features + share * features.detach().norm(dim=-1, keepdim=True) * direction

        with _changed(modules, push):
            yield inputs

    return adversary


def projectors(model: PreTrainedModel, name: str) -> list[nn.Module]:
    """The modules between vision tower and language model, each of which is called by itself.

    Raises:
        SurrogateError: there is no telling where they are.
    """
    found = [model.get_submodule(part) for part in family(model, name).projector]
    return [one for part in found for one in (part if isinstance(part, nn.ModuleList) else [part])]


def _learning(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)


@contextmanager
def _changed(modules: Sequence[nn.Module], change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Lets modules put out what a function makes of their output."""

    def hook(module: nn.Module, args: Any, output: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
        return [change(one) for one in output] if isinstance(output, list) else change(output)

    with ExitStack() as stack:
        for module in modules:
            handle = module.register_forward_hook(hook)
            stack.callback(handle.remove)
        yield
