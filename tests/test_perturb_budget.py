"""The budgets hold whatever happens, and nothing is lost between the loop and the disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.functional import to_pil_image

from mmguard.data.images import load_image
from mmguard.errors import ConfigError
from mmguard.perturb.budget import ImageBudget, apply, to_unit

seeds = st.integers(0, 2**31)


def image_of(seed: int, low: int = 0, high: int = 256) -> torch.Tensor:
    return torch.randint(low, high, (3, 5, 7), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@given(seed=seeds, eps=st.integers(0, 127), scale=st.integers(0, 300))
@settings(max_examples=80, deadline=None)
def test_projection_is_within_the_budget_and_idempotent(seed: int, eps: int, scale: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    image, budget = image_of(seed), ImageBudget(eps)
    wild = torch.randint(-scale, scale + 1, image.shape, generator=generator, dtype=torch.int16)
    delta = budget.project(image, wild)
    result = apply(image, delta)
    assert (result.int() - image.int()).abs().max() <= eps
    assert torch.equal(result.int() - image.int(), delta.int())
    assert torch.equal(budget.project(image, delta), delta)


@given(seed=seeds, eps=st.integers(1, 127))
@settings(max_examples=40, deadline=None)
def test_projection_is_the_nearest_point(seed: int, eps: int) -> None:
    image, budget = image_of(seed), ImageBudget(eps)
    wild = torch.randint(-300, 300, image.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.int16)
    base = image.int()
    nearest = torch.minimum(torch.maximum(base + wild, (base - eps).clamp(min=0)), (base + eps).clamp(max=255)) - base
    assert torch.equal(budget.project(image, wild).int(), nearest)


@given(seed=seeds, eps=st.integers(1, 16), steps=st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_steps_stay_in_the_budget_and_move_against_the_gradient(seed: int, eps: int, steps: int) -> None:
    image, budget = image_of(seed, 40, 200), ImageBudget(eps)
    gradient = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))
    delta = torch.zeros(image.shape, dtype=torch.int8)
    for _ in range(steps):
        delta = budget.descend(image, delta, gradient)
    assert torch.equal(delta.float(), -gradient.sign() * min(steps, eps))


def test_random_starts_use_the_whole_budget() -> None:
    image = torch.full((3, 64, 64), 128, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    even = ImageBudget(8).random(image, generator)
    assert set(even.unique().tolist()) == set(range(-8, 9))
    assert set(ImageBudget(8).random_signs(image, generator).unique().tolist()) == {-8, 8}


@given(seed=seeds)
@settings(max_examples=30, deadline=None)
def test_unit_images_survive_the_way_to_disk_and_back(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    image = image_of(seed)
    assert torch.equal((to_unit(image) * 255).round().to(torch.uint8), image)
    path: Path = tmp_path_factory.mktemp("png") / "image.png"
    to_pil_image(image).save(path, format="PNG")
    assert torch.equal(load_image(path), image)


def test_a_budget_beyond_int8_is_refused() -> None:
    with pytest.raises(ConfigError, match="eps 128"):
        ImageBudget(128)
