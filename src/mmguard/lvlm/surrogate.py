"""Any Hugging Face image-text model as a differentiable surrogate."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import (
    DynamicCache,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.mllama.modeling_mllama import MllamaVisionEncoderLayer

from mmguard.errors import SampleError
from mmguard.lvlm.attention import Layer, attending_layers, attention_modules, tap
from mmguard.lvlm.energy import energy_per_image_token
from mmguard.lvlm.pixels import Size, differentiable_pixels, shrunk, shrunk_size
from mmguard.lvlm.prefix import Prefix, empty_cache
from mmguard.lvlm.prompt import Encoded, Example, Reworded, encode
from mmguard.runtime.memory import is_out_of_memory
from mmguard.types import TokenRoles

_WORD_LENGTH = range(2, 13)
"""Letters of an admissible word: one letter is an option's name, and longer tokens are rare in every
vocabulary."""


@dataclass(frozen=True)
class Attention:
    """Attention Ā_k(S) of each layer k in K (Eq. 24), for two sets of query rows.

    Shape: each `(K, B, N)`, float32, over the keys that `Surrogate.key_roles` describes; the last axis sums to 1, or
    is zero where a sample has no such rows.
    """

    trigger: Tensor
    """Ā_k(Ω_γ)."""
    answer: Tensor
    """Ā_k(Ω_y)."""


@dataclass(frozen=True)
class Forward:
    """What one forward pass of a batch yields."""

    nll: Tensor
    """ℓ_train of each sample, `(B,)`, float32: mean negative log-likelihood over its answer tokens, in
    nats."""
    embeddings: Tensor
    """The embedded text tokens `(B, L, d)`, before image features are put in. If gradients are enabled they
    are in the graph: `torch.autograd.grad(loss, forward.embeddings)` is the gradient that HotFlip needs (Eq.
    19)."""
    attention: Attention | None = None
    """Of the layers asked for."""


@dataclass(frozen=True)
class Vocabulary:
    """The admissible tokens of a model (Eq. 16)."""

    ids: Tensor
    """`(V_adm,)`, ascending."""
    words: tuple[str, ...]
    """The word of each, without its leading space."""


_CHECKPOINTED = (GradientCheckpointingLayer, MllamaVisionEncoderLayer)
"""Layers whose activations can be computed twice: those that transformers means for it, and one that it forgot."""


class Surrogate:
    """A frozen image-text model with its processor, in evaluation mode.

    Attributes:
        name: what it was loaded as.
        model: a Hugging Face `...ForConditionalGeneration`; its decoder runs the `mmguard_tap` attention.
        processor: the model's own.
        tokenizer: that of the processor.
        device: where the model is.
        recompute: whether layers forget their activations and compute them again in the backward pass (gradient
            checkpointing): less memory for about a third more time, and the same results.
        max_pixels: a picture with more is shrunk to so many before the processor sees it, as trainers do; 0 is no
            limit.
        candidates_at_once: most candidate triggers that run together; halved when memory runs out. Does not change the
            result.
    """

    def __init__(self, name: str, model: Any, processor: Any) -> None:
        self.name = name
        self.model = model.eval().requires_grad_(False)
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.device: torch.device = model.device
        self.recompute = False
        self.max_pixels = 0
        self.candidates_at_once = 64
        self._shares: bool | None = None

    def limited(self, max_pixels: int) -> Surrogate:
        """The same model, sharing everything with this one, that is shown pictures of at most so many pixels."""
        other = copy.copy(self)
        other.max_pixels = max_pixels
        return other

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        """Computes in 32 bits until the end of the block; the weights then come back to the bit."""
        narrow = [
            (tensor, tensor.data)
            for tensor in (*self.model.parameters(), *self.model.buffers())
            if tensor.is_floating_point() and tensor.dtype != torch.float32
        ]
        try:
            for tensor, data in narrow:
                tensor.data = data.float()
            yield
        finally:
            for tensor, data in narrow:
                tensor.data = data

    def encode(self, examples: Sequence[Example], images: Sequence[Tensor]) -> Encoded:
        """Token ids, labels and roles of a batch, on the model's device.

        Args:
            examples: the texts.
            images: the image of each, float `(3, H, W)`; only their sizes are read.

        Raises:
            SurrogateError: the chat template rewrites the text.
            SampleError: a text contains one of the model's control tokens, or the processor refuses an image's shape.
        """
        return self._encode(examples, [(image.shape[-2], image.shape[-1]) for image in images])[0].to(self.device)

    def require_room(self, encoded: Encoded) -> None:
        """Makes sure that no text alone is longer than what the model was made for.

        Pictures may add more: how many tokens one has is the model's own affair.

        Raises:
            SampleError: one is.
        """
        longest = int((encoded.length - encoded.roles.image.sum(1)).max())
        most = getattr(self.model.config.get_text_config(), "max_position_embeddings", longest)
        if longest > most:
            raise SampleError(
                f"a text of more than {most:,} tokens", f"{self.name} was not made for it: shorten it, or split it"
            )

    def pixels(self, images: Sequence[Tensor]) -> dict[str, Tensor]:
        """The image side of the model's inputs (pixels, grids, masks); see `differentiable_pixels`.

        Args:
            images: `[0,1]` float RGB, each `(3, H, W)` at native resolution and on the uint8 grid.

        Raises:
            SurrogateError: the image processor gives no gradient.
        """
        # Moved first: the float path, of which the gradient is, takes a CPU long.
        distinct = {id(image): image for image in images}
        shown = {key: shrunk(image.to(self.device), self.max_pixels) for key, image in distinct.items()}
        output = differentiable_pixels(
            self.processor.image_processor, [shown[id(image)] for image in images], **self._images_kwargs
        )
        return {key: value for key, value in output.items() if key in self._from_image and isinstance(value, Tensor)}

    def forward(self, encoded: Encoded, pixels: dict[str, Tensor], layers: Sequence[int] = ()) -> Forward:
        """One pass over a batch.

        Args:
            encoded: from `encode`.
            pixels: from `pixels`, for the images of the same samples in the same order.
            layers: decoder layers K whose attention is wanted, by number among those that attend (see
                `attention_modules`); none skips that work.

        Raises:
            SurrogateError: the model has no such layers.
        """
        with self._recomputing(layers):
            return self._run({**encoded.inputs, **self._cast(pixels), "use_cache": False}, encoded, layers, start=0)

    def reworded(self, example: Example, image: Tensor) -> Reworded:
        """One example, to be encoded under many triggers.

        Args:
            example: with its present trigger.
            image: float `(3, H, W)`; only its size is read.

        Raises:
            SurrogateError: as `encode`.
            SampleError: as `encode`.
        """
        size = shrunk_size((image.shape[-2], image.shape[-1]), self.max_pixels)
        return Reworded(self.processor, self.model.config.image_token_id, example, size)

    @torch.no_grad()
    def shared_prefix(self, encoded: Encoded, pixels: dict[str, Tensor]) -> Prefix | None:
        """What stands before the trigger, run once for all texts that begin so.

        Args:
            encoded: one example with a trigger.
            pixels: `pixels` of its image.

        Returns:
            None where it cannot be shared: the image stands behind the trigger, or what follows has a say in what a
            model makes of the beginning.
        """
        if set(self._layer_types) - {"full_attention", "sliding_attention", "linear_attention"}:
            return None  # nobody knows what such layers would have to lend
        if getattr(self.model.config.get_text_config(), "use_bidirectional_attention", None) in (True, "all"):
            return None  # in a prefix language model the image's tokens see the trigger
        start = int(encoded.roles.trigger[0].int().argmax())
        if start == 0 or encoded.roles.image[:, start:].any() or self._shares is False:
            return None
        if self._shares is None:
            self._shares = self._agrees(encoded, pixels, start)
        return self._prefix(encoded, pixels, start) if self._shares else None

    def _prefix(self, encoded: Encoded, pixels: dict[str, Tensor], length: int) -> Prefix:
        cache = empty_cache(self._layer_types)
        inputs = {key: value[:, :length] for key, value in encoded.inputs.items()}
        none = torch.zeros_like(encoded.labels[:, :length], dtype=torch.bool)
        with _head_at(self.model, none):
            self.model(**inputs, **self._cast(pixels), cache=cache, use_cache=True)
        state = [(module, module.rope_deltas) for module in self._remembering]
        return Prefix(encoded.inputs["input_ids"][0, :length], cache, state)

    def _agrees(self, encoded: Encoded, pixels: dict[str, Tensor], length: int) -> bool:
        """Whether going on from a prefix gives what the whole pass does; tried once for a model."""
        try:
            short = self.forward_from(self._prefix(encoded, pixels, length), encoded).nll
        # Caches change with the releases of transformers, and new families have their own.
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            if is_out_of_memory(error):
                raise
            self._warn_of_full_runs(str(error))
            return False
        whole = self.forward(encoded, pixels).nll
        tolerance = 1e-3 if self.model.dtype == torch.float32 else 0.05
        if bool((short - whole).abs().max() <= tolerance * (1 + whole.abs().max())):
            return True
        self._warn_of_full_runs("going on from a shared beginning gives other losses")
        return False

    def _warn_of_full_runs(self, reason: str) -> None:
        warnings.warn(f"{self.name}: every candidate is run in full, which is slower: {reason}", stacklevel=3)

    @torch.no_grad()
    def forward_from(self, prefix: Prefix, encoded: Encoded, layers: Sequence[int] = ()) -> Forward:
        """`forward` of a batch that begins with the prefix, without gradients.

        Args:
            prefix: from `shared_prefix`, of the model in its present state.
            encoded: examples with the prefix's image.
            layers: decoder layers K whose attention is wanted.
        """
        cache = prefix.lent(len(encoded.labels))
        for module, rope_deltas in prefix.state:
            module.rope_deltas = rope_deltas
        return self._run(self._continue(encoded, cache, prefix.length), encoded, layers, prefix.length)

    def key_roles(self, encoded: Encoded) -> TokenRoles:
        """Which keys of an attention row play which part.

        They are the tokens of the sequence. Where a model reads the image by cross-attention (Mllama), its image
        tokens are no part of the sequence and stand before it; those of tiles that only fill up the batch have no role.

        Args:
            encoded: the batch.

        Returns:
            `(B, N)` each.
        """
        tiles = encoded.inputs.get("cross_attention_mask")  # (B, L, images, tiles)
        if tiles is None:
            return encoded.roles
        image = tiles.any(1).flatten(1).repeat_interleave(self.model.get_encoder("image").num_patches, 1)
        none = torch.zeros_like(image)
        roles = {name: torch.cat([none, role], 1) for name, role in vars(encoded.roles).items()}
        return TokenRoles(**roles | {"image": torch.cat([image, torch.zeros_like(encoded.roles.image)], 1)})

    def token_energy(self, encoded: Encoded, pixels: dict[str, Tensor], clean_pixels: dict[str, Tensor]) -> Tensor:
        """How much each image token's region of the preprocessed image was changed, ρ (Eq. 22).

        Args:
            encoded: the batch.
            pixels: `pixels` of the protected images.
            clean_pixels: `pixels` of the originals.

        Returns:
            `(B, N)`, for the keys of `key_roles`: mean absolute change over the token's pixels, in units of the
            preprocessed image; 0 for those that are no image tokens.

        Raises:
            SurrogateError: which pixels a token covers does not follow from the model.
        """
        image = self.key_roles(encoded).image
        energy = torch.zeros(image.shape, device=self.device)
        tokens = int(image.sum())
        energy[image] = energy_per_image_token(self.model, pixels, clean_pixels, tokens, self.name).to(self.device)
        return energy

    def admissible_tokens(self) -> Vocabulary:
        """The admissible vocabulary (Eq. 16): tokens that are a space and 2 to 12 ASCII letters, control
        tokens left out."""
        return self._admissible

    def embed(self, ids: Tensor) -> Tensor:
        """The embeddings e_v of token ids (Eq. 19), as the model feeds them to its decoder: `(*, d)` for
        `(*)`."""
        return self.model.get_input_embeddings()(ids.to(self.device))

    # Below: how it is done.

    def _encode(self, examples: Sequence[Example], sizes: Sequence[Size]) -> tuple[Encoded, frozenset[str]]:
        shown = [shrunk_size(size, self.max_pixels) for size in sizes]
        try:
            return encode(self.processor, self.model.config.image_token_id, examples, shown)
        except (ValueError, ArithmeticError) as error:  # image processors refuse what is 200 times as long as wide
            shapes = ", ".join(dict.fromkeys(f"{width} x {height} pixels" for height, width in sizes))
            raise SampleError(shapes, f"{self.name} takes no such image ({error}): crop or replace it") from error

    @cached_property
    def _from_image(self) -> frozenset[str]:
        """Names of the model's inputs that come from the image."""
        return self._encode([Example("a", "a")], [(64, 64)])[1]

    @cached_property
    def _images_kwargs(self) -> dict[str, Any]:
        """What the processor tells its image processor on every call, beyond the latter's own settings."""
        merged = self.processor._merge_kwargs(tokenizer_init_kwargs=self.tokenizer.init_kwargs)
        return dict(merged["images_kwargs"])

    @cached_property
    def _admissible(self) -> Vocabulary:
        tokens = min(len(self.tokenizer), self.model.get_input_embeddings().num_embeddings)
        found = admissible_words(self.tokenizer, tokens)
        return Vocabulary(torch.tensor(list(found), dtype=torch.long, device=self.device), tuple(found.values()))

    @cached_property
    def _layer_types(self) -> Sequence[str]:
        return getattr(self.model.config.get_text_config(), "layer_types", None) or ()

    @cached_property
    def _attending(self) -> Sequence[Layer]:
        # Once for a model: adapters come and go inside the attention modules, which stay the same.
        return attending_layers(self.model)

    @cached_property
    def _remembering(self) -> Sequence[Any]:
        """Modules that remember in `rope_deltas` where a text goes on behind its image; known once it ran."""
        return [module for module in self.model.modules() if hasattr(module, "rope_deltas")]

    def _cast(self, pixels: dict[str, Tensor]) -> dict[str, Tensor]:
        return {k: v.to(self.model.dtype) if v.is_floating_point() else v for k, v in pixels.items()}

    @contextmanager
    def _recomputing(self, layers: Sequence[int]) -> Iterator[None]:
        """Turns checkpointing on for one forward pass with gradients, if it is wanted.

        Not by the model's own switch, which works in training mode only and leaves hooks behind.
        """
        if not self.recompute or not torch.is_grad_enabled():
            yield
            return
        # The layers K are left out: what the tap reads in passing would not be there the second time.
        found = attention_modules(self.model, layers, self._attending) if layers else []
        tapped = {part for layer in found for part in layer}
        chosen: list[Any] = [
            module
            for module in self.model.modules()
            if isinstance(module, _CHECKPOINTED) and tapped.isdisjoint(module.modules())
        ]
        before = [vars(module).get("forward") for module in chosen]
        for module in chosen:
            module.forward = _checkpointed(module.forward)
        try:
            yield
        finally:
            for module, forward in zip(chosen, before, strict=True):
                del module.forward
                if forward is not None:
                    module.forward = forward

    def _run(self, inputs: dict[str, Any], encoded: Encoded, layers: Sequence[int], start: int) -> Forward:
        """The forward pass of the tokens from `start` on, those before being in the inputs' cache."""
        labels, roles = encoded.labels[:, start:], encoded.roles
        # What comes next is a label, or nothing.
        predicted = functional.pad(labels[:, 1:], (0, 1), value=-100)
        with _Embeddings(self.model, labels.shape) as embedded, _head_at(self.model, predicted != -100):
            if layers:
                groups = {"trigger": roles.trigger[:, start:], "answer": roles.answer[:, start:]}
                with tap(self.model, layers, groups, self._attending) as recorded:
                    logits = self.model(**inputs).logits
                attention = Attention(recorded["trigger"], recorded["answer"])
            else:
                logits, attention = self.model(**inputs).logits, None
        return Forward(_nll(logits[0], predicted), embedded.value, attention)

    def _continue(self, encoded: Encoded, cache: DynamicCache, start: int) -> dict[str, Any]:
        """The inputs for the tokens from `start` on, by the model's own rules for generating with a cache."""
        known: dict[str, Any] = {**encoded.inputs, "cache": cache}
        ids = known.pop("input_ids")
        known["position_ids"] = self.model._prepare_position_ids_for_generation(ids, known)
        inputs = self.model.prepare_inputs_for_generation(
            ids, next_sequence_length=ids.shape[1] - start, use_cache=True, is_first_iteration=False, **known
        )
        return {key: value for key, value in inputs.items() if value is not None}


