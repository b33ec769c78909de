"""How much of a perturbation reaches each image token (Eq. 22), read off the shape of the model's input."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from mmguard.errors import SurrogateError


def energy_per_image_token(
    pixels: dict[str, Tensor], clean_pixels: dict[str, Tensor], tokens: Sequence[int], name: str
) -> Tensor:
    """ρ of every image token of a batch, in the order in which they stand in the text.

    Args:
        pixels: the image side of the model's inputs, for the protected images.
        clean_pixels: the same, for the originals.
        tokens: how many image tokens each sample has.
        name: of the model, for messages.

    Returns:
        `(sum(tokens),)`, the mean absolute change over each token's pixel region.

    Raises:
        SurrogateError: the region of a token does not follow from the shapes.
    """
    if "pixel_values" not in pixels:
        raise _underivable(name, f"its inputs are {', '.join(pixels)}, with no pixel_values")
    change = (pixels["pixel_values"].detach() - clean_pixels["pixel_values"].detach()).abs().float()
    if "image_sizes" in pixels:
        # The model then cuts padding off its feature maps, by rules of its own.
        raise _underivable(name, "it crops its feature maps to image_sizes")
    if "target_sizes" in pixels:
        return _strip(change, pixels["target_sizes"], sum(tokens), name)
    if change.ndim == 2:
        return _patches(change, sum(tokens), name)
    if change.ndim == 4 and change.shape[1] == 3:
        return _tiles(change, sum(tokens), name)
    if change.ndim == 5 and change.shape[2] == 3:
        return _padded_tiles(change, tokens, name)
    raise _underivable(name, f"pixel_values have the shape {tuple(change.shape)}")


def _patches(change: Tensor, tokens: int, name: str) -> Tensor:
    """Flattened patches `(rows, values)`: those that one token merges stand together (Qwen-VL, GLM-V)."""
    if change.shape[0] % tokens:
        raise _underivable(name, f"{change.shape[0]} patches do not divide into {tokens} image tokens")
    return change.reshape(tokens, -1).mean(1)


def _strip(change: Tensor, sizes: Tensor, tokens: int, name: str) -> Tensor:
    """Patches side by side `(1, 3, p, n · p)`, each grid of which becomes a coarser one, row by row (MiniCPM-V)."""
    patches = change.mean((0, 1)).unflatten(1, (int(sizes.prod(1).sum()), -1)).mean((0, 2))
    side = math.isqrt(len(patches) // tokens)
    if side * side * tokens != len(patches):
        raise _underivable(name, f"{tokens} image tokens are no squares of {len(patches)} patches")
    grids = zip(patches.split(sizes.prod(1).tolist()), sizes.tolist(), strict=True)
    return torch.cat([functional.avg_pool2d(grid.view(1, *size), side).flatten() for grid, size in grids])


def _tiles(change: Tensor, tokens: int, name: str) -> Tensor:
    """Whole tiles `(n, 3, H, W)`, each of which becomes a square grid of tokens, row by row."""
    side = math.isqrt(tokens // len(change))
    if side == 0 or side * side * len(change) != tokens:
        raise _underivable(name, f"{tokens} image tokens are no square grid for each of {len(change)} tiles")
    return functional.adaptive_avg_pool2d(change.mean(1), side).flatten()


def _padded_tiles(change: Tensor, tokens: Sequence[int], name: str) -> Tensor:
    """Tiles `(B, n, 3, H, W)`, filled up to the largest number of tiles in the batch (SmolVLM)."""
    each, rest = divmod(max(tokens), change.shape[1])
    if rest or not each or any(count % each for count in tokens):
        raise _underivable(name, f"{list(tokens)} image tokens do not divide into {change.shape[1]} tiles")
    real = [tiles[: count // each] for tiles, count in zip(change, tokens, strict=True)]
    return _tiles(torch.cat(real), sum(tokens), name)


def _underivable(name: str, reason: str) -> SurrogateError:
    return SurrogateError(
        f"{name}: cannot tell which pixels each image token covers: {reason}. Use a surrogate of another "
        "family, or a variant without binding to perturbed tokens (crs, multimodal)"
    )
