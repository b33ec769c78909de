"""LoRA on a shared model, and leaving no trace of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig
from peft.functional import cast_adapter_dtype
from peft.tuners.lora import LoraLayer, LoraModel
from torch import Tensor, nn

from mmguard.lvlm.prompt import Encoded
from mmguard.lvlm.surrogate import Surrogate

_NAME = "inner"
_MOST_MERGED = 1_000_000_000
"""Weights of a model to which an adapter is added: all of them are copied, to come back to the bit."""


def lora_config(rank: int) -> LoraConfig:
    """The paper's LoRA (method.md, section 3): all linear layers but the output head, dropout 0.1, alpha
    twice the rank."""
    return LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.1,
        bias="none",
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Restores the training flag of every module and `requires_grad` of every parameter on exit."""
    training = [(module, module.training) for module in model.modules()]
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for module, flag in training:
            module.training = flag
        for parameter, flag in required:
            parameter.requires_grad_(flag)


class Adapter:
    """A LoRA adapter in a surrogate's model, with its optimiser; see `adapted`."""

    def __init__(self, surrogate: Surrogate, lora: Any, parameters: list[nn.Parameter], seed: int) -> None:
        self.parameters = parameters
        self._lora = lora
        self._surrogate = surrogate
        self.reset(seed)

    def reset(self, seed: int) -> None:
        """Makes the adapter fresh again, so that the model is for the moment as it was without it.

        Args:
            seed: of its initial weights and of dropout. The global random state is neither read nor changed.
        """
        with _seeded(seed, self._surrogate.device), torch.no_grad():
            for layer in self._layers():
                layer.reset_lora_parameters(_NAME, init_lora_weights=True)
        # The defaults of transformers' Trainer, which attackers use: AdamW, no weight decay.
        self._optimiser = torch.optim.AdamW(self.parameters, weight_decay=0.0)
        self._seed = seed
        self._steps = 0

    def _layers(self) -> list[LoraLayer]:
        return [module for module in self._lora.modules() if isinstance(module, LoraLayer)]

    def step(self, parts: Iterable[tuple[Encoded, dict[str, Tensor]]], samples: int, lr: float) -> float:
        """One supervised step (Algorithm 1); outside it the adapter is frozen and has no dropout.

        A batch whose loss or gradient is no number teaches nothing.

        Args:
            parts: the batch, in as many parts as memory wants: each what `Surrogate.encode` and `Surrogate.pixels` make
                of it; no gradient flows into the pixels.
            samples: how many there are in all parts together.
            lr: learning rate of this step.

        Returns:
            ℓ_train of the batch before the step, in nats.
        """
        model, loss = self._surrogate.model, 0.0
        with preserved(model), _seeded(self._seed + self._steps, self._surrogate.device), torch.enable_grad():
            model.train()
            for parameter in self.parameters:
                parameter.requires_grad_(True)
            self._optimiser.zero_grad()
            for encoded, pixels in parts:
                nll = self._surrogate.forward(encoded, {key: value.detach() for key, value in pixels.items()}).nll
                part = nll.mean() * (len(nll) / samples)
                part.backward(inputs=self.parameters)
                loss += part.item()
            # A step towards what is no number would be the end of the adapter.
            if math.isfinite(loss) and all(one.grad is None or one.grad.isfinite().all() for one in self.parameters):
                self._optimiser.param_groups[0]["lr"] = lr
                self._optimiser.step()
            self._optimiser.zero_grad()
        self._steps += 1
        return loss

    @contextmanager
    def merged(self) -> Iterator[None]:
        """Adds the adapter to the weights, so that it costs nothing until the end of the block; no steps inside.

        The weights then come back to the bit. In half precision nothing is merged, since rounding would swallow a small
        adapter, but the adapter has the weights' precision meanwhile. Quantised weights, which would not come back, and
        those of large models, which would be in memory twice, stay apart from it as well.
        """
        model = self._surrogate.model
        if model.dtype != torch.float32:
            with self._as(model.dtype):
                yield
            return
        if getattr(model, "is_quantized", False) or sum(one.numel() for one in model.parameters()) > _MOST_MERGED:
            yield
            return
        weights = [layer.get_base_layer().get_parameter("weight") for layer in self._layers()]
        before = [weight.detach().clone() for weight in weights]
        self._lora.merge_adapter()
        try:
            yield
        finally:
            self._lora.unmerge_adapter()
            with torch.no_grad():
                for weight, old in zip(weights, before, strict=True):
                    weight.copy_(old)

    @contextmanager
    def _as(self, dtype: torch.dtype) -> Iterator[None]:
        """Rounds the adapter until the end of the block: with 32 bits, PEFT would compute every layer in them."""
        before = [parameter.data for parameter in self.parameters]
        for parameter in self.parameters:
            parameter.data = parameter.data.to(dtype)
        try:
            yield
        finally:
            for parameter, exact in zip(self.parameters, before, strict=True):
                parameter.data = exact


@contextmanager
def adapted(surrogate: Surrogate, rank: int, seed: int) -> Iterator[Adapter]:
    """Puts a fresh LoRA adapter into a surrogate's model, and takes it out again.

    Inside, the model is the adapted one, in evaluation mode. On exit its weights, modules and flags are those
    of before, to the bit.

    Args:
        surrogate: the surrogate; its own weights never change.
        rank: of the adapter.
        seed: as of `Adapter.reset`.
    """
    model: Any = surrogate.model
    with preserved(model):
        with _seeded(seed, surrogate.device):
            lora = LoraModel(model, lora_config(rank), _NAME)
            # 32-bit, as attackers get theirs from PEFT: steps are smaller than what 16-bit weights can tell apart.
            cast_adapter_dtype(lora, _NAME)
        try:
            parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
            model.requires_grad_(False)
            model.eval()
            yield Adapter(surrogate, lora, parameters, seed)
        finally:
            lora.unload()


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
