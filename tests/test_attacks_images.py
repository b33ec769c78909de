"""Attacks on images: each does what it claims, whatever the image, with no randomness but the generator's."""

from __future__ import annotations

import ast
import io
import pickle
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from mmguard.auditing.attacks import images, purify
from mmguard.auditing.attacks.images import IMAGE_ATTACKS
from mmguard.errors import ConfigError

NAMES = [
    "rcp", "jpeg-75", "webp-60", "blur-1.5", "median-3", "bilateral", "cleaner", "gray", "bits-3", "resize-2.5",
    "denoise-10", "tv-0.1", "ueraser", "randaugment",
]  # fmt: skip
RANDOM = ["rcp", "denoise-10", "ueraser", "randaugment"]
SMOOTHING = ["blur-1.5", "median-5", "bilateral", "cleaner", "resize-2", "denoise-10", "tv-0.1", "jpeg-30", "webp-30"]
LOCAL = [name for name in NAMES if name not in {"rcp", "ueraser", "randaugment"}]
"""Attacks that leave everything in its place, in its colours."""


def attacked(name: str, image: Tensor, seed: int = 0) -> Tensor:
    family, dash, strength = name.partition("-")
    attack = IMAGE_ATTACKS[family](strength if dash else None)
    assert attack.name == name
    assert attack.image is not None
    return attack.image(image, torch.Generator().manual_seed(seed))


