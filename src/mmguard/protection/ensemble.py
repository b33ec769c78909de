"""Several surrogates as one objective (Eq. 31), and their inner adaptation (Algorithm 1, line 3)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from mmguard.config import ProtectConfig
from mmguard.errors import ConfigError, SurrogateError
from mmguard.lvlm.language import LanguageModel
from mmguard.lvlm.prompt import Encoded, Example
from mmguard.lvlm.surrogate import Surrogate
from mmguard.lvlm.tuning import Adapter, adapted
from mmguard.lvlm.weights import recommended
from mmguard.perturb import trigger as hotflip
from mmguard.perturb.fluency import Fluency
from mmguard.perturb.objective import Evaluation, Objective, Reference
from mmguard.perturb.trigger import Trigger
from mmguard.runtime.memory import is_out_of_memory, release_memory


@dataclass(frozen=True)
class Member:
    """A surrogate with its weight ω_m."""

    surrogate: Surrogate
    objective: Objective
    weight: float
    inner_lr: float
    """Learning rate of its adaptation."""


_INNER_LR = 1e-4
"""Learning rate of an adaptation, for models that recommend none; the paper's are 1e-5 to 1e-4."""

_LARGE = 100_000_000
"""Weights of a model of which a CPU computes one sample at a time."""

Rate = Callable[[int], float]
"""A factor of learning rates in each step, by its number from 0."""


def constant_rate(step: int) -> float:
    """1 in every step."""
    return 1.0


