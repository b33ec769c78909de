"""The differentiable processor: the value of the real one, the gradient of its float path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from mmguard.errors import SurrogateError
from mmguard.lvlm.pixels import differentiable_pixels, layout, shrunk, shrunk_size, to_uint8
from mmguard.lvlm.prompt import takes_suffix
from tiny import FAMILIES, built

# Settings of the published models (patch, tile and resolution rules), no weights needed.
PROCESSORS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "qwen2-vl": (hf.Qwen2VLImageProcessor, {"size": {"shortest_edge": 3136, "longest_edge": 12845056}}),
    "qwen3-vl": (
        hf.Qwen2VLImageProcessor,
        {
            "patch_size": 16,
            "size": {"shortest_edge": 65536, "longest_edge": 16777216},
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
        },
    ),
    "llava": (
        hf.CLIPImageProcessor,
        {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}},
    ),
    "llava-next": (
        hf.LlavaNextImageProcessor,
        {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}},
    ),
    "gemma3": (hf.Gemma3ImageProcessor, {"size": {"height": 896, "width": 896}}),
    "mllama": (hf.MllamaImageProcessor, {"size": {"height": 560, "width": 560}, "max_image_tiles": 4}),
    "glm4v": (hf.Glm4vImageProcessor, {"size": {"shortest_edge": 12544, "longest_edge": 9633792}}),
    "internvl": (
        hf.GotOcr2ImageProcessor,
        {"size": {"height": 448, "width": 448}, "crop_to_patches": True, "max_patches": 12},
    ),
    "minicpm-v": (hf.MiniCPMV4_6ImageProcessor, {"max_slice_nums": 9, "scale_resolution": 448}),
    "smolvlm": (
        hf.SmolVLMImageProcessor,
        {"size": {"longest_edge": 1536}, "max_image_size": {"longest_edge": 512}, "do_image_splitting": True},
    ),
    "idefics3": (hf.Idefics3ImageProcessor, {"size": {"longest_edge": 1456}, "max_image_size": {"longest_edge": 364}}),
    "llava-onevision": (
        hf.LlavaOnevisionImageProcessor,
        {"size": {"height": 384, "width": 384}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
    ),
    "paligemma": (
        hf.SiglipImageProcessor,
        {"size": {"height": 224, "width": 224}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3},
    ),
}


def photograph(seed: int, height: int, width: int) -> Tensor:
    """A `[0,1]` image on the uint8 grid, with edges at which bicubic resizing overshoots."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), generator=generator) / 255


def pil(image: Tensor) -> Image.Image:
    return Image.fromarray(np.asarray(to_uint8(image).permute(1, 2, 0)))


@pytest.fixture(params=PROCESSORS)
def processor(request: pytest.FixtureRequest) -> Any:
    cls, settings_ = PROCESSORS[request.param]
    return cls(**settings_)


def test_value_is_that_of_the_file_and_gradient_reaches_the_image(processor: Any) -> None:
    images = [photograph(0, 46, 70).requires_grad_(), photograph(1, 64, 64).requires_grad_()]
    expected = processor([[pil(image.detach())] for image in images], return_tensors="pt")

    output = differentiable_pixels(processor, images)

    assert set(output) == set(expected)
    for key, value in expected.items():
        if isinstance(value, Tensor):
            assert torch.equal(output[key].detach(), value), key
        else:
            assert output[key] == value, key
    gradients = torch.autograd.grad(output["pixel_values"].square().sum(), images)
    for gradient in gradients:  # LLaVA crops to the square in the middle, the others see everything
        top, left = (max(0, side - min(gradient.shape[1:])) // 2 for side in gradient.shape[1:])
        seen = gradient[:, top : top + 40, left : left + 40]
        assert (seen != 0).float().mean() > 0.99


def test_gradient_is_the_slope_of_the_float_path(processor: Any) -> None:
    image, direction = (
        photograph(2, 46, 70),
        torch.randn(3, 46, 70, generator=torch.Generator().manual_seed(3)),
    )

    def floats(at: Tensor) -> Tensor:
        return processor([[at * 255]], return_tensors="pt")["pixel_values"]

    leaf = image.clone().requires_grad_()
    output = differentiable_pixels(processor, [leaf])["pixel_values"]
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(4))
    (gradient,) = torch.autograd.grad((output * weight).sum(), leaf)

    slope = (
        weight.double() * (floats(image + 0.05 * direction) - floats(image - 0.05 * direction)).double() / 0.1
    ).sum()
    assert torch.isclose((gradient * direction).double().sum(), slope, rtol=2e-3, atol=2e-3 * weight.norm())


