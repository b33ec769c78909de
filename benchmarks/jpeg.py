"""How long it takes to fit a perturbation through the JPEG encoder, against doing it the plain way, side by side.

    OMP_NUM_THREADS=1 python benchmarks/jpeg.py --megapixels 2 12

The plain way encodes the whole picture in every correction, and lets autograd walk through the subsampling of colour.
Seconds are of the processor, not of the clock, so that what else the machine does matters little.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import skimage.data
import torch
from formats import EPS, noise
from kornia.color import rgb_to_ycbcr, ycbcr_to_rgb
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, max_pool2d

from mmguard.data.carrier import Jpeg, carrier_for, jpeg_roundtrip
from mmguard.data.images import load_image
from mmguard.perturb import jpeg as ours
from mmguard.perturb.budget import to_unit

Result = TypeVar("Result")


def plain_fit(base: Tensor, delta: Tensor, jpeg: Jpeg) -> Tensor | None:
    """What to encode, from corrections of the whole picture."""
    height, width = base.shape[-2:]
    share = torch.ones(-(-height // 16), -(-width // 16))
    for attempt in range(50):
        kept = share.repeat_interleave(16, 0).repeat_interleave(16, 1)[:height, :width]
        stored = (base + (delta * kept).round()).clamp(0, 255).to(torch.uint8)
        change = jpeg_roundtrip(stored, jpeg).to(torch.int16) - base
        excess = change - change.clamp(-EPS, EPS)
        if not excess.any():
            return stored
        if attempt < 40:
            delta = delta - excess
        else:
            blocks = max_pool2d(excess.any(0, keepdim=True).float(), 16, ceil_mode=True)[0]
            share = torch.where(blocks > 0, share * 0.7, share)
    return None


def plain_gradient(original: Tensor, protected: Tensor, jpeg: Jpeg) -> Tensor:
    """Of a sum over what is seen; for colour at half resolution."""
    image = to_unit(protected).requires_grad_(True)
    decoded = to_unit(jpeg_roundtrip((image.detach() * 255).round().to(torch.uint8), jpeg))
    stored = rgb_to_ycbcr(image)
    colour = interpolate(avg_pool2d(stored[None, 1:], 2, ceil_mode=True), scale_factor=2)[0]
    soft = ycbcr_to_rgb(torch.cat([stored[:1], colour[:, : stored.shape[1], : stored.shape[2]]]))
    base, limit = to_unit(original), EPS / 255 + 1e-6
    view = base + (decoded + (soft - soft.detach()) - base).clamp(-limit, limit)
    return torch.autograd.grad(view.sum(), image)[0]


def our_gradient(original: Tensor, protected: Tensor, jpeg: Jpeg) -> Tensor:
    """The same."""
    image = to_unit(protected).requires_grad_(True)
    return torch.autograd.grad(ours.seen(original, image, jpeg, EPS).sum(), image)[0]


def photograph(megapixels: float, path: Path) -> None:
    """A picture of that size as a telephone makes them: soft, with grain, and colour at half resolution."""
    height, width = (int((megapixels * 1e6 * ratio) ** 0.5) for ratio in (3 / 4, 4 / 3))
    soft = torch.from_numpy(skimage.data.astronaut()).permute(2, 0, 1)[None].float()
    large = interpolate(soft, (height, width), mode="bicubic")[0]
    grain = 2 * torch.randn(3, height, width, generator=torch.Generator().manual_seed(0))
    pixels = (large + grain).clamp(0, 255).round().to(torch.uint8)
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path, quality=92, subsampling=2)


def timed(work: Callable[[], Result]) -> tuple[float, Result]:
    """Seconds of the processor, and the outcome."""
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megapixels", type=float, nargs="+", default=[2, 12])
    arguments = parser.parse_args()
    print("| megapixels | what | plain, s | ours, s | plain ÷ ours | same |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for megapixels in arguments.megapixels:
            path = Path(folder, "photograph.jpg")
            photograph(megapixels, path)
            original, jpeg = load_image(path), carrier_for(path, "keep").jpeg
            assert jpeg is not None
            protected = noise(original, 4)
            base, delta = original.to(torch.int16), 0.6 * (protected.float() - original.float())
            our_gradient(original[:, :64, :64], protected[:, :64, :64], jpeg)  # a warm-up
            plain_gradient(original[:, :64, :64], protected[:, :64, :64], jpeg)
            plain, one = timed(lambda: plain_gradient(original, protected, jpeg))  # noqa: B023
            spent, other = timed(lambda: our_gradient(original, protected, jpeg))  # noqa: B023
            same = f"within {(one - other).abs().mean():.3f}"
            print(
                f"| {megapixels:g} | one step | {plain:.2f} | {spent:.2f} | {plain / spent:.1f} | {same} |", flush=True
            )
            spent, found = timed(lambda: ours._fit(base, delta, jpeg, EPS))  # noqa: B023
            plain, wanted = timed(lambda: plain_fit(base, delta, jpeg))  # noqa: B023
            same = found is not None and wanted is not None and torch.equal(found[0], wanted)
            print(
                f"| {megapixels:g} | fitting | {plain:.1f} | {spent:.1f} | {plain / spent:.1f} | {same} |", flush=True
            )


if __name__ == "__main__":
    main()
