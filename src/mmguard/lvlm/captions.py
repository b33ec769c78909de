"""Captions of pictures that come without a text, in a model's own words: what a thief would train on, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from mmguard.data.images import load_image
from mmguard.errors import SampleError, SurrogateError
from mmguard.lvlm.generation import greedy
from mmguard.lvlm.prompt import Encoded, Example
from mmguard.lvlm.surrogate import Surrogate
from mmguard.runtime.memory import in_parts, is_out_of_memory
from mmguard.types import Dataset

_MAX_TOKENS = 48


@torch.no_grad()
def captions(model: Surrogate, paths: Sequence[Path], batch_size: int = 16) -> dict[Path, str]:
    """What the model says when it is asked to describe each picture, decoded greedily.

    Args:
        model: any surrogate.
        paths: picture files.
        batch_size: pictures at a time.

    Returns:
        The captions, white space folded, by path; "" where the model says nothing. Pictures that cannot be read, or
        that the model does not take, are not in it.

    Raises:
        SurrogateError: memory is not enough for one picture.
    """
    said: dict[Path, str] = {}
    for start in range(0, len(paths), batch_size):
        images: dict[Path, Tensor] = {}
        # Prompts of one length need no padding, which some models do not take on the left.
        by_length: dict[int, list[Path]] = {}
        for path in paths[start : start + batch_size]:
            try:
                images[path] = load_image(path) / 255
                by_length.setdefault(_prompt_length(_encoded(model, [images[path]])), []).append(path)
            except SampleError:  # whoever needs the picture itself reports it
                continue
        for length, group in by_length.items():
            said.update(zip(group, _fitted(model, [images[path] for path in group], length), strict=True))
    return said


def with_captions(dataset: Dataset, said: Mapping[Path, str]) -> Dataset:
    """The dataset with captions as the answers of their pictures' samples, less samples whose caption is empty.

    Args:
        dataset: its rows stay as they are.
        said: captions by picture; samples of other pictures stay as they are.
    """
    told = [(sample, said.get(sample.image)) for sample in dataset.samples]
    return replace(
        dataset,
        samples=[s if text is None else replace(s, answer=text, answers=(text,)) for s, text in told if text != ""],
    )


def _encoded(model: Surrogate, images: Sequence[Tensor]) -> Encoded:
    """The request, answered with a word that only serves to find where the prompt ends."""
    return model.encode([Example(None, "x")] * len(images), images)


def _prompt_length(encoded: Encoded) -> int:
    return int(encoded.roles.answer[0].nonzero()[0])


def _fitted(model: Surrogate, images: Sequence[Tensor], length: int) -> list[str]:
    """As `_said`; where memory is not enough, half of the pictures at a time, a quarter…"""
    try:
        return in_parts(lambda part: _said(model, part, length), images, len(images))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise SurrogateError(
            f"{model.name}: memory is not enough to caption one picture at a time: take a smaller surrogate or "
            "max-pixels, or a device with more memory"
        ) from error


def _said(model: Surrogate, images: Sequence[Tensor], length: int) -> list[str]:
    encoded = _encoded(model, images)
    prompt = {name: value[:, :length] for name, value in encoded.inputs.items()}
    # The template's end of a turn, if it has one.
    last = int(encoded.labels[0][encoded.roles.answer[0]][-1])
    ends = {last} & set(model.tokenizer.added_tokens_decoder)
    said = greedy(model.model, model.tokenizer, prompt | model.pixels(images), _MAX_TOKENS, ends)
    texts = model.tokenizer.batch_decode(said, skip_special_tokens=True)
    return [" ".join(text.split()) for text in texts]
