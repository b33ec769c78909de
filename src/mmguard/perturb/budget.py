"""The only owner of ε and of the uint8 grid (Eq. 13).

A perturbation is an int8 tensor δ in levels of 1/255; image + δ is again a uint8 image. Nothing here rounds: with steps
of whole levels from whole numbers, what is optimised is to the bit what is saved.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmguard.errors import ConfigError


@dataclass(frozen=True)
class ImageBudget:
    """‖δ‖∞ ≤ ε_x and a valid image (Eq. 13).

    Two kinds of pictures allow less. Where all channels of the original are equal, those of δ are, too: gray stays
    gray. And where a pixel is not opaque, δ is what a change of at most ε_x to the colour beneath it can do.

    Attributes:
        eps: ε_x in levels of 255, from 0 to 127.
        alpha: opacity of each pixel of the one image that this is the budget of, uint8 `(H, W)`; None for opaque ones.
    """

    eps: int
    alpha: Tensor | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.eps <= 127:
            raise ConfigError(f"eps {self.eps}: give a whole number from 0 to 127, in levels of 255")

    def project(self, image: Tensor, delta: Tensor) -> Tensor:
        """Π: the nearest perturbation within the budget, int8 `(3, H, W)`.

        Args:
            image: uint8 `(3, H, W)`.
            delta: integers `(3, H, W)`.
        """
        base = image.to(torch.int16)
        inside = delta.to(torch.int16)
        if is_gray(image):
            inside = inside.float().mean(0, keepdim=True).round().to(torch.int16).expand_as(base)
        if self.alpha is None:
            return ((base + inside.clamp(-self.eps, self.eps)).clamp(0, 255) - base).to(torch.int8)
        alpha = self.alpha.to(base.device, torch.int16)
        reach = (self.eps * alpha) // 255
        shown = base + inside.clamp(-reach, reach)
        # On white, a pixel of opacity a is at least as bright as what shines through it.
        return (shown.clamp(max=255).maximum(255 - alpha) - base).to(torch.int8)

    def random(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """A perturbation drawn evenly from the budget: the start of PGD."""
        shape = _drawn_shape(image)
        drawn = torch.randint(-self.eps, self.eps + 1, shape, generator=generator, dtype=torch.int16)
        return self.project(image, drawn.expand_as(image))

    def random_signs(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """±ε at every colour value: the strongest noise of the budget, for the random-noise control."""
        drawn = torch.randint(0, 2, _drawn_shape(image), generator=generator, dtype=torch.int16)
        return self.project(image, ((2 * drawn - 1) * self.eps).expand_as(image))

    def descend(self, image: Tensor, delta: Tensor, gradient: Tensor) -> Tensor:
        """One signed step of one level, Π(δ − α sign ∇) with α = 1/255 (Eq. 15)."""
        if is_gray(image):
            gradient = gradient.sum(0, keepdim=True).expand_as(gradient)
        return self.project(image, delta.to(torch.int16) - gradient.sign().to(torch.int16).to(delta.device))


def is_gray(image: Tensor) -> bool:
    """Whether all channels of an image `(3, H, W)` are equal."""
    return torch.equal(image[0], image[1]) and torch.equal(image[0], image[2])


def _drawn_shape(image: Tensor) -> tuple[int, int, int]:
    """One number a pixel for gray images, whose channels must agree, else one a colour value."""
    channels, height, width = image.shape
    return (1 if is_gray(image) else channels, height, width)


def apply(image: Tensor, delta: Tensor) -> Tensor:
    """The protected image, uint8 `(3, H, W)`."""
    return (image.to(torch.int16) + delta.to(torch.int16)).to(torch.uint8)


def to_unit(image: Tensor) -> Tensor:
    """A uint8 image as `[0,1]` float32, exactly on the grid: times 255 and rounded it is the same image again."""
    return image.float() / 255
