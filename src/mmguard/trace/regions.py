"""Which part of an image each image token covers."""

from __future__ import annotations

import torch
from torch import Tensor

from mmguard.lvlm.prompt import Example
from mmguard.lvlm.surrogate import Surrogate

_STEPS = 128


@torch.no_grad()
def token_boxes(model: Surrogate, size: tuple[int, int]) -> Tensor:
    """The rectangle of every image token, found by painting the image white from one side, step by step.

    How much of a token's energy (`Surrogate.token_energy`) has come when white has reached a line is how much of the
    token lies before it; so this holds for every model whose energies are known, with tiles and thumbnails too.

    Args:
        model: whose tokens.
        size: `(H, W)` of the image.

    Returns:
        `(N, 4)`: left, top, right, bottom as shares of the image, from 0 to 1; NaN for tokens that cover no pixels.

    Raises:
        SurrogateError: which pixels a token covers does not follow from the model.
    """
    black = torch.zeros(3, *size)
    encoded = model.encode([Example("a", "a")], [black])
    image, nothing = model.key_roles(encoded).image, model.pixels([black])

    def before(axis: int, line: int) -> Tensor:
        """Energy of every image token where the first `line` rows or columns are white."""
        painted = black.clone()
        painted.narrow(axis, 0, line).fill_(1)
        return model.token_energy(encoded, model.pixels([painted]), nothing)[image].double().cpu()

    sides = []
    for axis in (2, 1):
        length = size[axis - 1]
        lines = torch.linspace(0, length, min(length, _STEPS) + 1).round().int().tolist()
        energies = torch.stack([before(axis, line) for line in lines])
        share = (energies / energies[-1]).clamp(0, 1)  # of the token that lies before each line; NaN for no pixels
        at = torch.tensor(lines, dtype=torch.double) / length
        # Of an even distribution on [l, r] with F(x) = share before x: the mean is 1 − ∫F, and r − l is 6 ∫F(1 − F).
        middle = 1 - torch.trapezoid(share, at, dim=0)
        width = 6 * torch.trapezoid(share * (1 - share), at, dim=0)
        sides.append((middle - width / 2, middle + width / 2))
    (left, right), (top, bottom) = sides
    return torch.stack([left, top, right, bottom], 1).clamp(0, 1)
