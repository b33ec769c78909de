"""Purification by generative models, with tiny random ones."""

from __future__ import annotations

import importlib.util
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from torch import Tensor

from mmguard.auditing.attacks import purify
from mmguard.auditing.attacks.images import IMAGE_ATTACKS
from mmguard.errors import ConfigError
from mmguard.runtime.devices import auto_means

STEPS = 20


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Halves the size once; its tiles are 32 pixels."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            sample_size=32,
        )
    folder = tmp_path_factory.mktemp("vae")
    model.save_pretrained(folder)
    model.save_pretrained(folder / "pipeline" / "vae")
    return folder


@pytest.fixture(scope="module")
def diffusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("diffusion")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_diffusion(folder)
    return folder


def save_diffusion(folder: Path, **config: object) -> None:
    """A random model for images of 16 pixels, with a schedule of few steps."""
    sizes = {"sample_size": 16, "block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1}
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    unet = UNet2DModel(**{**sizes, **blocks, "add_attention": False, **config})
    DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=STEPS, beta_end=0.3)).save_pretrained(folder)


def photo(height: int, width: int) -> Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(1))


def attacked(family: str, parameter: str, image: Tensor, seed: int = 0) -> Tensor:
    attack = IMAGE_ATTACKS[family](parameter)
    assert attack.image is not None
    return attack.image(image, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("family", ["vae", "diffusion"])
@pytest.mark.parametrize("size", [(1, 1), (16, 16), (7, 60), (45, 33)])
def test_purified_image_is_another_of_its_size(
    family: str, size: tuple[int, int], request: pytest.FixtureRequest
) -> None:
    source, image = request.getfixturevalue(family), photo(*size)
    before = image.clone()
    state = torch.get_rng_state()
    changed = attacked(family, str(source), image)
    assert changed.shape == image.shape
    assert changed.dtype == torch.float32
    assert changed.device.type == "cpu"
    assert not changed.requires_grad
    assert bool(changed.isfinite().all())
    assert 0 <= float(changed.min()) <= float(changed.max()) <= 1
    assert float((changed - image).abs().max()) > 0.05
    assert torch.equal(image, before)
    assert torch.equal(attacked(family, str(source), image), changed)
    assert torch.equal(torch.get_rng_state(), state), "the global generator moved"


class TestVAE:
    def test_equals_encoding_and_decoding(self, vae: Path) -> None:
        model, image = AutoencoderKL.from_pretrained(vae).eval(), photo(24, 30)
        with torch.no_grad():
            decoded = model.decode(model.encode(image[None] * 2 - 1).latent_dist.mode()).sample[0]
        expected = (decoded / 2 + 0.5).clamp(0, 1)
        torch.testing.assert_close(attacked("vae", str(vae), image), expected, atol=1e-5, rtol=1e-4)

    def test_draws_nothing(self, vae: Path) -> None:
        assert torch.equal(attacked("vae", str(vae), photo(9, 9), 1), attacked("vae", str(vae), photo(9, 9), 2))

    def test_is_found_in_a_pipeline(self, vae: Path) -> None:
        whole, part = attacked("vae", str(vae / "pipeline"), photo(8, 8)), attacked("vae", str(vae), photo(8, 8))
        assert torch.equal(whole, part)

    def test_has_a_usual_model(self) -> None:
        assert IMAGE_ATTACKS["vae"](None).name == f"vae:{purify.VAE}"


class TestDiffusion:
    def test_draws_differ(self, diffusion: Path) -> None:
        image = photo(16, 16)
        one, other = (attacked("diffusion", f"{diffusion}@0.2", image, seed) for seed in (1, 2))
        assert float((one - other).abs().max()) > 0.01

    def test_larger_share_changes_more(self, diffusion: Path) -> None:
        image = photo(16, 16)
        errors = [float((attacked("diffusion", f"{diffusion}@{t}", image) - image).norm()) for t in (0.05, 0.25, 1)]
        assert errors == sorted(errors)
        assert errors[-1] > 1.2 * errors[0]

    def test_exact_denoiser_gives_the_image_back(self) -> None:
        """With the true noise predicted at every step, the last step of DDPM ends on the clean image."""
        clean = photo(16, 16)[None] * 2 - 1
        scheduler = DDPMScheduler(num_train_timesteps=STEPS, beta_end=0.3, clip_sample=False)
        seen = []

        class Oracle:
            def __call__(self, sample: Tensor, t: int) -> Oracle:
                seen.append(t)
                alpha = scheduler.alphas_cumprod[t]
                self.sample = (sample - alpha.sqrt() * clean) / (1 - alpha).sqrt()
                return self

        back = purify._denoised(Oracle(), scheduler, 0.5, clean, torch.Generator().manual_seed(0))
        torch.testing.assert_close(back, clean, atol=1e-4, rtol=0)
        assert seen == list(range(9, -1, -1)), "half of the schedule, downwards"

    def test_adds_the_noise_of_its_share(self, monkeypatch: pytest.MonkeyPatch) -> None:
        scheduler = DDPMScheduler(num_train_timesteps=1000)
        first = []

        class Watch:
            def __call__(self, sample: Tensor, t: int) -> Watch:
                first.append(sample.clone())
                self.sample = torch.zeros_like(sample)
                return self

        purify._denoised(Watch(), scheduler, 0.1, torch.zeros(1, 3, 64, 64), torch.Generator().manual_seed(0))
        assert len(first) == 100
        assert float(first[0].std()) == pytest.approx(float((1 - scheduler.alphas_cumprod[99]).sqrt()), rel=0.02)

    @pytest.mark.parametrize("length", [16, 17, 30, 31, 100])
    def test_tiles_cover_and_overlap(self, length: int) -> None:
        starts = list(purify._starts(length, 16))
        assert starts[0] == 0
        assert starts[-1] == length - 16
        assert all(0 < b - a <= 14 for a, b in pairwise(starts))

    def test_tiles_leave_pixels_in_their_place(self, diffusion: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(purify, "_denoised", lambda unet, scheduler, strength, clean, generator: clean)
        for size in ((5, 5), (16, 16), (45, 33)):
            torch.testing.assert_close(attacked("diffusion", str(diffusion), photo(*size)), photo(*size))

    def test_steps_are_ddpms_whatever_the_pipelines(self, diffusion: Path, tmp_path: Path) -> None:
        pipeline = DDPMPipeline.from_pretrained(diffusion)
        DDPMPipeline(pipeline.unet, pipeline.scheduler).save_pretrained(tmp_path)
        DDIMScheduler.from_config(pipeline.scheduler.config).save_pretrained(tmp_path / "scheduler")
        image = photo(16, 16)
        same = attacked("diffusion", str(tmp_path), image)
        torch.testing.assert_close(same, attacked("diffusion", str(diffusion), image))

    def test_name_says_the_share(self) -> None:
        assert IMAGE_ATTACKS["diffusion"]("some/model").name == "diffusion:some/model@0.1"
        assert IMAGE_ATTACKS["diffusion"]("some/model@0.25").name == "diffusion:some/model@0.25"

    @pytest.mark.parametrize("parameter", [None, "", "@0.1", "a/b@", "a/b@0", "a/b@1.5", "a/b@nan", "a/b@much"])
    def test_bad_parameter_is_refused(self, parameter: str | None) -> None:
        with pytest.raises(ConfigError, match=r"^attack diffusion:.*above 0 and up to 1"):
            IMAGE_ATTACKS["diffusion"](parameter)

    def test_model_of_oblong_images_is_refused(self, tmp_path: Path) -> None:
        save_diffusion(tmp_path, sample_size=(16, 8))
        with pytest.raises(ConfigError, match="square images"):
            attacked("diffusion", str(tmp_path), photo(8, 8))


class TestLoading:
    @pytest.mark.parametrize("family", ["vae", "diffusion"])
    def test_happens_once(self, family: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        source = str(request.getfixturevalue(family))
        first = attacked(family, source, photo(8, 8))
        monkeypatch.setattr(purify, "_loaded", lambda *_: pytest.fail("loaded again"))
        assert torch.equal(attacked(family, source, photo(8, 8)), first)

    def test_is_where_the_audit_is(self, vae: Path, diffusion: Path) -> None:
        with auto_means("meta"), pytest.raises(NotImplementedError, match="meta"):
            attacked("vae", str(vae), photo(8, 8))
        with auto_means("meta"), pytest.raises(NotImplementedError, match="meta"):
            attacked("diffusion", str(diffusion), photo(8, 8))
        assert attacked("vae", str(vae), photo(8, 8)).device.type == "cpu"

    @pytest.mark.parametrize("family", ["vae", "diffusion"])
    def test_missing_model_is_named(self, family: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=rf"^attack {family}:.*nothing.*hub id"):
            attacked(family, str(tmp_path / "nothing"), photo(8, 8))

    def test_model_of_another_kind_is_named(self, vae: Path, diffusion: Path) -> None:
        with pytest.raises(ConfigError, match=r"^attack diffusion:.*cannot be loaded"):
            attacked("diffusion", str(vae), photo(8, 8))
        with pytest.raises(ConfigError, match=r"^attack vae:.*cannot be loaded"):
            attacked("vae", str(diffusion / "unet"), photo(8, 8))

    @pytest.mark.parametrize("family", ["vae", "diffusion"])
    def test_missing_diffusers_is_named(self, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
        find = importlib.util.find_spec
        monkeypatch.setattr(purify, "find_spec", lambda name: None if name == "diffusers" else find(name))
        with pytest.raises(ConfigError, match=r"mmguard\[purify\]"):
            IMAGE_ATTACKS[family]("some/model")
