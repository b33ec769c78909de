"""The differentiable image processor: the real one, with the gradient of its own float path.

Torchvision-backed processors of Hugging Face carry gradients when handed float tensors. Only their uint8 path
clamps and rounds, so the two differ where bicubic resizing overshoots. The forward value here is always the
uint8 path, which is what an attacker's processor computes from the released file; the backward pass is that
of the float path, which runs where the images lie. There is no copy of any model's resizing, tiling or
patching: layout decisions are the real ones.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from mmguard.errors import SurrogateError
from mmguard.runtime.memory import is_out_of_memory

Size = tuple[int, int]
"""Height and width, in pixels."""

_AS_TENSORS = {"return_tensors": "pt"}
_SMALL = 4096
"""Numbers that grids, counts and sizes have at most; pixels and masks over them have more."""
_REMEMBERED = 1024
"""Batches of sizes, for each image processor."""

_BLANKS: WeakKeyDictionary[Any, dict[tuple[str, tuple[Size, ...]], dict[str, Any]]] = WeakKeyDictionary()


def differentiable_pixels(image_processor: Any, images: Sequence[Tensor], **kwargs: Any) -> dict[str, Any]:
    """What an image processor makes of a batch of images, differentiable with respect to the images.

    Args:
        image_processor: a Hugging Face image processor. With images that require gradients it has to be a
            torchvision-backed one.
        images: `[0,1]` float RGB, each `(3, H, W)` at native resolution and on the uint8 grid (values are
            rounded to it). Sizes may differ. A tensor object that occurs several times is processed once.
        **kwargs: passed on to the processor.

    Returns:
        The processor's output, one image a sample. Tensors that depend on the pixels hold exactly the values
        of the uint8 path and, if gradients are enabled and an image requires them, carry the gradient of the
        float path. Everything else (grids, masks, sizes) is from the uint8 path. Tensors lie on the device of
        the first image.

    Raises:
        SurrogateError: the processor gives no gradient.
    """
    distinct, index = _distinct(images, key=id)
    device = images[0].device
    # On the CPU, as an attacker's processor runs: resizing of uint8 images on a GPU rounds differently.
    real = _call(image_processor, [to_uint8(image.detach()).cpu() for image in distinct], kwargs)
    real = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in real.items()}
    if torch.is_grad_enabled() and any(image.requires_grad for image in distinct):
        real = _straight_through(real, _soft(image_processor, distinct, kwargs), type(image_processor).__name__)
    sizes = [(image.shape[-2], image.shape[-1]) for image in distinct]
    return _repeat(image_processor, real, sizes, index, kwargs)


def layout(image_processor: Any, sizes: Sequence[Size], **kwargs: Any) -> dict[str, Any]:
    """What an image processor decides by size alone: tiles and grids. Sizes that it has seen together cost nothing.

    Args:
        image_processor: a Hugging Face image processor of any backend.
        sizes: of every image, one image a sample.
        **kwargs: passed on to the processor.

    Returns:
        Its output; pixels and masks over them have their shape, but are zeros that take no memory.
    """
    distinct, index = _distinct(sizes, key=lambda size: size)
    # A copy: whoever is handed the output may change it.
    output = copy.deepcopy(_of_blanks(image_processor, distinct, kwargs))
    repeated = _repeat(image_processor, output, distinct, index, kwargs)
    return {
        key: torch.zeros((), dtype=value.dtype).expand(value.shape) if _is_large(value) else value
        for key, value in repeated.items()
    }


def shrunk_size(size: Size, max_pixels: int) -> Size:
    """The size of a picture once it is shrunk to at most so many pixels, its shape kept; 0 is no limit."""
    height, width = size
    if max_pixels == 0 or height * width <= max_pixels:
        return size
    factor = math.sqrt(max_pixels / (height * width))
    return max(1, int(height * factor)), max(1, int(width * factor))


def shrunk(image: Tensor, max_pixels: int) -> Tensor:
    """A picture as trainers shrink it before any image processor sees it (bicubic, with antialiasing).

    Value and gradient are of the uint8 and the float path, as in `differentiable_pixels`.

    Args:
        image: `[0,1]` float `(3, H, W)`, on the uint8 grid.
        max_pixels: it has at most so many afterwards; 0 is no limit.

    Returns:
        A picture of the same kind; the very image if it is small enough.
    """
    before = image.shape[-2], image.shape[-1]
    size = shrunk_size(before, max_pixels)
    if size == before:
        return image
    value = _resized(to_uint8(image.detach()).cpu(), size).to(image.device) / 255
    if torch.is_grad_enabled() and image.requires_grad:
        return _with_gradient(value, _resized(image, size))
    return value


def blank(size: Size) -> Tensor:
    """A black uint8 image, `(3, H, W)`, that takes no memory."""
    return torch.zeros((), dtype=torch.uint8).expand(3, *size)


def to_uint8(image: Tensor) -> Tensor:
    """The nearest uint8 image of a `[0,1]` float one, same shape."""
    return (image * 255).round().clamp(0, 255).to(torch.uint8)


def _resized(image: Tensor, size: Size) -> Tensor:
    smaller: Tensor = resize(image, list(size), InterpolationMode.BICUBIC, antialias=True)
    return smaller


def _with_gradient(value: Tensor, soft: Tensor) -> Tensor:
    # The difference is an exact zero, so the value stays that of the uint8 path to the last bit.
    return value + (soft - soft.detach())


def _call(image_processor: Any, images: Sequence[Tensor], kwargs: dict[str, Any]) -> dict[str, Any]:
    # Nested, one list a sample: some families take a flat list for the images of one single sample.
    return dict(image_processor([[image] for image in images], **kwargs | _AS_TENSORS))


def _soft(image_processor: Any, images: Sequence[Tensor], kwargs: dict[str, Any]) -> dict[str, Any]:
    try:
        return _call(image_processor, [image * 255 for image in images], kwargs)
    except (RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        raise _no_gradient(type(image_processor).__name__) from error


def _straight_through(real: dict[str, Any], soft: dict[str, Any], name: str) -> dict[str, Any]:
    joined = dict(real)
    for key, value in soft.items():
        if isinstance(value, Tensor) and value.requires_grad and value.shape == real[key].shape:
            joined[key] = _with_gradient(real[key], value)
    if not any(isinstance(value, Tensor) and value.requires_grad for value in joined.values()):
        raise _no_gradient(name)
    return joined


def _of_blanks(image_processor: Any, sizes: Sequence[Size], kwargs: dict[str, Any]) -> dict[str, Any]:
    """What a processor makes of blank images, remembered: of large tensors the shape alone, on the meta device."""
    made = _BLANKS.setdefault(image_processor, {})
    # Its settings are in the key, since they can be changed between two calls.
    key = repr((vars(image_processor), sorted((kwargs | _AS_TENSORS).items()))), tuple(sizes)
    output = made.get(key)
    if output is None:
        real = _call(image_processor, [blank(size) for size in sizes], kwargs)
        output = {k: value.to("meta") if _is_large(value) else value for k, value in real.items()}
        if len(made) == _REMEMBERED:
            made.pop(next(iter(made)))  # the oldest
        made[key] = output
    return output


def _is_large(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() > _SMALL


def _no_gradient(name: str) -> SurrogateError:
    return SurrogateError(
        f"the image processor {name} passes no gradient to the image: use a model that has a torchvision-"
        "backed one (AutoImageProcessor.from_pretrained(..., backend='torchvision')); an attacker needs none"
    )


def _distinct(items: Sequence[Any], key: Any) -> tuple[list[Any], list[int]]:
    """The distinct items in order of first appearance, and for every item the number of its distinct one."""
    numbers: dict[Any, int] = {}
    distinct: list[Any] = []
    for item in items:
        if key(item) not in numbers:
            numbers[key(item)] = len(distinct)
            distinct.append(item)
    return distinct, [numbers[key(item)] for item in items]


def _repeat(
    image_processor: Any,
    output: dict[str, Any],
    sizes: Sequence[Size],
    index: Sequence[int],
    kwargs: dict[str, Any],
) -> dict[str, Any]:
    """The output for images `index` from the output for the distinct ones.

    Processors stack images, concatenate their tiles or their patches. How, is read off what the processor
    makes of one and of two blank images: the axis that grows is the one along which images lie.
    """
    if list(index) == list(range(len(sizes))):
        return output
    alone = {size: _of_blanks(image_processor, [size], kwargs) for size in sizes}
    twice = _of_blanks(image_processor, [sizes[0]] * 2, kwargs)
    repeated = dict(output)
    for key, value in output.items():
        parts = [alone[size][key] for size in sizes]
        if isinstance(value, Tensor):
            grown = [a for a in range(value.ndim) if twice[key].shape[a] != parts[0].shape[a]]
            if grown:
                pieces = value.split([part.shape[grown[0]] for part in parts], dim=grown[0])
                repeated[key] = torch.cat([pieces[number] for number in index], dim=grown[0])
        elif isinstance(value, list):
            ends = [sum(len(part) for part in parts[: number + 1]) for number in range(len(parts))]
            pieces = [value[end - len(part) : end] for end, part in zip(ends, parts, strict=True)]
            repeated[key] = [entry for number in index for entry in pieces[number]]
    return repeated
