"""Attacks on images."""

from __future__ import annotations

import io

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from mmguard.auditing.attacks.base import Attack, Factory
from mmguard.errors import ConfigError


def _gray(parameter: str | None) -> Attack:
    return Attack("gray", image=lambda image, generator: tv.rgb_to_grayscale(image, num_output_channels=3))


def _jpeg(parameter: str | None) -> Attack:
    if parameter is None or not parameter.isdecimal() or not 1 <= int(parameter) <= 95:
        raise ConfigError(f"attack jpeg-{parameter}: give a quality from 1 to 95, such as jpeg-50")
    quality = int(parameter)

    def save(image: Tensor, generator: torch.Generator) -> Tensor:
        file = io.BytesIO()
        tv.to_pil_image(image).save(file, "JPEG", quality=quality)
        return tv.to_dtype(tv.pil_to_tensor(Image.open(file)), torch.float32, scale=True)

    return Attack(f"jpeg-{quality}", image=save)


def _blur(parameter: str | None) -> Attack:
    return Attack(f"blur-{parameter}", image=lambda image, generator: tv.gaussian_blur(image, [5, 5]))


def _rcp(parameter: str | None) -> Attack:
    def crop(image: Tensor, generator: torch.Generator) -> Tensor:
        top, left = torch.randint(0, 3, (2,), generator=generator).tolist()
        return tv.pad(image[:, top:, left:], [left, top, 0, 0])

    return Attack("rcp", image=crop)


IMAGE_ATTACKS: dict[str, Factory] = {"gray": _gray, "jpeg": _jpeg, "blur": _blur, "rcp": _rcp}
