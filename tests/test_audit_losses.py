"""Loss curves: means over seeds and neighbouring steps, with gaps where there is no number."""

from __future__ import annotations

import pytest

from mmguard.auditing.losses import loss_curve


def test_mean_and_range_over_seeds() -> None:
    curve = loss_curve("a", "lora", "clean", [[4.0, 2.0], [2.0, 1.0], [3.0, 0.0]])
    assert curve.steps == (1, 2)
    assert curve.mean == (3, 1)
    assert curve.low == (2, 0)
    assert curve.high == (4, 2)


def test_long_runs_are_averaged_over_neighbouring_steps() -> None:
    curve = loss_curve("a", "lora", "clean", [[float(step) for step in range(1, 601)]])
    assert len(curve.steps) == 60
    assert curve.steps[0] == curve.mean[0] == pytest.approx(5.5)
    assert curve.mean[-1] == pytest.approx(595.5)


def test_a_run_that_diverges_ends_in_its_own_curve_only() -> None:
    curve = loss_curve("a", "lora", "clean", [[1.0, 2.0, float("nan")], [1.0, 4.0, 3.0]])
    assert (curve.steps, curve.mean, curve.high, curve.diverged) == ((1, 2, 3), (1, 3, 3), (1, 4, 3), 1)
    alone = loss_curve("a", "lora", "clean", [[1.0, float("inf")]])
    assert (alone.steps, alone.diverged) == ((1,), 1)
    assert loss_curve("a", "lora", "clean", [[float("nan"), 1.0]]).diverged == 0
    assert loss_curve("a", "lora", "clean", [[float("inf")]]).steps == ()


def test_runs_of_different_length() -> None:
    assert loss_curve("a", "lora", "clean", [[1.0, 2.0, 3.0], [1.0, 2.0]]).steps == (1, 2)
