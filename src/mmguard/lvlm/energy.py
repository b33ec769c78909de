"""How much of a perturbation reaches each image token (Eq. 22).

Which pixels a token covers follows from the shape of the model's input, from its patch size, and for LLaVA-NeXT's
tilings from the model's own packing. A token that stands for no pixels (the class token of a tile, the line break
behind a row of tiles) has no energy, so that it is never taken for a perturbed one before any other.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from mmguard.errors import SurrogateError
from mmguard.lvlm.families import family


def energy_per_image_token(
    model: Any, pixels: dict[str, Tensor], clean_pixels: dict[str, Tensor], tokens: int, name: str
) -> Tensor:
    """ρ of every image token of a batch, in the order in which they stand in the text.

    Args:
        model: a Hugging Face `...ForConditionalGeneration`.
        pixels: the image side of its inputs, for the protected images.
        clean_pixels: the same, for the originals.
        tokens: how many image tokens the batch has.
        name: of the model, for messages.

    Returns:
        `(tokens,)`, the mean absolute change over each token's pixel region.

    Raises:
        SurrogateError: the region of a token does not follow from the model, or is the whole image.
    """
    try:
        if "pixel_values" not in pixels:
            raise _UnderivableError(f"its inputs are {', '.join(pixels)}, with no pixel_values")
        change = (pixels["pixel_values"].detach() - clean_pixels["pixel_values"].detach()).abs().float()
        if "image_grid_thw" in pixels:
            values = _merged(change, tokens)
        else:
            _check_projector(model, name)
            values = _regions(model, change, pixels, tokens)
        if len(values) != tokens:
            raise _UnderivableError(f"{len(values)} regions for {tokens} image tokens")
    except _UnderivableError as reason:
        raise SurrogateError(
            f"{name}: cannot tell which pixels each image token covers: {reason}. Use a surrogate of another "
            "family, or a variant without binding to perturbed tokens (crs, multimodal)"
        ) from reason
    return values


class _UnderivableError(Exception):
    """Why regions cannot be derived."""


def _check_projector(model: Any, name: str) -> None:
    for part in family(model, name).projector:
        for module in model.get_submodule(part).modules():
            if "attention" in type(module).__name__.lower():
                raise _UnderivableError(f"each may look at all of the image, by the {type(module).__name__} in {part}")


def _regions(model: Any, change: Tensor, pixels: dict[str, Tensor], tokens: int) -> Tensor:
    """Energies of tokens that each cover a square of patches."""
    if "target_sizes" in pixels:
        return _packed(change, pixels["target_sizes"], tokens)
    if "image_sizes" in pixels:
        return _unpadded(model, _patches(model, change), pixels["image_sizes"])
    # Batches are filled up with empty tiles, which become no tokens.
    if "pixel_attention_mask" in pixels:
        change = change[pixels["pixel_attention_mask"].flatten(2).any(-1)]
    elif "aspect_ratio_mask" in pixels:
        change = change[pixels["aspect_ratio_mask"].bool()]
    return _tiles(_patches(model, change), tokens)


def _patches(model: Any, change: Tensor) -> Tensor:
    """The mean change of every patch of whole tiles: `(*, h, w)` from `(*, 3, H, W)`."""
    size = getattr(getattr(model.config, "vision_config", None), "patch_size", None)
    if size is None or change.ndim < 4 or change.shape[-3] != 3:
        raise _UnderivableError(f"pixel_values have the shape {tuple(change.shape)}")
    # As the patch embedding does, this leaves out a rest at the right and at the bottom.
    return functional.avg_pool2d(change.mean(-3).flatten(0, -3), size).unflatten(0, change.shape[:-3])


def _merged(change: Tensor, tokens: int) -> Tensor:
    """Flattened patches `(rows, values)`: those that one token merges stand together (Qwen-VL, GLM-V)."""
    if change.ndim != 2 or change.shape[0] % tokens:
        raise _UnderivableError(f"pixels of the shape {tuple(change.shape)} do not divide into {tokens} image tokens")
    return change.reshape(tokens, -1).mean(1)


def _packed(change: Tensor, sizes: Tensor, tokens: int) -> Tensor:
    """Patches of all images and slices side by side, `(1, 3, p, n · p)`, each slice row by row (MiniCPM-V)."""
    if change.ndim != 4 or change.shape[-1] % change.shape[-2]:
        raise _UnderivableError(f"pixel_values have the shape {tuple(change.shape)}")
    patches = change[0].unflatten(-1, (-1, change.shape[-2])).mean((0, 1, 3))  # (n,)
    merge = math.isqrt(len(patches) // tokens)
    lengths = sizes.prod(1).tolist()
    slices = [part.view(1, *size) for part, size in zip(patches.split(lengths), sizes.tolist(), strict=True)]
    return torch.cat([functional.avg_pool2d(part, merge).flatten() for part in slices])


def _tiles(patches: Tensor, tokens: int) -> Tensor:
    """Patches of tiles `(n, h, h)`, each of which becomes a square of tokens, row by row, perhaps behind a class
    token."""
    each, rest = divmod(tokens, len(patches))
    side = math.isqrt(each)
    extra = each - side**2
    square = patches.ndim == 3 and patches.shape[1] == patches.shape[2]
    if not square or rest or not side or extra > 1 or patches.shape[1] % side:
        shape = " × ".join(map(str, patches.shape))
        raise _UnderivableError(f"{tokens} image tokens are no square grid on each tile's patches ({shape})")
    pooled = functional.avg_pool2d(patches, patches.shape[1] // side).flatten(1)
    return functional.pad(pooled, (extra, 0)).flatten()


def _unpadded(model: Any, patches: Tensor, sizes: Tensor) -> Tensor:
    """Patches of tiles `(B, n, h, h)` as the model packs their features: padding cut off, line breaks put in."""
    inner, config = model.base_model, model.config
    if patches.ndim != 4 or not hasattr(inner, "pack_image_features"):
        raise _UnderivableError("it crops its feature maps to image_sizes in a way of its own")
    tile = config.vision_config.image_size
    counts = [image_size_to_num_patches(size, config.image_grid_pinpoints, tile) for size in sizes]
    features = [tiles[:count].flatten(1).unsqueeze(-1) for tiles, count in zip(patches, counts, strict=True)]
    # What else a family's packing asks for stands in its configuration.
    asked = inspect.signature(inner.pack_image_features).parameters
    settings = {key: getattr(config, key) for key in asked if hasattr(config, key)}
    packed, _ = inner.pack_image_features(features, sizes, image_newline=patches.new_zeros(1), **settings)
    return torch.cat(packed).squeeze(-1)
