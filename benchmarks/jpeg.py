"""How long it takes to fit a perturbation through the JPEG encoder, against doing it the plain way, side by side.

    OMP_NUM_THREADS=1 python benchmarks/jpeg.py --megapixels 2 12

The plain way encodes the whole picture in every correction, twice over, and lets autograd walk through the subsampling
of colour. *Step* is what a step of PGD spends on the encoder, *fit* what is done once, when the file is written.
Seconds are of the processor, not of the clock, so that what else the machine does matters little.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

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
SAMPLINGS = ("4:4:4", "4:2:2", "4:2:0")


def plain_fit(original: Tensor, protected: Tensor, jpeg: Jpeg) -> tuple[Tensor, Jpeg]:
    """What to encode, and how: from corrections of the whole picture, with all of the perturbation and a part of it."""
    base, delta = original.to(torch.int16), protected.float() - original.float()
    for settings in ours._finer(jpeg):
        found = [one for room in (1.0, 0.6) if (one := _plain_fit(base, room * delta, settings)) is not None]
        if found:
            return max(found, key=lambda one: kept(one, settings, original, protected)), settings
    raise ValueError("no settings suffice")


def _plain_fit(base: Tensor, delta: Tensor, jpeg: Jpeg) -> Tensor | None:
    height, width = base.shape[-2:]
    share = torch.ones(-(-height // 16), -(-width // 16))
    for attempt in range(50):
        part = share.repeat_interleave(16, 0).repeat_interleave(16, 1)[:height, :width]
        stored = (base + (delta * part).round()).clamp(0, 255).to(torch.uint8)
        excess = (change := jpeg_roundtrip(stored, jpeg).to(torch.int16) - base) - change.clamp(-EPS, EPS)
        if not excess.any():
            return stored
        if attempt < 40:
            delta = delta - excess
        else:
            blocks = max_pool2d(excess.any(0, keepdim=True).float(), 16, ceil_mode=True)[0]
            share = torch.where(blocks > 0, share * 0.7, share)
    return None


def kept(stored: Tensor, settings: Jpeg, original: Tensor, protected: Tensor) -> float:
    """How much of a perturbation the decoded file has, in levels of 255; what is read beyond the budget is an error."""
    change, wanted = (image.float() - original.float() for image in (jpeg_roundtrip(stored, settings), protected))
    assert change.abs().max() <= EPS
    return float((change * wanted.sign()).mean())


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


def photograph(name: str, megapixels: float, path: Path) -> None:
    """A picture of that size as a telephone makes them: soft, with grain, and colour at half resolution."""
    height, width = (int((megapixels * 1e6 * ratio) ** 0.5) for ratio in (3 / 4, 4 / 3))
    soft = torch.from_numpy(getattr(skimage.data, name)()).permute(2, 0, 1)[None].float()
    large = interpolate(soft, (height, width), mode="bicubic")[0]
    grain = 2 * torch.randn(3, height, width, generator=torch.Generator().manual_seed(0))
    pixels = (large + grain).clamp(0, 255).round().to(torch.uint8)
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path, quality=92, subsampling=2)


def timed(work: Callable[..., Result], *arguments: Any) -> tuple[float, Result]:
    """Seconds of the processor, and the outcome."""
    began = time.process_time()
    result = work(*arguments)
    return time.process_time() - began, result


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megapixels", type=float, nargs="+", default=[2, 12])
    parser.add_argument("--photographs", nargs="+", default=["astronaut", "chelsea"], help="of scikit-image, enlarged")
    arguments = parser.parse_args()
    print(
        "| photograph | megapixels | what | plain, s | ours, s | plain ÷ ours | result |\n|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        for name, megapixels in product(arguments.photographs, arguments.megapixels):
            path, about = Path(folder, "photograph.jpg"), f"{name} | {megapixels:g}"
            photograph(name, megapixels, path)
            original, jpeg = load_image(path), carrier_for(path, "keep").jpeg
            assert jpeg is not None
            pair = original, noise(original, 4)
            for way in (plain_gradient, our_gradient):
                way(original[:, :64, :64], pair[1][:, :64, :64], jpeg)  # a warm-up
            (plain, one), (spent, other) = timed(plain_gradient, *pair, jpeg), timed(our_gradient, *pair, jpeg)
            result = f"mean difference {(one - other).abs().mean():.3f}"
            print(f"| {about} | step | {plain:.2f} | {spent:.2f} | {plain / spent:.1f} | {result} |", flush=True)
            (plain, theirs), (spent, found) = timed(plain_fit, *pair, jpeg), timed(ours.fit, *pair, jpeg, EPS)
            assert found is not None
            result = " and ".join(
                f"{kept(*one, *pair):.2f} levels at quality {one[1].quality}, {SAMPLINGS[one[1].subsampling]}"
                for one in (theirs, found)
            )
            print(f"| {about} | fit | {plain:.1f} | {spent:.1f} | {plain / spent:.1f} | {result} |", flush=True)


if __name__ == "__main__":
    main()