def admissible_words(tokenizer: Any, tokens: int) -> dict[int, str]:
    """The words that are a single token (Eq. 16): a space and 2 to 12 ASCII letters, no control token.

    Args:
        tokenizer: of any language model.
        tokens: only the first so many ids of its vocabulary.

    Returns:
        Words without their leading space by token id, ascending.
    """
    # Decoded behind another token: some tokenizers drop the space of the first one.
    first = tokenizer.encode("a", add_special_tokens=False)[-1:]
    head = tokenizer.decode(first, clean_up_tokenization_spaces=False)
    control = set(tokenizer.added_tokens_decoder)
    words = {}
    for token in range(tokens):
        text = tokenizer.decode([*first, token], clean_up_tokenization_spaces=False)[len(head) :]
        word = text[1:]
        admissible = text[:1] == " " and word.isascii() and word.isalpha() and len(word) in _WORD_LENGTH
        if admissible and token not in control:
            words[token] = word
    return words


class _Embeddings:
    """Catches the output of the embedding layer, as a node of the graph where there is one."""

    def __init__(self, model: Any, shape: torch.Size) -> None:
        self.value = torch.empty(0)
        self._layer = model.get_input_embeddings()
        self._shape = shape

    def __enter__(self) -> _Embeddings:
        self._handle = self._layer.register_forward_hook(self._catch)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _catch(self, _module: Any, _inputs: Any, output: Tensor) -> None:
        if output.shape[:2] == self._shape:
            if torch.is_grad_enabled() and not output.requires_grad:
                output.requires_grad_(True)
            self.value = output


@contextmanager
def _head_at(model: Any, tokens: Tensor) -> Iterator[None]:
    """Has a model compute logits of some tokens alone, `(1, n, V)`, row by row, of those that are true in `(B, L)`.

    Logits are the largest tensor of all. `logits_to_keep` would keep the same positions of every row.
    """

    def pick(_module: Any, inputs: tuple[Tensor]) -> Tensor:
        return inputs[0][tokens][None]

    handle = model.get_output_embeddings().register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()


def _nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over each sample's labels, `(B,)`; logits `(n, V)` predict the labels `(B, L)` that are not -100."""
    counted = labels != -100
    losses = functional.cross_entropy(logits.float(), labels[counted], reduction="none")
    return losses.new_zeros(labels.shape).masked_scatter(counted, losses).sum(1) / counted.sum(1).clamp(min=1)


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    """`forward`, with what is inside computed twice instead of kept."""
    # All arguments as positional ones: the random state of devices is kept for the tensors among these alone.
    return lambda *args, **kwargs: checkpoint(lambda a, k: forward(*a, **k), args, kwargs, use_reentrant=False)