def test_repeated_images_are_processed_once(processor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = photograph(5, 46, 70).requires_grad_(), photograph(6, 50, 30)
    images = [first, second, first, first]
    expected = processor([[to_uint8(image.detach())] for image in images], return_tensors="pt")
    handed: list[Tensor] = []
    original = type(processor).process_image

    def spy(self: Any, image: Tensor, **kwargs: Any) -> Tensor:
        handed.append(image)
        return original(self, image, **kwargs)

    monkeypatch.setattr(type(processor), "process_image", spy)

    output = differentiable_pixels(processor, images)

    assert sum(image.is_floating_point() for image in handed) == 2
    for key, value in expected.items():
        if isinstance(value, Tensor):
            assert torch.equal(output[key].detach(), value), key
        else:
            assert output[key] == value, key
    (thrice,) = torch.autograd.grad(output["pixel_values"].sum(), first)
    (once,) = torch.autograd.grad(differentiable_pixels(processor, [first])["pixel_values"].sum(), first)
    torch.testing.assert_close(thrice, 3 * once, rtol=1e-3, atol=1e-4)


def test_layout_depends_on_the_size_only(processor: Any) -> None:
    sizes = [(46, 70), (64, 64), (46, 70)]
    images = [photograph(7 + number, *size) for number, size in enumerate(sizes)]
    real, blank = differentiable_pixels(processor, images), layout(processor, sizes)
    assert set(real) == set(blank)
    for key, value in real.items():
        if key in ("pixel_values", "pixel_attention_mask"):
            assert (value.shape, value.dtype) == (blank[key].shape, blank[key].dtype)
        else:
            assert torch.equal(value, blank[key]) if isinstance(value, Tensor) else value == blank[key], key


@pytest.fixture
def passes(processor: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each call of the processor was handed."""
    handed: list[int] = []
    original = type(processor).__call__

    def spy(self: Any, images: Any, *args: Any, **kwargs: Any) -> Any:
        handed.append(len(images))
        return original(self, images, *args, **kwargs)

    monkeypatch.setattr(type(processor), "__call__", spy)
    return handed


def test_what_size_settles_is_found_out_once(processor: Any, passes: list[int]) -> None:
    image = photograph(12, 46, 70)
    for _ in range(3):
        layout(processor, [(46, 70)] * 4)
    assert passes == [1, 2]  # alone, and with itself
    passes.clear()
    for _ in range(3):
        differentiable_pixels(processor, [image] * 4)
    assert passes == [1, 1, 1]  # the image itself
    passes.clear()
    layout(processor, [(46, 70), (50, 50)])
    assert passes == [2]


def test_what_is_remembered_is_small_and_nobody_elses(processor: Any) -> None:
    first = layout(processor, [(46, 70)] * 2)
    for key, value in first.items():
        if not isinstance(value, Tensor):
            value.append(77)
        elif key in ("pixel_values", "pixel_attention_mask"):
            assert value.untyped_storage().nbytes() <= 8
        else:
            value.fill_(77)
    again, fresh = layout(processor, [(46, 70)] * 2), layout(type(processor)(**processor.to_dict()), [(46, 70)] * 2)
    for key, value in again.items():
        assert torch.equal(value, fresh[key]) if isinstance(value, Tensor) else value == fresh[key], key


def test_other_settings_are_another_layout() -> None:
    processor = PROCESSORS["llava"][0](**PROCESSORS["llava"][1])
    shapes = [layout(processor, [(46, 70)])["pixel_values"].shape[-2:]]
    shapes.append(layout(processor, [(46, 70)], crop_size={"height": 84, "width": 84})["pixel_values"].shape[-2:])
    processor.crop_size = {"height": 42, "width": 42}
    shapes.append(layout(processor, [(46, 70)])["pixel_values"].shape[-2:])
    assert shapes == [(336, 336), (84, 84), (42, 42)]


@pytest.mark.parametrize("family", FAMILIES)
def test_tiny_models_see_what_their_processor_shows_them(family: str) -> None:
    full = hf.AutoProcessor.from_pretrained(built(family))
    images = [photograph(8, 40, 60), photograph(9, 64, 64)]
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    text = "<image>What is it?" if takes_suffix(full) else full.apply_chat_template(chat)
    expected = full(text=[text] * 2, images=[[pil(image)] for image in images], return_tensors="pt", padding=True)
    kwargs = full._merge_kwargs(tokenizer_init_kwargs=full.tokenizer.init_kwargs)["images_kwargs"]

    output = differentiable_pixels(full.image_processor, [image.requires_grad_() for image in images], **kwargs)

    assert torch.equal(output["pixel_values"].detach(), expected["pixel_values"])
    assert output["pixel_values"].requires_grad


def test_a_picture_above_the_limit_is_seen_shrunk(processor: Any) -> None:
    image = photograph(14, 90, 160).requires_grad_()
    small = resize(to_uint8(image.detach()), [45, 80], InterpolationMode.BICUBIC, antialias=True)
    expected = processor([[small]], return_tensors="pt")["pixel_values"]

    found = differentiable_pixels(processor, [shrunk(image, 45 * 80)])["pixel_values"]

    assert torch.equal(found.detach(), expected)
    (gradient,) = torch.autograd.grad(found.square().sum(), image)
    left = (160 - 90) // 2 + 4  # LLaVA crops to the square in the middle
    assert (gradient[:, 4:-4, left : 160 - left] != 0).float().mean() > 0.99


def test_shrinking_is_that_of_pillow() -> None:
    image = photograph(15, 90, 160)
    expected = np.asarray(pil(image).resize((80, 45)))  # as trainers call it
    found = np.asarray(to_uint8(shrunk(image, 45 * 80)).permute(1, 2, 0))
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_the_gradient_of_shrinking_is_the_slope_of_its_float_path() -> None:
    image, direction = photograph(16, 90, 160).requires_grad_(), photograph(17, 90, 160)
    weight = photograph(18, 45, 80)
    (gradient,) = torch.autograd.grad((shrunk(image, 45 * 80) * weight).sum(), image)
    slope = (weight * resize(direction, [45, 80], InterpolationMode.BICUBIC, antialias=True)).sum()
    assert torch.isclose((gradient * direction).sum(), slope, rtol=1e-4)


def test_a_picture_within_the_limit_is_left_alone() -> None:
    image = photograph(19, 46, 70)
    assert shrunk(image, 46 * 70) is image
    assert shrunk(image, 0) is image


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1024, 10**6))
def test_a_shrunk_picture_keeps_its_shape(height: int, width: int, limit: int) -> None:
    size = shrunk_size((height, width), limit)
    if height * width <= limit:
        assert size == (height, width)
    elif height / width * limit >= 5 and width / height * limit >= 5:
        assert size[0] * size[1] <= limit
        assert size[0] == pytest.approx(size[1] * height / width, abs=1 + height / width)


def test_no_float_path_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    processor = hf.CLIPImageProcessor()
    seen: list[torch.dtype] = []
    original = type(processor).process_image

    def spy(self: Any, image: Tensor, **kwargs: Any) -> Tensor:
        seen.append(image.dtype)
        return original(self, image, **kwargs)

    monkeypatch.setattr(type(processor), "process_image", spy)
    image = photograph(10, 30, 30)
    assert not differentiable_pixels(processor, [image])["pixel_values"].requires_grad
    with torch.no_grad():
        differentiable_pixels(processor, [image.requires_grad_()])
    assert seen == [torch.uint8, torch.uint8]
    differentiable_pixels(processor, [image])
    assert seen[2:] == [torch.uint8, torch.float32]


def test_the_float_path_runs_where_the_images_lie(processor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[tuple[str, torch.dtype]] = set()
    original = type(processor).process_image

    def spy(self: Any, image: Tensor, **kwargs: Any) -> Tensor:
        seen.add((image.device.type, image.dtype))
        return original(self, image, **kwargs)

    monkeypatch.setattr(type(processor), "process_image", spy)
    with FakeTensorMode():  # a GPU that is not there: shapes and devices without numbers
        images = [torch.empty(3, *size, device="cuda", requires_grad=True) for size in [(46, 70), (64, 64)]]
        output = differentiable_pixels(processor, images)
    assert seen == {("cpu", torch.uint8), ("cuda", torch.float32)}
    assert output["pixel_values"].device.type == "cuda"
    assert output["pixel_values"].requires_grad


def test_running_out_of_memory_is_no_missing_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    processor = hf.CLIPImageProcessor()
    original = type(processor).process_image

    def short(self: Any, image: Tensor, **kwargs: Any) -> Tensor:
        if image.is_floating_point():
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return original(self, image, **kwargs)

    monkeypatch.setattr(type(processor), "process_image", short)
    with pytest.raises(torch.OutOfMemoryError):
        differentiable_pixels(processor, [photograph(13, 30, 30).requires_grad_()])


def test_a_processor_without_gradients_is_named() -> None:
    processor = hf.CLIPImageProcessorPil()
    image = photograph(11, 30, 30)
    value = differentiable_pixels(processor, [image])["pixel_values"]
    assert value.shape == (1, 3, 224, 224)
    with pytest.raises(SurrogateError, match=r"CLIPImageProcessorPil.*torchvision"):
        differentiable_pixels(processor, [image.requires_grad_()])


@given(st.lists(st.integers(0, 255), min_size=3, max_size=3), st.floats(-0.49, 0.49))
@settings(max_examples=50, deadline=None)
def test_rounding_undoes_float_noise(values: list[int], noise: float) -> None:
    exact = torch.tensor(values, dtype=torch.uint8)
    noisy = (exact.double() + noise).float() / 255
    assert torch.equal(to_uint8(noisy), exact)
