"""What a format does to a perturbation and to file sizes, on photographs that come with scikit-image.

    python benchmarks/formats.py

δ is noise of ±ε, of single pixels or in patches about four pixels wide.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import skimage.data
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from mmguard.config import ProtectConfig
from mmguard.data.images import load_picture, picture_of
from mmguard.perturb.budget import ImageBudget, apply
from mmguard.release.pictures import store

EPS = 8
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
ENCODERS = ({"quality": 75, "subsampling": 2}, {"quality": 85, "subsampling": 2}, {"quality": 95, "subsampling": 0})


def noise(image: Tensor, patch: int) -> Tensor:
    """An image with as much noise as the budget allows."""
    height, width = image.shape[1:]
    coarse = [-(-side // patch) for side in (height, width)]
    drawn = torch.randn(1, 3, *coarse, generator=torch.Generator().manual_seed(0))
    signs = interpolate(drawn, (height, width), mode="bilinear")[0].sign()
    return apply(image, ImageBudget(EPS).project(image, (signs * EPS).to(torch.int16)))


def main() -> None:
    """Prints a table: largest and mean change as decoded, and the file's size by the original's."""
    print("| photograph | original | patch | format | max | mean | size |\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in PHOTOGRAPHS:
            for options in ENCODERS:
                path = Path(folder, "original.jpg")
                Image.fromarray(getattr(skimage.data, name)()).save(path, **options)
                original = load_picture(path)
                for patch in (1, 4):
                    protected = noise(original.image, patch)
                    for config in (ProtectConfig(format="keep"), ProtectConfig(), ProtectConfig(format="webp")):
                        stored = store(path, original, protected, config, EPS)
                        change = (picture_of(stored.content, path).image.int() - original.image.int()).abs()
                        facts = (
                            name, f"{options['quality']} {'4:2:0' if options['subsampling'] else '4:4:4'}", patch,
                            stored.carrier.container, change.max().item(), f"{change.float().mean():.1f}",
                            f"{len(stored.content) / path.stat().st_size:.1f}",
                        )  # fmt: skip
                        print("|", " | ".join(map(str, facts)), "|", flush=True)


if __name__ == "__main__":
    main()
