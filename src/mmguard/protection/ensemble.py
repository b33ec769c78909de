"""Several surrogates as one objective (Eq. 31), and their inner adaptation (Algorithm 1, line 3)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from mmguard.config import ProtectConfig
from mmguard.errors import ConfigError
from mmguard.lvlm.prompt import Example
from mmguard.lvlm.surrogate import Surrogate
from mmguard.lvlm.tuning import adapted
from mmguard.perturb import trigger as hotflip
from mmguard.perturb.objective import Objective, Reference


@dataclass(frozen=True)
class Member:
    """A surrogate with its weight ω_m."""

    surrogate: Surrogate
    objective: Objective
    weight: float


class Ensemble:
    """ℓ_prot = Σ_m ω_m ℓ_joint^(m) (Eq. 31).

    Args:
        surrogates: at least one.
        config: `weights` are ω, uniform if not given.

    Raises:
        ConfigError: there are more or fewer weights than surrogates.
    """

    def __init__(self, surrogates: Sequence[Surrogate], config: ProtectConfig) -> None:
        weights = config.weights or (1 / len(surrogates),) * len(surrogates)
        if len(weights) != len(surrogates):
            raise ConfigError(f"{len(weights)} weights for {len(surrogates)} surrogates: give one each")
        self.members = [Member(s, Objective(s, config), w) for s, w in zip(surrogates, weights, strict=True)]
        self._config = config

    def references(self, examples: Sequence[Example], images: Sequence[Tensor]) -> list[Reference]:
        """The clean side of a batch for every member, in its present state."""
        return [member.objective.reference(examples, images) for member in self.members]

    def backward(self, examples: Sequence[Example], images: Sequence[Tensor], references: Sequence[Reference]) -> None:
        """Adds the gradient of the batch's summed ℓ_prot to `.grad` of the images, `[0,1]` float `(3, H, W)`."""
        for member, reference in zip(self.members, references, strict=True):
            loss, _, _ = member.objective(examples, images, reference)
            (member.weight * loss.sum()).backward()

    def proposals(
        self, examples: Sequence[Example], images: Sequence[Tensor], references: Sequence[Reference]
    ) -> list[list[list[str]]]:
        """Candidate words by sample and slot, an equal share from the gradient of every member."""
        share = -(-self._config.top_c // len(self.members))
        merged: list[list[list[str]]] = [[[] for _ in example.trigger] for example in examples]
        for member, reference in zip(self.members, references, strict=True):
            with torch.enable_grad():
                loss, encoded, forward = member.objective(examples, images, reference)
                (gradient,) = torch.autograd.grad(loss.sum(), forward.embeddings)
            triggers = [example.trigger for example in examples]
            for sample, slots in zip(
                merged, hotflip.propose(member.surrogate, encoded, gradient, triggers, share), strict=True
            ):
                for words, more in zip(sample, slots, strict=True):
                    words.extend(word for word in more if word not in words)
        return merged

    def exact(self, examples: Sequence[Example], image: Tensor, prepared: Prepared) -> Tensor:
        """ℓ_prot of many texts for one image, `(C,)`: every member's exact loss of the same strings."""
        total: Tensor | None = None
        for member, pixels, reference in zip(self.members, prepared.pixels, prepared.references, strict=True):
            loss = member.weight * member.objective.candidates(examples, image, pixels, reference).cpu()
            total = loss if total is None else total + loss
        assert total is not None
        return total

    @torch.no_grad()
    def prepare(self, example: Example, original: Tensor, image: Tensor) -> Prepared:
        """What all candidates of one sample share."""
        pixels = [member.surrogate.pixels([image]) for member in self.members]
        return Prepared(pixels, self.references([example], [original]))

    @contextmanager
    def adapted(self, batches: Sequence[tuple[Sequence[Example], Sequence[Tensor]]], seed: int) -> Iterator[None]:
        """Adapts every member by one supervised step a batch (inner problem); on exit all are exactly as before.

        Args:
            batches: examples and protected images of each of the Q steps.
            seed: of adapters and dropout.
        """
        with ExitStack() as stack:
            for member in self.members if batches else ():
                adapter = stack.enter_context(adapted(member.surrogate, self._config.inner_rank, seed))
                for examples, images in batches:
                    encoded, pixels = (
                        member.surrogate.encode(examples, images),
                        member.surrogate.pixels(images),
                    )
                    adapter.step(encoded, pixels, self._config.inner_lr)
            yield

    def vocabulary(self) -> Sequence[str]:
        """Admissible words of the first member."""
        return self.members[0].surrogate.admissible_tokens().words


@dataclass(frozen=True)
class Prepared:
    """Preprocessed protected image and clean reference of one sample, for every member."""

    pixels: list[dict[str, Tensor]]
    references: list[Reference]