class Ensemble:
    """ℓ_prot = Σ_m ω_m ℓ_joint^(m) (Eq. 31).

    Args:
        surrogates: at least one.
        config: `weights` are ω, uniform if not given.
        language: has triggers made of words alone that it finds likely.

    Raises:
        ConfigError: there are more or fewer weights than surrogates, the language model knows none of their words, or a
            surrogate's `mmguard.json` cannot be read.
    """

    def __init__(
        self, surrogates: Sequence[Surrogate], config: ProtectConfig, language: LanguageModel | None = None
    ) -> None:
        weights = config.weights or (1 / len(surrogates),) * len(surrogates)
        if len(weights) != len(surrogates):
            raise ConfigError(f"{len(weights)} weights for {len(surrogates)} surrogates: give one each")
        self.members = [
            Member(one, Objective(one, config), weight, _inner_lr(one, config))
            for one, weight in zip(surrogates, weights, strict=True)
        ]
        self._config = config
        self._fluency = Fluency(language, self._words(), config.fluency_top_k) if language else None
        self._adapters: list[Adapter] = []
        self._inner_size = self.at_once(config.inner_batch_size)
        self._taught: set[str] = set()
        """Names of members that memory was enough to train, on one sample at least."""

    @property
    def name(self) -> str:
        """The members' names, for messages."""
        return ", ".join(member.surrogate.name for member in self.members)

    @property
    def recompute(self) -> bool:
        """Whether all surrogates compute activations twice instead of keeping them (`Surrogate.recompute`)."""
        return all(member.surrogate.recompute for member in self.members)

    def at_once(self, most: int) -> int:
        """With how many samples to begin, of `most`: one with a large model on a CPU.

        There one after the other is hardly slower, and when memory runs out the system may end the process, where a GPU
        raises an error after which less can be tried.
        """
        models = [member.surrogate.model for member in self.members if member.surrogate.device.type == "cpu"]
        large = any(sum(weight.numel() for weight in model.parameters()) > _LARGE for model in models)
        return 1 if large else most

    @contextmanager
    def may_save_memory(self) -> Iterator[None]:
        """Where memory is not enough inside, less is done at a time; on exit as much as before, for what follows may be
        smaller."""
        with ExitStack() as stack:
            stack.callback(setattr, self, "_inner_size", self._inner_size)
            for member in self.members:
                for name in ("recompute", "candidates_at_once"):
                    stack.callback(setattr, member.surrogate, name, getattr(member.surrogate, name))
            yield

    def save_memory(self) -> None:
        """Inside `may_save_memory`: has all surrogates compute activations twice until its end."""
        for member in self.members:
            member.surrogate.recompute = True

    @contextmanager
    def on_cpu(self) -> Iterator[None]:
        """Leaves the members' devices to others until the end of the block; nothing is computed inside."""
        for member in self.members:
            member.surrogate.model.to("cpu")
        release_memory()
        yield
        # Not after an error, where others may not have left yet.
        for member in self.members:
            member.surrogate.model.to(member.surrogate.device)

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        """All members compute in 32 bits until the end of the block."""
        with ExitStack() as stack:
            for member in self.members:
                stack.enter_context(member.surrogate.in_float32())
            yield

    def require_takes(self, examples: Sequence[Example], size: tuple[int, int]) -> None:
        """Makes sure that every member reads these samples of one image, of `(H, W)` pixels.

        Raises:
            SampleError: one does not; the message says why.
        """
        images = [torch.empty(3, *size)] * len(examples)
        for member in self.members:
            member.surrogate.require_room(member.surrogate.encode(examples, images))

    def references(self, examples: Sequence[Example], images: Sequence[Tensor]) -> list[Reference]:
        """The clean side of a batch for every member, in its present state."""
        return [member.objective.reference(examples, images) for member in self.members]

    def encoded(self, examples: Sequence[Example], images: Sequence[Tensor]) -> list[Encoded]:
        """A batch's texts for every member; of the images only their sizes are read."""
        return [member.surrogate.encode(examples, images) for member in self.members]

    def backward(
        self,
        examples: Sequence[Example],
        images: Sequence[Tensor],
        references: Sequence[Reference],
        encoded: Sequence[Encoded] | None = None,
    ) -> None:
        """Adds the gradient of the batch's summed ℓ_prot to `.grad` of the images, `[0,1]` float `(3, H, W)`.

        Args:
            examples: with their triggers.
            images: protected.
            references: from `references`, of the same samples.
            encoded: from `encoded`, where that is done; it is the same in every step.

        Raises:
            FloatingPointError: a loss is no finite number.
        """
        texts = self.encoded(examples, images) if encoded is None else encoded
        for member, reference, text in zip(self.members, references, texts, strict=True):
            loss = member.objective(examples, images, reference, text).loss
            require_numbers(loss)
            (member.weight * loss.sum()).backward()

    def search(
        self, examples: Sequence[Example], images: Sequence[Tensor], references: Sequence[Reference]
    ) -> list[Trigger]:
        """A better trigger for every sample: an equal share of the candidates from the gradient of each member that has
        a weight, and among them the one whose exact ℓ_prot, over all members, is least (Eq. 19-20).

        Args:
            examples: with their present triggers, which may be empty.
            images: protected, `[0,1]` float, each `(3, H, W)`.
            references: from `references`, of the same samples.

        Raises:
            FloatingPointError: a present loss is no finite number.
        """
        triggers = [example.trigger for example in examples]
        if not any(triggers):
            return triggers
        # Those of weight 0 have no say in the loss, and none in what is tried.
        heard = [pair for pair in zip(self.members, references, strict=True) if pair[0].weight]
        evaluations, scores = [], []
        for member, reference in heard:
            with torch.enable_grad():
                evaluation = member.objective(examples, images, reference)
                require_numbers(evaluation.loss)
                (gradient,) = torch.autograd.grad(evaluation.loss.sum(), evaluation.forward.embeddings)
            scores.append(hotflip.scores(member.surrogate, evaluation.encoded, gradient, triggers))
            evaluations.append(evaluation)
        return [
            hotflip.search(
                trigger,
                self._proposing(example, [member for member, _ in heard], [mine[row] for mine in scores]),
                self._exact(example, images[row], heard, evaluations, row),
            )
            if trigger
            else trigger
            for row, (example, trigger) in enumerate(zip(examples, triggers, strict=True))
        ]

    def _proposing(
        self, example: Example, members: Sequence[Member], scores: Sequence[Tensor]
    ) -> Callable[[Trigger, int], list[str]]:
        """The candidates for a slot of one sample's trigger, from the scores of some members, `(slots, V_adm)` each."""
        share = -(-self._config.top_c // len(members))
        vocabularies = [member.surrogate.admissible_tokens().words for member in members]

        def propose(trigger: Trigger, slot: int) -> list[str]:
            likely = None
            if self._fluency is not None and example.question is not None:
                likely = self._fluency.likely(example.question, trigger[:slot], example.after)
            present = [trigger[slot]] if likely is None or trigger[slot] in likely else []
            found = (
                hotflip.best(words, mine[slot], share, likely) for words, mine in zip(vocabularies, scores, strict=True)
            )
            return [*present, *chain.from_iterable(found)]

        return propose

    @staticmethod
    def _exact(
        example: Example,
        image: Tensor,
        heard: Sequence[tuple[Member, Reference]],
        evaluations: Sequence[Evaluation],
        row: int,
    ) -> Callable[[Sequence[Trigger]], Tensor]:
        """ℓ_prot of one sample as a function of its trigger: every member's exact loss of the same strings."""
        parts = [
            (member.weight, member.objective.exact(example, image, evaluation, reference, row))
            for (member, reference), evaluation in zip(heard, evaluations, strict=True)
        ]
        return lambda triggers: torch.stack([weight * loss(triggers).cpu() for weight, loss in parts]).sum(0)

    @contextmanager
    def adaptable(self) -> Iterator[None]:
        """Puts an adapter into every member, for as many rounds as follow; on exit all are exactly as before."""
        with ExitStack() as stack:
            stack.callback(self._adapters.clear)
            for member in self.members:
                self._adapters.append(stack.enter_context(adapted(member.surrogate, self._config.inner_rank, seed=0)))
            yield

    def adapt(
        self,
        batches: Iterable[tuple[Sequence[Example], Sequence[Tensor]]],
        seed: int,
        rate: Rate = constant_rate,
    ) -> None:
        """Inside `adaptable`: adapts every member afresh by one supervised step a batch (inner problem).

        Args:
            batches: examples and protected images of each of the Q steps; read one at a time.
            seed: of adapters and dropout.
            rate: what the learning rates are multiplied with in each step.

        Raises:
            SurrogateError: memory was not enough for any sample of a step, nor for any before.
        """
        for adapter in self._adapters:
            adapter.reset(seed)
        with self.may_save_memory():
            for step, (examples, images) in enumerate(batches):
                for member, adapter in zip(self.members, self._adapters, strict=True):
                    name = member.surrogate.name
                    if self._step(member, adapter, examples, images, member.inner_lr * rate(step)):
                        self._taught.add(name)
                    elif name not in self._taught:
                        raise SurrogateError(
                            f"{name}: memory is not enough to train on one sample at a time: take a smaller surrogate "
                            "or max-pixels, or a device with more memory"
                        )

    def _step(
        self, member: Member, adapter: Adapter, examples: Sequence[Example], images: Sequence[Tensor], lr: float
    ) -> bool:
        """One supervised step of one member; where memory is not enough, with activations computed twice, then in parts
        of half the samples, a quarter… A sample that does not fit even alone teaches nothing.

        Returns:
            Whether there was any that fitted.
        """
        surrogate = member.surrogate
        texts, pictures = list(examples), list(images)
        while texts:
            size = min(self._inner_size, len(texts))
            begins = iter(range(0, len(texts), size))
            parts = (
                (
                    surrogate.encode(texts[k : k + size], pictures[k : k + size]),
                    surrogate.pixels(pictures[k : k + size]),
                )
                for k in begins
            )
            try:
                adapter.step(parts, len(texts), lr)
                return True
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            if not self.recompute:
                self.save_memory()
            elif size > 1:
                self._inner_size = size // 2
            else:
                failed = next(begins, len(texts)) - 1  # parts are made as they are needed
                del texts[failed], pictures[failed]
            release_memory()
        return False

    def adaptation(self) -> dict[str, Tensor]:
        """Inside `adaptable`: the weights that `adapt` arrived at, by member and place."""
        return {name: weight.detach().cpu() for name, weight in self._adaptable_weights()}

    def readapt(self, weights: Mapping[str, Tensor]) -> None:
        """Inside `adaptable`: takes up the weights of an earlier `adaptation`."""
        with torch.no_grad():
            for name, weight in self._adaptable_weights():
                weight.copy_(weights[name])

    def _adaptable_weights(self) -> Iterator[tuple[str, Tensor]]:
        for number, adapter in enumerate(self._adapters):
            for place, weight in enumerate(adapter.parameters):
                yield f"{number}.{place}", weight

    @contextmanager
    def adapted(self) -> Iterator[None]:
        """Inside `adaptable`: puts what was learned to use until the end of the block; nothing is learned inside."""
        with ExitStack() as stack:
            for adapter in self._adapters:
                stack.enter_context(adapter.merged())
            yield

    def _words(self) -> list[str]:
        """Admissible words of all members."""
        return [word for member in self.members for word in member.surrogate.admissible_tokens().words]

    def vocabulary(self) -> Sequence[str]:
        """Admissible words of the first member."""
        return self.members[0].surrogate.admissible_tokens().words


def require_numbers(*tensors: Tensor) -> None:
    """Raises FloatingPointError if one of the tensors has a value that is no finite number."""
    if not all(tensor.isfinite().all() for tensor in tensors):
        raise FloatingPointError


def _inner_lr(surrogate: Surrogate, config: ProtectConfig) -> float:
    """The config's learning rate, else what the surrogate's folder recommends for adapters, else our own."""
    if config.inner_lr is not None:
        return config.inner_lr
    return recommended(surrogate.name).get("lora", {}).get("lr", _INNER_LR)
