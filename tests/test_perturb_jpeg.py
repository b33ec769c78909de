"""JPEG in the loop: the model sees what a reader of the file sees, and the file keeps the budget."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kornia.color import rgb_to_ycbcr, ycbcr_to_rgb
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from mmguard.data.carrier import Jpeg, carrier_for, encode, jpeg_roundtrip, turned, unturned
from mmguard.data.images import Picture, load_image
from mmguard.data.metadata import Metadata, exif_of
from mmguard.perturb import image as pgd
from mmguard.perturb.budget import ImageBudget, apply, is_gray, to_unit
from mmguard.perturb.jpeg import _fit, fit, seen

EPS = 8


def photograph(height: int = 48, width: int = 64, seed: int = 0, grain: float = 12) -> Tensor:
    """Soft colours with grain, uint8."""
    generator = torch.Generator().manual_seed(seed)
    soft = interpolate(torch.rand(1, 3, 4, 5, generator=generator), (height, width), mode="bicubic")[0] * 255
    return (soft + grain * torch.randn(3, height, width, generator=generator)).clamp(0, 255).round().byte()


def encoder(tmp_path: Path, quality: int, subsampling: int, **options: object) -> Jpeg:
    """The settings of a JPEG file, read from it."""
    path = tmp_path / f"{quality}-{subsampling}.jpg"
    Image.new("RGB", (16, 16)).save(path, quality=quality, subsampling=subsampling, **options)
    jpeg = carrier_for(path, "keep").jpeg
    assert jpeg is not None
    return jpeg


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_model_sees_what_a_reader_of_the_file_decodes(tmp_path: Path, orientation: int) -> None:
    jpeg, original = replace(encoder(tmp_path, 80, 2), orientation=orientation), photograph(40, 56)
    protected = apply(original, ImageBudget(EPS).random(original, torch.Generator().manual_seed(1)))
    carrier = replace(carrier_for(tmp_path / "80-2.jpg", "keep"), jpeg=jpeg)
    file = tmp_path / "file.jpg"
    file.write_bytes(encode(carrier, Picture(original), protected, Metadata(exif=exif_of(orientation))))
    view = seen(original, to_unit(protected), jpeg, eps=127)
    assert torch.equal((view * 255).round().byte(), load_image(file))


def test_what_the_model_sees_is_cut_to_the_budget(tmp_path: Path) -> None:
    jpeg, original = encoder(tmp_path, 30, 2), photograph()
    protected = apply(original, ImageBudget(EPS).random_signs(original, torch.Generator().manual_seed(1)))
    free, cut = (seen(original, to_unit(protected), jpeg, eps) - to_unit(original) for eps in (127, EPS))
    assert free.abs().max() > (EPS + 1) / 255
    assert torch.allclose(cut, free.clamp(-EPS / 255, EPS / 255), atol=1e-6)


@pytest.mark.parametrize(("subsampling", "cell"), [(0, (1, 1)), (1, (1, 2)), (2, (2, 2))])
def test_gradients_pass_through_what_the_encoder_keeps(tmp_path: Path, subsampling: int, cell: tuple[int, int]) -> None:
    jpeg, original = encoder(tmp_path, 75, subsampling), photograph(45, 61)
    image = to_unit(original).requires_grad_(True)
    weights = torch.randn(original.shape, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((seen(original, image, jpeg, eps=127) * weights).sum(), image)
    if subsampling == 0:
        assert torch.allclose(gradient, weights)
        return
    # Of the difference of red and blue only the mean of a cell is kept.
    difference = (gradient[0] - 0.299 / 0.114 * gradient[2])[:44, :60]
    cells = difference.unfold(0, cell[0], cell[0]).unfold(1, cell[1], cell[1])
    assert cells.flatten(2).std(2).max() < 0.05
    assert difference.std() > 0.5


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(("subsampling", "cell"), [(1, (1, 2)), (2, (2, 2))])
def test_gradients_are_those_of_subsampled_colour(
    tmp_path: Path, subsampling: int, cell: tuple[int, int], orientation: int
) -> None:
    jpeg, original = replace(encoder(tmp_path, 75, subsampling), orientation=orientation), photograph(45, 61)
    original = original // 2 + 64  # far from black and white, where kornia cuts
    image = to_unit(original).requires_grad_(True)
    weights = torch.randn(original.shape, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((seen(original, image, jpeg, eps=127) * weights).sum(), image)
    ycc = rgb_to_ycbcr(unturned(image, orientation))
    colour = interpolate(avg_pool2d(ycc[None, 1:], cell, ceil_mode=True), scale_factor=cell)[0]
    colour = colour[:, : ycc.shape[1], : ycc.shape[2]]
    smooth = turned(ycbcr_to_rgb(torch.cat([ycc[:1], colour])), orientation)
    (expected,) = torch.autograd.grad((smooth * weights).sum(), image)
    assert torch.allclose(gradient, expected, atol=5e-3)  # kornia rounds its coefficients to three digits


def test_there_is_no_gradient_beyond_the_budget(tmp_path: Path) -> None:
    jpeg, original = encoder(tmp_path, 30, 0), photograph()
    image = to_unit(apply(original, ImageBudget(EPS).random_signs(original, torch.Generator().manual_seed(1))))
    image.requires_grad_(True)
    (gradient,) = torch.autograd.grad(seen(original, image, jpeg, EPS).sum(), image)
    error = (jpeg_roundtrip((image.detach() * 255).round().byte(), jpeg).int() - original.int()).abs()
    assert (error > EPS).any()
    assert torch.equal(gradient == 0, error > EPS)


def test_descent_through_the_encoder_does_more_behind_it(tmp_path: Path) -> None:
    """Where a loss asks for colours so fine that the encoder loses them, they do not drown what it keeps."""
    jpeg = encoder(tmp_path, 90, 2)
    original, generator = jpeg_roundtrip(photograph(96, 128), jpeg), torch.Generator().manual_seed(2)
    soft = interpolate(torch.randn(1, 1, 24, 32, generator=generator), original.shape[1:], mode="bilinear")[0]
    height, width = torch.meshgrid(torch.arange(96), torch.arange(128), indexing="ij")
    colours = torch.tensor([0.0, -1.0, 1.0])[:, None, None]  # whose slope is zero along gray
    wanted = soft + 8 * colours * (-1.0) ** (height + width)

    def backward(images: list[Tensor]) -> None:
        (images[0] * wanted).sum().backward()

    def reached(views: list[pgd.Seen] | None) -> float:
        delta = ImageBudget(EPS).random(original, torch.Generator().manual_seed(3))
        for _ in range(20):
            (delta,) = pgd.descend(backward, [original], [delta], [ImageBudget(EPS)], views)
        fitting = fit(original, apply(original, delta), jpeg, EPS)
        assert fitting is not None
        change = jpeg_roundtrip(*fitting).float() - original.float()
        return float((change * soft).sum())

    through, past = reached([partial(seen, jpeg=jpeg, eps=EPS)]), reached(None)
    assert through < 1.2 * past < 0


@pytest.mark.parametrize("quality", [30, 75, 95])
@pytest.mark.parametrize("subsampling", [0, 2])
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**31), eps=st.sampled_from([2, 8, 16]), orientation=st.integers(1, 8))
def test_a_fitted_file_keeps_the_budget(
    tmp_path_factory: pytest.TempPathFactory, quality: int, subsampling: int, seed: int, eps: int, orientation: int
) -> None:
    jpeg = replace(encoder(tmp_path_factory.mktemp("jpeg"), quality, subsampling), orientation=orientation)
    original = jpeg_roundtrip(photograph(37, 43, seed), jpeg)
    protected = apply(original, ImageBudget(eps).random_signs(original, torch.Generator().manual_seed(seed)))
    fitting = fit(original, protected, jpeg, eps)
    if fitting is None:
        assert eps == 2  # where the rounding of colours alone may be too much
        return
    decoded = jpeg_roundtrip(*fitting)
    assert (decoded.int() - original.int()).abs().max() <= eps
    assert fitting[1].orientation == orientation


@pytest.mark.parametrize(("quality", "subsampling"), [(60, 2), (85, 1), (92, 2), (95, 0)])
@pytest.mark.parametrize("size", [(50, 71), (64, 96), (33, 97)])
def test_strips_are_corrected_as_the_whole_picture_is(
    tmp_path: Path, quality: int, subsampling: int, size: tuple[int, int]
) -> None:
    jpeg = encoder(tmp_path, quality, subsampling)
    original = jpeg_roundtrip(photograph(*size), jpeg)
    protected = apply(original, ImageBudget(EPS).random_signs(original, torch.Generator().manual_seed(1)))
    base, changed = (image.permute(1, 2, 0).to(torch.int16).contiguous() for image in (original, protected))
    whole, strips = (_fit(base, 0.8 * (changed - base).float(), jpeg, EPS, rows) for rows in (112, 16))
    assert whole is not None
    assert strips is not None
    assert all(map(torch.equal, whole, strips))
    decoded = jpeg_roundtrip(strips[0].permute(2, 0, 1), jpeg).permute(1, 2, 0)
    assert torch.equal(decoded.to(torch.int16) - base, strips[1])


def test_a_picture_larger_than_the_sample_keeps_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmguard.perturb.jpeg._SAMPLE", 32)
    jpeg = encoder(tmp_path, 92, 2)
    original = jpeg_roundtrip(photograph(120, 91), jpeg)
    protected = apply(original, ImageBudget(EPS).random_signs(original, torch.Generator().manual_seed(1)))
    fitting = fit(original, protected, jpeg, EPS)
    assert fitting is not None
    assert fitting[1] == jpeg
    assert (jpeg_roundtrip(*fitting).int() - original.int()).abs().max() <= EPS


def test_a_progressive_file_is_decoded_as_if_it_were_not(tmp_path: Path) -> None:
    jpeg = encoder(tmp_path, 85, 2, progressive=True)
    assert jpeg.progressive
    carrier, image = replace(carrier_for(tmp_path / "85-2.jpg", "keep"), jpeg=jpeg), photograph(45, 61)
    (tmp_path / "file.jpg").write_bytes(encode(carrier, Picture(image), image, Metadata()))
    assert torch.equal(load_image(tmp_path / "file.jpg"), jpeg_roundtrip(image, jpeg))


def test_settings_stay_where_they_suffice_and_become_finer_where_they_do_not(tmp_path: Path) -> None:
    jpeg = encoder(tmp_path, 90, 0)
    own = jpeg_roundtrip(photograph(), jpeg)
    protected = apply(own, ImageBudget(EPS).random(own, torch.Generator().manual_seed(1)))
    fitting = fit(own, protected, jpeg, EPS)
    assert fitting is not None
    assert fitting[1] == jpeg
    noise = torch.randint(0, 256, (3, 48, 64), generator=torch.Generator().manual_seed(1)).byte()
    fitting = fit(noise, noise, replace(jpeg, subsampling=2), EPS)
    assert fitting is not None
    assert fitting[1].subsampling == 0
    assert sum(fitting[1].tables[0]) < sum(jpeg.tables[0])


def test_more_is_kept_where_the_encoder_is_left_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jpeg = encoder(tmp_path, 95, 0)
    original = jpeg_roundtrip(photograph(96, 128), jpeg)
    coarse = torch.randn(1, 3, 24, 32, generator=torch.Generator().manual_seed(1))
    wanted = interpolate(coarse, scale_factor=4, mode="bilinear")[0].sign() * EPS
    protected = apply(original, ImageBudget(EPS).project(original, wanted.to(torch.int16)))

    def kept() -> float:
        fitting = fit(original, protected, jpeg, EPS)
        assert fitting is not None
        return float(((jpeg_roundtrip(*fitting).float() - original.float()) * wanted.sign()).mean())

    with_room = kept()
    monkeypatch.setattr("mmguard.perturb.jpeg._ROOMS", (1.0,))
    assert with_room > 1.1 * kept() > 0


def test_colours_that_no_file_holds_exactly_are_given_up(tmp_path: Path) -> None:
    noise = torch.randint(0, 256, (3, 32, 32), generator=torch.Generator().manual_seed(1)).byte()
    assert fit(noise, noise, encoder(tmp_path, 75, 2), 0) is None


def test_gray_stays_gray(tmp_path: Path) -> None:
    jpeg = encoder(tmp_path, 75, 2)
    gray = photograph()[:1].expand(3, -1, -1).contiguous()
    protected = apply(gray, ImageBudget(EPS).random(gray, torch.Generator().manual_seed(1)))
    fitting = fit(gray, protected, jpeg, EPS)
    assert fitting is not None
    assert is_gray(jpeg_roundtrip(*fitting))
