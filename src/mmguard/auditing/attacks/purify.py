"""Purification: a generative model draws an image anew, and leaves out what it has never seen, such as δ.

`vae:ID` passes images through the bottleneck of a variational autoencoder; `diffusion:ID@T` adds noise up to a share
`T` of a diffusion model's schedule and lets the model take it away (Nie et al., 2022, "DiffPure"). `ID` is a folder or
a repository of the Hugging Face hub, in the format of diffusers, which the extra `purify` installs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import product
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from mmguard.auditing.attacks.base import Attack
from mmguard.errors import ConfigError
from mmguard.runtime.devices import device_of

# diffusers takes seconds to import, and is not always installed.

VAE = "stabilityai/sd-vae-ft-mse"
"""The autoencoder of Stable Diffusion, with the decoder that was trained on for fewer errors."""
STRENGTH = 0.1
"""Of diffusion, if none is given: DiffPure's 100 steps of 1000 against δ of 8/255."""

_Model = TypeVar("_Model")


def vae_attack(source: str | None) -> Attack:
    """Encodes images and decodes them again.

    Args:
        source: folder or hub id of an `AutoencoderKL`, or of a pipeline with one in its folder `vae`; None is `VAE`.

    Raises:
        ConfigError: diffusers is not installed. The attack itself raises it where the model cannot be loaded.
    """
    source = source or VAE
    _require_diffusers(f"vae:{source}")
    return Attack(f"vae:{source}", image=functools.partial(_reconstruct, source), models=(source,))


def diffusion_attack(parameter: str | None) -> Attack:
    """Adds noise to images and has a diffusion model remove it, step by step.

    Args:
        parameter: `ID` or `ID@T`: folder or hub id of an unconditional pixel-space pipeline (a `UNet2DModel` and the
            scheduler it was trained with), and the share of the schedule, above 0 and up to 1, 0.1 if not given.

    Raises:
        ConfigError: as `vae_attack`, or there is no `ID`, or `T` is out of range.
    """
    source, at, share = (parameter or "").rpartition("@")
    if not at:
        source, share = share, str(STRENGTH)
    try:
        strength = float(share)
    except ValueError:
        strength = 0.0
    if not source or not 0 < strength <= 1:
        raise ConfigError(
            f"attack diffusion:{parameter or ''}: name a model and a share of its schedule above 0 and up to 1, "
            "as in diffusion:google/ddpm-cat-256@0.1"
        )
    _require_diffusers(f"diffusion:{source}")
    image = functools.partial(_diffuse, source, strength)
    return Attack(f"diffusion:{source}@{strength:g}", image=image, models=(source,))


@torch.no_grad()
def _reconstruct(source: str, image: Tensor, generator: torch.Generator) -> Tensor:
    """Encodes and decodes, taking the most likely latents rather than random ones."""
    vae = _load_vae(source, device_of("auto"))
    height, width = image.shape[-2:]
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    padded = _padded(image, -(-height // factor) * factor, -(-width // factor) * factor)
    latents = vae.encode(_to_model(padded, vae)).latent_dist.mode()
    return _from_model(vae.decode(latents).sample)[:, :height, :width]


@torch.no_grad()
def _diffuse(source: str, strength: float, image: Tensor, generator: torch.Generator) -> Tensor:
    """Purifies tiles of the size that the model was trained on, and averages them where they overlap.

    Scaling the image to that size instead would lose details, an attack of its own; tiles are due to Wang et al., 2024
    ("GrIDPure").
    """
    unet, scheduler = _load_diffusion(source, device_of("auto"))
    side = unet.config.sample_size
    height, width = image.shape[-2:]
    padded = _padded(image, max(height, side), max(width, side))
    total, count = torch.zeros_like(padded), torch.zeros_like(padded[:1])
    for top, left in product(_starts(padded.shape[-2], side), _starts(padded.shape[-1], side)):
        tile = (slice(None), slice(top, top + side), slice(left, left + side))
        total[tile] += _from_model(_denoised(unet, scheduler, strength, _to_model(padded[tile], unet), generator))
        count[tile] += 1
    return (total / count)[:, :height, :width]


def _denoised(unet: Any, scheduler: Any, strength: float, clean: Tensor, generator: torch.Generator) -> Tensor:
    """Noise up to a share of the schedule, then the model's own steps back.

    Shape:
        clean and result: `(1, 3, H, W)` in [-1, 1].
    """
    steps = max(1, round(strength * scheduler.config.num_train_timesteps))
    noise = torch.randn(clean.shape, generator=generator).to(clean)
    sample = scheduler.add_noise(clean, noise, torch.tensor([steps - 1], device=clean.device))
    for t in range(steps - 1, -1, -1):
        sample = scheduler.step(unet(sample, t).sample, t, sample, generator=generator).prev_sample
    return sample


def _padded(image: Tensor, height: int, width: int) -> Tensor:
    """Repeats the last row and column until the image has a size."""
    return pad(image[None], (0, width - image.shape[-1], 0, height - image.shape[-2]), mode="replicate")[0]


def _starts(length: int, side: int) -> Iterator[int]:
    """Where tiles begin that cover a length, evenly spread, overlapping by an eighth of a side or more."""
    tiles = 1 + -(-(length - side) // max(1, side * 7 // 8))
    return (round(i * (length - side) / max(1, tiles - 1)) for i in range(tiles))


def _to_model(image: Tensor, model: Any) -> Tensor:
    return (image[None] * 2 - 1).to(model.device, model.dtype)


def _from_model(images: Tensor) -> Tensor:
    return (images[0].float().cpu() / 2 + 0.5).clamp(0, 1)


@functools.cache
def _load_vae(source: str, device: torch.device) -> Any:
    from diffusers import AutoencoderKL

    def load(**place: str) -> Any:
        vae, info = AutoencoderKL.from_pretrained(source, use_safetensors=True, output_loading_info=True, **place)
        if info["missing_keys"]:  # diffusers only warns, and draws them at random
            raise ValueError(f"it lacks {len(info['missing_keys'])} weights of an AutoencoderKL")
        return vae

    def find() -> Any:
        try:
            return load()
        except OSError:  # a pipeline has its autoencoder in a folder of its own
            return load(subfolder="vae")

    vae = _loaded(f"vae:{source}", find).to(device).eval()
    vae.enable_tiling()  # the attention of its bottleneck is quadratic in pixels
    return vae


@functools.cache
def _load_diffusion(source: str, device: torch.device) -> tuple[Any, Any]:
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    pipeline = _loaded(f"diffusion:{source}", lambda: DDPMPipeline.from_pretrained(source, use_safetensors=True))
    unet: Any = pipeline.unet
    if not issubclass(type(unet), UNet2DModel) or not isinstance(unet.config.sample_size, int):
        raise ConfigError(f"attack diffusion:{source}: give an unconditional model of square images (UNet2DModel)")
    # Whatever steps the pipeline samples with, noise was added in DDPM's.
    return unet.to(device).eval(), DDPMScheduler.from_config(pipeline.scheduler.config)


def _loaded(attack: str, load: Callable[[], _Model]) -> _Model:
    try:
        return load()
    except (OSError, ValueError, AttributeError) as error:  # nowhere to be found, or a model of another kind
        raise ConfigError(
            f"attack {attack}: cannot be loaded: give a folder or hub id of a model in the format of diffusers, "
            f"with weights in safetensors ({error})"
        ) from error


def _require_diffusers(attack: str) -> None:
    if find_spec("diffusers") is None:
        raise ConfigError(f"attack {attack}: needs diffusers: pip install 'mmguard[purify]'")
