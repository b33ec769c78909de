"""What a thief does to images to be rid of δ: transforms, compression, filters and augmentations.

Everything is done by well-known libraries, at strengths that their users would choose. An image is float `(3, H, W)`
in [0, 1], RGB, on the CPU, of any size. A name says the strength after a dash: `jpeg-50`, `blur-1.5`, `gray`.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from mmguard.auditing.attacks.base import Factory, plain, strong
from mmguard.auditing.attacks.purify import diffusion_attack, vae_attack

# kornia and scikit-image are imported where they are used: an audit without these attacks does not wait for them.

Transform: TypeAlias = Callable[[Tensor, torch.Generator], Tensor]


def resize_crop_pad(image: Tensor, generator: torch.Generator) -> Tensor:
    """Crops at random, scales down at random and pads with black back to the old size, at a random place.

    **Choice**: the paper names the transform without numbers. Each side of the crop is 90 to 100 % of the image's, and
    the crop is scaled by 80 to 100 %.
    """
    height, width = image.shape[-2:]
    h, w = (_share(side, 0.9, generator) for side in (height, width))
    crop = tv.crop(image, _offset(height - h, generator), _offset(width - w, generator), h, w)
    scale = _uniform(0.8, 1.0, generator)
    small = tv.resize(crop, [max(1, round(h * scale)), max(1, round(w * scale))], antialias=True)
    down, right = height - small.shape[-2], width - small.shape[-1]
    top, left = _offset(down, generator), _offset(right, generator)
    return tv.pad(small, [left, top, right - left, down - top])


def jpeg(image: Tensor, generator: torch.Generator, quality: int) -> Tensor:
    """Saves as JPEG (Pillow's default, chroma at half resolution) and opens again."""
    return _saved(image, "JPEG", quality)


def webp(image: Tensor, generator: torch.Generator, quality: int) -> Tensor:
    """Saves as lossy WebP and opens again."""
    return _saved(image, "WEBP", quality)


def blur(image: Tensor, generator: torch.Generator, sigma: float) -> Tensor:
    """Gaussian blur.

    Args:
        image: as everywhere here.
        generator: unused.
        sigma: standard deviation in pixels.
    """
    from kornia.filters import gaussian_blur2d

    size = 2 * round(3 * sigma + 0.5) + 1
    # Of all borders, only the repeated edge is defined for images smaller than the window.
    return gaussian_blur2d(image[None], size, (sigma, sigma), border_type="replicate")[0]


def median(image: Tensor, generator: torch.Generator, size: int) -> Tensor:
    """The median of each channel over windows of `size × size` pixels."""
    return _from_pil(_to_pil(image).filter(ImageFilter.MedianFilter(size)))


def bilateral(image: Tensor, generator: torch.Generator) -> Tensor:
    """One bilateral filter, which averages pixels that are close in place and colour (Tomasi & Manduchi, 1998)."""
    return _bilateral(image[None], 0.1)[0]


def cleaner(image: Tensor, generator: torch.Generator) -> Tensor:
    """The "adverse cleaner": many gentle bilateral filters, then guided filters towards the image as it was.

    Reference: https://github.com/lllyasviel/AdverseCleaner, in 8-bit levels. **Choice**: 16 bilateral rounds instead of
    64: more take no more of a perturbation of 8/255, but of the picture.
    """
    from kornia.filters import guided_blur

    images = smooth = image[None]
    for _ in range(16):
        smooth = _bilateral(smooth, 8 / 255)
    for _ in range(4):
        smooth = guided_blur(images, smooth, 9, 16 / 255**2, border_type="replicate")
    return smooth[0]


def gray(image: Tensor, generator: torch.Generator) -> Tensor:
    """Luma in all three channels: a δ that lives in chroma is gone (Liu et al., 2023, "ISS")."""
    return tv.rgb_to_grayscale(image, num_output_channels=3)


def reduce_bits(image: Tensor, generator: torch.Generator, bits: int) -> Tensor:
    """Rounds each channel to `2^bits` evenly spaced levels, black and white among them (Xu et al., 2018)."""
    steps = 2**bits - 1
    return (image * steps).round() / steps


def resize(image: Tensor, generator: torch.Generator, factor: float) -> Tensor:
    """Scales down by a factor, antialiased, and up again, both bicubic."""
    size = list(image.shape[-2:])
    small = [max(1, round(side / factor)) for side in size]
    for target in (small, size):
        image = tv.resize(image, target, interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
    return image


def denoise(image: Tensor, generator: torch.Generator, sigma: float) -> Tensor:
    """Adds Gaussian noise, which drowns δ, and takes both away by non-local means (Buades et al., 2005).

    **Choice**: the thief expects δ to be noise of 8 levels, the default budget. Taking away no more than what was added
    would leave much of δ.

    Args:
        image: as everywhere here.
        generator: draws the noise.
        sigma: standard deviation of the noise in levels of 255.
    """
    from skimage.restoration import denoise_nl_means

    noisy = image + sigma / 255 * torch.randn(image.shape, generator=generator)
    level = math.hypot(sigma, 8) / 255
    window = {"patch_size": 5, "patch_distance": 6, "fast_mode": True}
    quiet = denoise_nl_means(noisy.numpy(), h=0.8 * level, sigma=level, channel_axis=0, **window)
    return torch.from_numpy(quiet).reshape(image.shape)  # sides of one pixel are dropped


def total_variation(image: Tensor, generator: torch.Generator, weight: float) -> Tensor:
    """Total-variation denoising (Chambolle, 2004).

    Args:
        image: as everywhere here.
        generator: unused.
        weight: how much total variation counts against likeness; 0.1 is scikit-image's default.
    """
    from skimage.restoration import denoise_tv_chambolle

    return torch.from_numpy(denoise_tv_chambolle(image.numpy(), weight=weight, channel_axis=0))


def ueraser(image: Tensor, generator: torch.Generator) -> Tensor:
    """UEraser without error maximisation, "Lite" (Qin et al., 2023): plasma clouds, shuffled channels, TrivialAugment.

    **Choice**: a random crop before, as is usual in training, but no flip, after which "left" would be a wrong answer.
    """
    from kornia import augmentation as kornia

    height, width = image.shape[-2:]
    aspect = width / height
    crop = v2.RandomResizedCrop((height, width), scale=(0.7, 1.0), ratio=(aspect * 3 / 4, aspect * 4 / 3))
    colours = torch.nn.Sequential(
        kornia.RandomPlasmaBrightness(roughness=(0.1, 0.7), intensity=(0.0, 1.0), p=1.0),
        kornia.RandomPlasmaContrast(roughness=(0.1, 0.7), p=1.0),
        kornia.RandomChannelShuffle(p=0.5),
    )
    with _seeded(generator):
        framed = tv.pad(crop(image), [1], padding_mode="edge")  # kornia 0.8 has no plasma for sides below 3 pixels
        coloured = colours(framed[None])[0, :, 1:-1, 1:-1].clamp(0, 1)
        return v2.TrivialAugmentWide()(coloured)


def randaugment(image: Tensor, generator: torch.Generator) -> Tensor:
    """RandAugment (Cubuk et al., 2020) as torchvision has it: two operations of magnitude 9 of 30."""
    with _seeded(generator):
        return v2.RandAugment()(image)


@torch.no_grad()
def _valid(
    transform: Callable[..., Tensor], strength: tuple[float, ...], image: Tensor, generator: torch.Generator
) -> Tensor:
    """An attack as it is called; resampling overshoots black and white."""
    return transform(image, generator, *strength).clamp(0, 1)


def _on(transform: Callable[..., Tensor], *strength: float) -> Callable[[Tensor, torch.Generator], Tensor]:
    """A transform as an attack calls it."""
    return functools.partial(_valid, transform, strength)


IMAGE_ATTACKS: dict[str, Factory] = {
    "rcp": plain("rcp", image=_on(resize_crop_pad)),
    "jpeg": strong("jpeg", lambda strength: {"image": _on(jpeg, strength)}, int, (1, 95), "jpeg-75"),
    "webp": strong("webp", lambda strength: {"image": _on(webp, strength)}, int, (1, 100), "webp-75"),
    "blur": strong("blur", lambda strength: {"image": _on(blur, strength)}, float, (0.1, 20), "blur-1"),
    "median": strong("median", lambda strength: {"image": _on(median, strength)}, int, (3, 15), "median-3", odd=True),
    "bilateral": plain("bilateral", image=_on(bilateral)),
    "cleaner": plain("cleaner", image=_on(cleaner)),
    "gray": plain("gray", image=_on(gray)),
    "bits": strong("bits", lambda strength: {"image": _on(reduce_bits, strength)}, int, (1, 7), "bits-4"),
    "resize": strong("resize", lambda strength: {"image": _on(resize, strength)}, float, (1, 16), "resize-2"),
    "denoise": strong("denoise", lambda strength: {"image": _on(denoise, strength)}, float, (1, 100), "denoise-10"),
    "tv": strong("tv", lambda strength: {"image": _on(total_variation, strength)}, float, (0.01, 2), "tv-0.1"),
    "ueraser": plain("ueraser", image=_on(ueraser), each_epoch=True),
    "randaugment": plain("randaugment", image=_on(randaugment), each_epoch=True),
    "vae": vae_attack,
    "diffusion": diffusion_attack,
}
"""The attacks on images by family, the part of a name before its first dash or colon."""


def _bilateral(images: Tensor, sigma_color: float) -> Tensor:
    """A bilateral filter of 5 × 5 pixels.

    Args:
        images: `(B, 3, H, W)`.
        sigma_color: how far apart colours may be, summed over channels, to be averaged.
    """
    from kornia.filters import bilateral_blur

    return bilateral_blur(images, 5, sigma_color, (8.0, 8.0), border_type="replicate")


def _saved(image: Tensor, kind: str, quality: int) -> Tensor:
    file = io.BytesIO()
    _to_pil(image).save(file, format=kind, quality=quality)
    with Image.open(file) as saved:
        return _from_pil(saved.convert("RGB"))


def _to_pil(image: Tensor) -> Image.Image:
    """To 8 bits by rounding, where torchvision would cut."""
    return tv.to_pil_image((image * 255).round().to(torch.uint8))


def _from_pil(image: Image.Image) -> Tensor:
    return tv.pil_to_tensor(image) / 255


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _share(side: int, least: float, generator: torch.Generator) -> int:
    """A random part of a side, in pixels, at least 1."""
    return max(1, round(side * _uniform(least, 1.0, generator)))


def _offset(room: int, generator: torch.Generator) -> int:
    """A random whole number from 0 to `room`."""
    return int(torch.randint(room + 1, (), generator=generator))


@contextmanager
def _seeded(generator: torch.Generator) -> Iterator[None]:
    """Makes torch's global generator, from which some libraries draw, follow another one, and puts it back."""
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed GPUs
        yield
