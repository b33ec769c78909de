"""The losses against their definitions, written out with loops and torch.distributions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmguard import losses


def distributions(k: int, b: int, length: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(k, b, length, generator=generator).add(0.01).log().mul(1.5).softmax(-1)


@given(seed=st.integers(0, 1000), size=st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_mass_is_the_divergence_from_uniform(seed: int, size: int) -> None:
    rows = distributions(3, 2, 9, seed)
    target = torch.zeros(2, 9, dtype=torch.bool)
    target[:, torch.randperm(9, generator=torch.Generator().manual_seed(seed))[:size]] = True
    for b in range(2):
        expected = 0.0
        for k in range(3):
            for r in target[b].nonzero().flatten():
                expected += (1 / size) * (math.log(1 / size) - math.log(rows[k, b, r])) / 3
        assert losses.mass(rows, target)[b].item() == pytest.approx(expected, abs=1e-4)


def test_mass_is_zero_exactly_when_attention_rests_evenly_on_the_target() -> None:
    target = torch.tensor([[True, True, False, False]])
    even = torch.tensor([[[0.5, 0.5, 0.0, 0.0]]])
    skew = torch.tensor([[[0.9, 0.1, 0.0, 0.0]]])
    assert losses.mass(even, target).item() == pytest.approx(0, abs=1e-6)
    assert losses.mass(skew, target).item() > 0.1


def test_nothing_to_bind_costs_nothing_and_has_no_gradient() -> None:
    rows = distributions(2, 2, 5, 0)
    rows[:, 1] = 0  # this sample has no trigger rows
    rows.requires_grad_(True)
    target = torch.tensor([[False] * 5, [True, False, False, False, False]])
    loss = losses.mass(rows, target)
    assert loss.tolist() == [0, 0]
    (gradient,) = torch.autograd.grad(loss.sum(), rows)
    assert gradient.abs().sum() == 0


def test_what_a_layer_does_not_see_is_no_target_there() -> None:
    rows = distributions(2, 1, 5, 0)
    rows[0, :, :2] = 0  # a sliding window
    rows.requires_grad_(True)
    targets = torch.tensor([[[True, True, True, False, False]], [[False, False, True, False, False]]])
    found = [losses.mass(rows[[0]], target) for target in targets]
    assert torch.equal(*found)
    assert torch.equal(*(torch.autograd.grad(loss.sum(), rows)[0] for loss in found))
    both = (losses.mass(rows[[0]], targets[1]) + losses.mass(rows[[1]], targets[0])) / 2
    torch.testing.assert_close(losses.mass(rows, targets[0]), both)
    hidden = torch.tensor([[True, True, False, False, False]])
    torch.testing.assert_close(losses.mass(rows, hidden), losses.mass(rows[[1]], hidden) / 2)


def test_mass_pulls_hardest_where_attention_has_vanished() -> None:
    target = torch.tensor([[True, False]])
    slope = {}
    for attention in (0.0, 1e-12, 1e-3):
        rows = torch.tensor([[[attention, 1 - attention]]], requires_grad=True)
        loss = losses.mass(rows, target)
        assert loss.isfinite().all()
        slope[attention] = torch.autograd.grad(loss.sum(), rows)[0][0, 0, 0].item()
    assert slope[1e-12] == pytest.approx(-1e12)
    assert slope[1e-12] < slope[1e-3] < slope[0.0] == 0


def test_bph_is_the_weighted_sum_of_three_paths() -> None:
    trigger_rows, answer_rows = distributions(2, 1, 6, 1), distributions(2, 1, 6, 2)
    trigger = torch.tensor([[False, False, False, True, True, False]])
    perturbed = torch.tensor([[True, False, True, False, False, False]])
    value = losses.bridge_path_hijack(trigger_rows, answer_rows, trigger, perturbed, (2, 3, 5))
    expected = (
        2 * losses.mass(trigger_rows, perturbed)
        + 3 * losses.mass(answer_rows, trigger)
        + 5 * losses.mass(answer_rows, perturbed)
    )
    torch.testing.assert_close(value, expected)


def test_crs_is_minus_a_divergence_and_leaves_the_clean_side_alone() -> None:
    clean, protected = (
        distributions(2, 3, 7, 3).requires_grad_(True),
        distributions(2, 3, 7, 4).requires_grad_(True),
    )
    value = losses.contrastive_routing_shift(clean, protected)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(clean), torch.distributions.Categorical(protected)
    ).mean(0)
    torch.testing.assert_close(value, -expected)
    gradients = torch.autograd.grad(value.sum(), (clean, protected), allow_unused=True)
    assert gradients[0] is None
    assert gradients[1] is not None


def test_crs_is_bounded_where_protected_attention_vanishes() -> None:
    clean, protected = torch.tensor([[[0.5, 0.5]]]), torch.tensor([[[1.0, 0.0]]])
    value = losses.contrastive_routing_shift(clean, protected)
    assert torch.isfinite(value).all()
    assert value.item() >= math.log(1e-6)


def test_align_skips_the_inserted_tokens() -> None:
    clean = torch.tensor([[[0.1, 0.2, 0.3, 0.4, 0.0], [0.5, 0.1, 0.1, 0.1, 0.2]]])
    trigger = torch.tensor([[False, False, True, True, False, False, False], [False] * 3 + [True] + [False] * 3])
    aligned = losses.align(clean, torch.tensor([2, 1]), trigger)
    torch.testing.assert_close(aligned[0, 0], torch.tensor([0.1, 0.2, 0, 0, 0.3, 0.4, 0]))
    torch.testing.assert_close(aligned[0, 1], torch.tensor([0.5, 0.1, 0.1, 0, 0.1, 0.2, 0]))


def test_align_counts_a_token_once_that_the_trigger_splits() -> None:
    """Clean: what, `?\\n`, A, B. Protected: what, `?`, two inserted tokens, `\\n`, A, B."""
    clean = torch.tensor([[[0.1, 0.4, 0.2, 0.3]]])
    trigger = torch.tensor([[False, False, True, True, False, False, False]])
    aligned = losses.align(clean, torch.tensor([3]), trigger)
    torch.testing.assert_close(aligned[0, 0], torch.tensor([0.1, 0.4, 0, 0, 0, 0.2, 0.3]))


@given(tau=st.floats(0.01, 1.0), tokens=st.integers(1, 100), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_perturbed_tokens_are_the_largest_share(tau: float, tokens: int, seed: int) -> None:
    image = torch.zeros(1, tokens + 3, dtype=torch.bool)
    image[0, 1 : tokens + 1] = True
    energy = torch.rand(1, tokens + 3, generator=torch.Generator().manual_seed(seed))
    chosen = losses.perturbed_tokens(energy, image, tau)
    assert not (chosen & ~image).any()
    count = int(chosen.sum())
    assert tau * tokens - 1e-4 <= count <= tau * tokens + 1
    if count < tokens:
        assert energy[chosen].min() >= energy[image & ~chosen].max()


def test_ties_go_to_the_first_tokens() -> None:
    image = torch.tensor([[False, True, True, True, True]])
    assert losses.perturbed_tokens(torch.ones(1, 5), image, 0.5).tolist() == [[False, True, True, False, False]]


def test_what_was_not_changed_is_not_perturbed() -> None:
    image = torch.tensor([[False, True, True, True, True]] * 2)
    energy = torch.tensor([[0.0] * 5, [0.0, 0.0, 0.0, 0.0, 0.5]])
    assert losses.perturbed_tokens(energy, image, 0.5).tolist() == [[False] * 5, [False] * 4 + [True]]


def test_joint_max_turns_only_the_training_term() -> None:
    train, bind = torch.tensor([2.0]), torch.tensor([3.0])
    assert losses.joint(train, bind, 1.0, 2.0, maximise=False).item() == 8
    assert losses.joint(train, bind, 1.0, 2.0, maximise=True).item() == 4
    assert losses.joint(train, None, 0.5, 2.0, maximise=False).item() == 1


@given(seed=st.integers(0, 500))
@settings(max_examples=50, deadline=None)
def test_theorem_51_holds_once_the_clean_mass_is_counted(seed: int) -> None:
    clean, protected = distributions(3, 4, 8, seed), distributions(3, 4, 8, seed + 1)
    target = torch.zeros(4, 8, dtype=torch.bool)
    target[:, :3] = True
    shift = losses.routing_shift(clean, protected, target)
    assert (shift.total_variation >= shift.bound - shift.clean_mass - 1e-5).all()
    protected[0, :, :3] = 0  # a sliding window hides R
    hidden = losses.routing_shift(clean, protected / protected.sum(-1, keepdim=True), target)
    assert (hidden.total_variation >= hidden.bound - hidden.clean_mass - 1e-5).all()
    assert losses.routing_shift(clean, clean, target & False).bound.tolist() == [0] * 4
