"""How far a released image is from its original: levels, PSNR, SSIM, LPIPS and bytes, beside noise of the same size."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
from torchvision.models import AlexNet_Weights, VGG16_Weights

from mmguard.auditing.arms import shuffled_noise
from mmguard.config import Lpips
from mmguard.data.images import load_image
from mmguard.release.layout import change

_Network = Literal["alex", "vgg"]
_WEIGHTS: dict[_Network, Any] = {"alex": AlexNet_Weights.DEFAULT, "vgg": VGG16_Weights.DEFAULT}
_SMALLEST = {"alex": 31, "vgg": 16}
"""Pixels a side below which a network's last layer has no output."""
_SMALLEST_SSIM = 6
"""The window of 11 pixels reaches 5 beyond the border, into the mirrored image."""


@dataclass(frozen=True)
class Likeness:
    """How like its original a changed image is."""

    psnr: float | None
    """In dB, over all pixels and channels of 255 levels; None where nothing differs (infinite)."""
    ssim: float | None
    """Mean structural similarity, 1 for the same image (Gaussian window of 11 pixels, σ 1.5, per channel), exact to
    0.0005 where the image is flat; None for an image below 6 pixels a side."""
    lpips: float | None
    """Distance of deep features, 0 for the same image; None where it was not computed."""


@dataclass(frozen=True)
class ImageChange:
    """What a release did to one image."""

    file: str
    """The released file, relative to the release."""
    largest_change: int
    """`‖δ‖∞` in levels of 255: this image's ε."""
    mean_change: float
    """Mean `|δ|` in levels of 255."""
    likeness: Likeness
    control: Likeness
    """Of the original with the same difference, its pixels in random order."""
    original_bytes: int
    """Size of the owner's file."""
    released_bytes: int


def load_lpips(choice: Lpips, device: torch.device) -> tuple[Perceptual | None, str]:
    """The network of LPIPS, or None with the reason why there is none.

    Args:
        choice: a network that is named is fetched if need be; `auto` fetches nothing.
        device: where it runs.
    """
    if choice == "off":
        return None, "LPIPS: turned off"
    known = Path(torch.hub.get_dir()) / "checkpoints"
    names = [name for name in _WEIGHTS if (known / _WEIGHTS[name].url.rpartition("/")[2]).is_file()]
    if choice != "auto":
        names = [choice]
    if not names:
        return None, f"LPIPS: the weights of AlexNet are not in {known}; --lpips alex fetches them (233 MB)"
    try:
        return Perceptual(names[0], device), ""
    except (OSError, RuntimeError) as error:  # no network, no such file there, or a file that is damaged
        return (
            None,
            f"LPIPS: the weights of {names[0]} cannot be had ({error}); put {_WEIGHTS[names[0]].url} in {known}",
        )


class Perceptual:
    """LPIPS, the distance between deep features of two images (Zhang et al., 2018).

    Attributes:
        name: the network, `alex` or `vgg`.
        device: where it runs.
    """

    def __init__(self, name: _Network, device: torch.device) -> None:
        self.name, self.device = name, device
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            metric = LearnedPerceptualImagePatchSimilarity(net_type=name)
        self._net: Callable[..., Tensor] = metric.net.to(device)

    def __call__(self, images: Tensor, originals: Tensor) -> list[float | None]:
        """The distance of each pair; None for images that are too small.

        Shape:
            both float `(N, 3, H, W)`, 0…255.
        """
        if min(images.shape[-2:]) < _SMALLEST[self.name]:
            return [None] * len(images)
        return self._net(images / 255, originals / 255, normalize=True).flatten().tolist()


@torch.inference_mode()
def likeness(
    original: Tensor, changed: Tensor, perceptual: Perceptual | None = None, device: torch.device | str = "cpu"
) -> list[Likeness]:
    """How like the original each changed version is.

    Args:
        original: uint8 `(3, H, W)`.
        changed: uint8 `(N, 3, H, W)`.
        perceptual: for LPIPS.
        device: where to compute.
    """
    # Channels last, since the window of SSIM is a depthwise convolution: twice as fast on a CPU.
    images = changed.to(device, torch.float32).contiguous(memory_format=torch.channels_last)
    originals = original.to(device, torch.float32).expand(images.shape).contiguous(memory_format=torch.channels_last)
    psnr = peak_signal_noise_ratio(images, originals, data_range=255.0, reduction="none", dim=(1, 2, 3)).tolist()
    ssim: list[float | None] = [None] * len(images)
    if min(images.shape[-2:]) >= _SMALLEST_SSIM:
        similarity = structural_similarity_index_measure(images, originals, data_range=255.0, reduction="none")
        assert isinstance(similarity, Tensor)
        ssim = similarity.tolist()
    lpips = perceptual(images, originals) if perceptual else [None] * len(images)
    return [
        Likeness(None if p == float("inf") else p, s, distance)
        for p, s, distance in zip(psnr, ssim, lpips, strict=True)
    ]


def load_pair(original: Path, released: Path) -> tuple[Tensor, Tensor]:
    """Both images, uint8 `(3, H, W)`.

    Raises:
        SampleError: one of them cannot be read.
    """
    return load_image(original), load_image(released)


def image_change(
    name: str,
    files: tuple[Path, Path],
    pixels: tuple[Tensor, Tensor],
    seed: int,
    perceptual: Perceptual | None = None,
    device: torch.device | str = "cpu",
) -> ImageChange:
    """Measures one image of a release.

    Args:
        name: what to call it.
        files: original and released.
        pixels: of the two, as `load_pair` gives them; of one size.
        seed: of the control.
        perceptual: for LPIPS.
        device: where to compute.
    """
    before, after = pixels
    largest, mean = change(before, after)
    last = [image.permute(1, 2, 0).numpy() for image in pixels]
    noisy = torch.from_numpy(shuffled_noise(last[0], last[1], seed)).permute(2, 0, 1)
    released, control = likeness(before, torch.stack([after, noisy]), perceptual, device)
    sizes = [path.stat().st_size for path in files]
    return ImageChange(name, largest, mean, released, control, sizes[0], sizes[1])