def photo(height: int = 64, width: int = 64) -> Tensor:
    """A soft gradient with a coloured square in it, on the 8-bit grid."""
    rows, columns = torch.linspace(0.2, 0.7, height)[:, None], torch.linspace(0, 0.2, width)
    image = (rows + columns).expand(3, height, width).clone()
    image[:, height // 4 : height // 2, width // 4 : width // 2] = torch.tensor([0.9, 0.15, 0.3])[:, None, None]
    image = (image * 255).round() / 255
    return image.permute(1, 2, 0).contiguous().permute(2, 0, 1)  # laid out as decoders do


def signs(image: Tensor, levels: int = 8, seed: int = 0) -> Tensor:
    """Every value up or down by `levels`, at random, as a perturbation with all of its budget spent."""
    up = torch.rand(image.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    return torch.where(up, levels, -levels) / 255


def noise(image: Tensor, seed: int) -> Tensor:
    return torch.rand(image.shape, generator=torch.Generator().manual_seed(seed))


def remaining(name: str, image: Tensor) -> float:
    """How much of a perturbation's norm an attack leaves, beside the image under the same attack."""
    delta = signs(image)
    return float((attacked(name, image + delta) - attacked(name, image)).norm() / delta.norm())


def total_variation(image: Tensor) -> float:
    return float(image.diff(dim=1).abs().sum() + image.diff(dim=2).abs().sum())


class TestEvery:
    def test_attack_is_here(self) -> None:
        assert {name.partition("-")[0] for name in NAMES} | {"vae", "diffusion"} == set(IMAGE_ATTACKS)

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("size", [(1, 1), (1, 50), (7, 300), (33, 2)])
    def test_size_gives_an_image(self, name: str, size: tuple[int, int]) -> None:
        for seed in range(3):
            image = noise(torch.empty(3, *size), seed)
            before = image.clone()
            changed = attacked(name, image, seed)
            assert changed.shape == image.shape
            assert changed.dtype == torch.float32
            assert bool(changed.isfinite().all())
            assert 0 <= float(changed.min()) <= float(changed.max()) <= 1
            assert torch.equal(image, before), "the image handed over was changed"

    @given(st.sampled_from(NAMES), st.integers(1, 24), st.integers(1, 24), st.integers(0, 2**32), st.booleans())
    def test_image_gives_an_image(self, name: str, height: int, width: int, seed: int, extreme: bool) -> None:
        image = noise(torch.empty(3, height, width), seed)
        changed = attacked(name, image.round() if extreme else image, seed)
        assert changed.shape == image.shape
        assert bool(changed.isfinite().all())
        assert 0 <= float(changed.min()) <= float(changed.max()) <= 1

    @pytest.mark.parametrize("name", NAMES)
    def test_randomness_is_the_generators(self, name: str) -> None:
        image = photo()
        torch.manual_seed(1)
        first = attacked(name, image, seed=5)
        state = torch.get_rng_state()
        torch.manual_seed(2)
        assert torch.equal(attacked(name, image, seed=5), first)
        torch.manual_seed(1)
        assert torch.equal(torch.get_rng_state(), state), "the global generator moved"

    @pytest.mark.parametrize("name", NAMES)
    def test_draws_differ_where_there_is_chance(self, name: str) -> None:
        draws = [attacked(name, photo(), seed) for seed in range(4)]
        same = all(torch.equal(draws[0], other) for other in draws[1:])
        assert same == (name not in RANDOM)

    @pytest.mark.parametrize("name", NAMES)
    def test_each_draw_of_one_generator_is_new(self, name: str) -> None:
        attack = IMAGE_ATTACKS[name.partition("-")[0]](name.partition("-")[2] or None)
        assert attack.image is not None
        assert attack.text is None
        assert attack.each_epoch == (name in {"ueraser", "randaugment"})
        generator = torch.Generator().manual_seed(0)
        draws = [attack.image(photo(), generator) for _ in range(4)]
        assert all(torch.equal(draws[0], other) for other in draws[1:]) == (name not in RANDOM)

    @pytest.mark.parametrize("name", NAMES)
    def test_attack_travels_to_another_process(self, name: str) -> None:
        attack = IMAGE_ATTACKS[name.partition("-")[0]](name.partition("-")[2] or None)
        copy = pickle.loads(pickle.dumps(attack))
        assert copy.image is not None
        assert torch.equal(copy.image(photo(), torch.Generator().manual_seed(3)), attacked(name, photo(), 3))

    @pytest.mark.parametrize("name", LOCAL)
    def test_picture_survives(self, name: str) -> None:
        image = photo()
        if name == "gray":
            image = image.mean(0, keepdim=True).expand(3, -1, -1)
        assert float((attacked(name, image) - image).abs().mean()) < 0.05

    @pytest.mark.parametrize("name", SMOOTHING)
    def test_smoothing_leaves_less_of_a_perturbation(self, name: str) -> None:
        assert 0 < remaining(name, photo()) < 0.75

    @pytest.mark.parametrize(("weak", "strong"), [
        ("jpeg-95", "jpeg-10"), ("webp-95", "webp-10"), ("blur-0.5", "blur-2"), ("median-3", "median-7"),
        ("resize-1.5", "resize-4"), ("tv-0.01", "tv-0.1"),
    ])  # fmt: skip
    def test_strength_is_strength(self, weak: str, strong: str) -> None:
        assert remaining(strong, photo()) < remaining(weak, photo()) <= 1.05


class TestRCP:
    def test_pads_with_black_at_random(self) -> None:
        borders = set()
        for seed in range(20):
            black = attacked("rcp", torch.ones(3, 40, 60), seed).sum(0) == 0
            inside = ~black
            rows, columns = inside.any(1).nonzero().flatten(), inside.any(0).nonzero().flatten()
            assert bool(inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()), "not one rectangle"
            assert 0.7 * 40 <= len(rows) <= 40
            assert 0.7 * 60 <= len(columns) <= 60
            borders.add((int(rows[0]), int(columns[0]), len(rows), len(columns)))
        assert len(borders) > 15

    def test_crops_at_random(self) -> None:
        ramp = torch.linspace(0.1, 1, 100).expand(3, 30, 100)
        most = {round(float(attacked("rcp", ramp, seed).max()), 2) for seed in range(20)}
        assert len(most) > 4
        assert min(most) >= 0.88  # a tenth of the width at most is gone


class TestCompression:
    @pytest.mark.parametrize(("name", "kind", "quality"), [("jpeg-40", "JPEG", 40), ("webp-40", "WEBP", 40)])
    def test_equals_pillows_files(self, name: str, kind: str, quality: int) -> None:
        image = photo() + signs(photo())
        file = io.BytesIO()
        to_pil_image((image * 255).round().to(torch.uint8)).save(file, kind, quality=quality)
        assert torch.equal(attacked(name, image), pil_to_tensor(Image.open(file)) / 255)

    @pytest.mark.parametrize("kind", ["jpeg", "webp"])
    def test_lower_quality_deviates_more(self, kind: str) -> None:
        image = photo() + signs(photo())
        errors = [float((attacked(f"{kind}-{q}", image) - image).norm()) for q in (95, 75, 50, 10)]
        assert errors == sorted(errors)
        assert errors[-1] > 1.15 * errors[0] > 0


class TestFilters:
    @pytest.mark.parametrize("name", ["blur-2", "median-3", "bilateral", "cleaner", "resize-2", "tv-0.1"])
    @pytest.mark.parametrize("size", [(20, 30), (1, 1), (3, 40)])
    def test_constant_image_stays(self, name: str, size: tuple[int, int]) -> None:
        image = torch.tensor([51, 102, 204])[:, None, None].expand(3, *size) / 255
        torch.testing.assert_close(attacked(name, image), image, atol=1e-3, rtol=0)

    @pytest.mark.parametrize("name", ["blur-1", "resize-2", "resize-4"])
    def test_finest_pattern_is_gone(self, name: str) -> None:
        checks = (torch.arange(32)[:, None] + torch.arange(32)).remainder(2).expand(3, 32, 32).float()
        inside = attacked(name, checks)[:, 6:-6, 6:-6]
        assert float(inside.std()) < 0.05
        assert abs(float(inside.mean()) - 0.5) < 0.02

    def test_blur_has_the_standard_deviation_it_names(self) -> None:
        dot = torch.zeros(3, 61, 61)
        dot[:, 30, 30] = 1
        row = attacked("blur-3", dot)[0].sum(0)
        place = torch.arange(61) - 30.0
        assert abs(float(row.sum()) - 1) < 1e-4
        assert abs(float((row * place**2).sum().sqrt()) - 3) < 0.1

    def test_median_removes_salt_and_pepper(self) -> None:
        image = photo()
        hit = noise(image[:1], 3).expand_as(image)
        spoiled = torch.where(hit < 0.02, 0.0, torch.where(hit > 0.98, 1.0, image))
        before, after = (spoiled - image).abs(), (attacked("median-3", spoiled) - image).abs()
        assert float(before.max()) > 0.5
        assert float(after.mean()) < 0.1 * float(before.mean())

    def test_bilateral_keeps_the_edge_that_blur_loses(self) -> None:
        step = torch.cat([torch.full((3, 20, 20), 0.2), torch.full((3, 20, 20), 0.8)], 2)
        for name, keeps in (("bilateral", True), ("cleaner", True), ("blur-2", False)):
            jump = attacked(name, step)[:, :, 20] - attacked(name, step)[:, :, 19]
            assert (float(jump.min()) > 0.55) == keeps, name

    def test_cleaner_takes_energy_from_a_perturbation_but_not_from_edges(self) -> None:
        image = photo(120, 120)
        image[:, :, 90:] = 0.05
        delta = signs(image)
        cleaned = attacked("cleaner", image + delta)
        assert float((cleaned - image).square().sum() / delta.square().sum()) < 0.15
        edge = (cleaned[:, :, 89] - cleaned[:, :, 90]).mean() / (image[:, :, 89] - image[:, :, 90]).mean()
        assert float(edge) > 0.9

    def test_tv_lowers_total_variation(self) -> None:
        image = photo() + signs(photo())
        variations = [total_variation(image), *(total_variation(attacked(f"tv-{w}", image)) for w in (0.03, 0.1, 0.3))]
        assert variations == sorted(variations, reverse=True)
        assert variations[2] < 0.3 * variations[0]

    def test_denoise_draws_noise_of_its_strength(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("skimage.restoration.denoise_nl_means", lambda noisy, **_: noisy)
        image = torch.full((3, 64, 64), 0.5)
        assert float((attacked("denoise-20", image) - image).std()) == pytest.approx(20 / 255, rel=0.03)

    def test_denoise_lowers_the_error_of_a_noisy_image(self) -> None:
        image = photo()
        noisy = image + 10 / 255 * torch.randn(image.shape, generator=torch.Generator().manual_seed(1))
        assert float((attacked("denoise-10", noisy) - image).norm()) < 0.6 * float((noisy - image).norm())


class TestColours:
    def test_gray_has_equal_channels_and_keeps_luma(self) -> None:
        changed = attacked("gray", photo())
        assert torch.equal(changed[0], changed[1])
        assert torch.equal(changed[0], changed[2])
        luma = (photo() * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0)
        torch.testing.assert_close(changed[0], luma, atol=2e-3, rtol=0)

    def test_gray_removes_a_perturbation_of_chroma(self) -> None:
        delta = torch.tensor([0.587, -0.299, 0.0])[:, None, None] * signs(photo())[:1] * 1.5
        left = attacked("gray", photo() + delta) - attacked("gray", photo())
        assert float(left.norm()) < 0.01 * float(delta.norm())

    @pytest.mark.parametrize("bits", range(1, 8))
    def test_bits_leave_few_levels(self, bits: int) -> None:
        image = torch.linspace(0, 1, 999).expand(3, 1, 999)
        changed = attacked(f"bits-{bits}", image)
        for channel in changed:
            assert len(channel.unique()) == 2**bits
        assert float(changed.min()) == 0
        assert float(changed.max()) == 1
        assert float((changed - image).abs().max()) <= 0.5 / (2**bits - 1) + 1e-6


class TestAugmentations:
    def test_ueraser_shuffles_channels_and_changes_brightness_by_place(self) -> None:
        red = torch.tensor([0.5, 0.3, 0.1])[:, None, None].expand(3, 32, 32)
        orders, spreads = set(), []
        for seed in range(30):
            changed = attacked("ueraser", red, seed)
            orders.add(tuple(changed.mean((1, 2)).argsort().tolist()))
            spreads.append(float(changed.std((1, 2)).max()))
        assert len(orders) >= 4
        assert sorted(spreads)[15] > 0.05, "a flat image stayed flat"

    def test_ueraser_crops(self) -> None:
        ramp = torch.linspace(0.3, 0.7, 64).expand(3, 64, 64)
        assert float((attacked("ueraser", ramp, 1) - ramp).abs().mean()) > 0.02

    def test_randaugment_is_torchvisions(self) -> None:
        from torchvision.transforms.v2 import RandAugment

        generator = torch.Generator().manual_seed(9)
        seed = int(torch.randint(2**62, (), generator=generator))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            expected = RandAugment()(photo()).clamp(0, 1)
        assert torch.equal(attacked("randaugment", photo(), 9), expected)


class TestNames:
    @pytest.mark.parametrize(("family", "strength", "allowed"), [
        ("jpeg", None, "1 to 95"), ("jpeg", "0", "1 to 95"), ("jpeg", "96", "1 to 95"),
        ("jpeg", "50.5", "whole number"),
        ("jpeg", "high", "1 to 95"), ("jpeg", "", "1 to 95"), ("webp", "101", "1 to 100"), ("blur", "0", "0.1 to 20"),
        ("blur", "nan", "0.1 to 20"), ("blur", "-1", "0.1 to 20"), ("median", "4", "odd whole number from 3 to 15"),
        ("median", "17", "3 to 15"), ("bits", "8", "1 to 7"), ("bits", "0", "1 to 7"), ("resize", "0.5", "1 to 16"),
        ("resize", "inf", "1 to 16"), ("denoise", "0", "1 to 100"), ("tv", "5", "0.01 to 2"),
        ("gray", "1", "no strength"),
        ("rcp", "0.5", "no strength"), ("ueraser", "2", "no strength"), ("cleaner", "", "no strength"),
    ])  # fmt: skip
    def test_bad_strength_is_refused(self, family: str, strength: str | None, allowed: str) -> None:
        with pytest.raises(ConfigError, match=rf"^attack {family}.*{allowed}"):
            IMAGE_ATTACKS[family](strength)

    def test_message_proposes_a_strength_that_works(self) -> None:
        for family in {name.partition("-")[0] for name in NAMES if "-" in name}:
            with pytest.raises(ConfigError) as error:
                IMAGE_ATTACKS[family](None)
            proposed = str(error.value).rpartition(f"{family}-")[2]
            assert IMAGE_ATTACKS[family](proposed).name == f"{family}-{proposed}"

    def test_one_strength_has_one_name(self) -> None:
        assert IMAGE_ATTACKS["blur"]("1.50").name == IMAGE_ATTACKS["blur"]("1.5").name == "blur-1.5"
        assert IMAGE_ATTACKS["jpeg"]("075").name == "jpeg-75"


@pytest.mark.parametrize("module", [images, purify])
def test_heavy_libraries_are_imported_when_used(module: ModuleType) -> None:
    body = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8")).body
    names = [alias.name for node in body if isinstance(node, ast.Import) for alias in node.names]
    names += [str(node.module) for node in body if isinstance(node, ast.ImportFrom)]
    assert "torch" in names
    assert not {"kornia", "skimage", "diffusers"} & {name.partition(".")[0] for name in names}
