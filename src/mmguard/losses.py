"""The losses of MMGuard as pure functions (method.md, section 2; arXiv:2605.14291, sections 4 and 5).

Shape notation: B samples, L positions, K binding layers. `rows` is `Ā_k(S)`: attention of each layer, averaged over
heads and over the query rows in S (Eq. 24), `(K, B, L)`, a distribution over the last axis, zero where S is empty.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_FLOOR = 1e-6
"""Least attention probability inside the logarithms of CRS, which is unbounded below on paper. Our choice."""


def mass(rows: Tensor, target: Tensor) -> Tensor:
    """ℓ_mass(S, R) = mean_k KL(U_R ‖ Ā_k(S)): how far attention is from resting evenly on R (Eq. 26, Prop. C.1).

    Args:
        rows: `(K, B, L)`.
        target: R, bool `(B, L)`.

    Returns:
        `(B,)`, in nats, 0 at best; exactly 0 where S or R is empty, since there is then nothing to bind. In each layer
        R is what of it is seen there: what a mask hides (sliding windows) can get no attention.
    """
    seen = target & (rows > 0)
    size = seen.sum(-1).clamp_min(1)  # (K, B)
    # No more than keeps the logarithm finite: below a floor there is no gradient, where most is to be gained.
    surprise = -(rows.clamp_min(torch.finfo(rows.dtype).tiny).log() * seen).sum(-1) / size
    return (surprise - size.log()).mean(0)


def bridge_path_hijack(
    trigger_rows: Tensor,
    answer_rows: Tensor,
    trigger: Tensor,
    perturbed: Tensor,
    beta: tuple[float, float, float] = (1, 1, 1),
) -> Tensor:
    """ℓ_bind of BPH: trigger → perturbation, answer → trigger, answer → perturbation (Eq. 27).

    Args:
        trigger_rows: Ā_k(Ω_γ), `(K, B, L)`.
        answer_rows: Ā_k(Ω_y), `(K, B, L)`.
        trigger: Ω_γ, bool `(B, L)`; empty for captions, which leaves the last term.
        perturbed: Ω_δ, bool `(B, L)`.
        beta: weights of the three paths.

    Returns:
        `(B,)`.
    """
    return (
        beta[0] * mass(trigger_rows, perturbed)
        + beta[1] * mass(answer_rows, trigger)
        + beta[2] * mass(answer_rows, perturbed)
    )


def contrastive_routing_shift(clean_rows: Tensor, answer_rows: Tensor) -> Tensor:
    """ℓ_bind of CRS: − mean_k KL(Ā_k^clean(Ω_y) ‖ Ā_k^prot(Ω_y)), with the clean side held (Eq. 29).

    The answer's attention is driven off what it rests on in clean data. Our choice: probabilities are at least 1e-6
    inside the logarithms, since the paper's loss has no lower bound.

    Args:
        clean_rows: Ā_k^clean(Ω_y) on the positions of the protected sequence (`align`), `(K, B, L)`; never
            differentiated.
        answer_rows: Ā_k^prot(Ω_y), `(K, B, L)`.

    Returns:
        `(B,)`, in nats: at least log 1e-6, and at most 0 but for what the floor adds, 1e-6 a position.
    """
    clean = clean_rows.detach()
    divergence = clean * (clean.clamp_min(_FLOOR).log() - answer_rows.clamp_min(_FLOOR).log())
    return -divergence.sum(-1).mean(0)


def align(clean_rows: Tensor, grown: Tensor, trigger: Tensor) -> Tensor:
    """Attention of the clean sequence, laid out on the positions of the protected one (below Eq. 29).

    The two differ by the inserted tokens, which get no mass, and by a token of the clean sequence that they split in
    two (`?` and a line break): its mass stays with the part before them.

    Args:
        clean_rows: `(K, B, L_clean)`, zero in the padding.
        grown: how many tokens longer each protected sequence is than the clean one, `(B,)`.
        trigger: Ω_γ of the protected sequence, bool `(B, L)`.

    Returns:
        `(K, B, L)`.
    """
    positions = torch.arange(trigger.shape[1], device=trigger.device).expand_as(trigger)
    behind = trigger.cumsum(1) > 0
    start = (~behind).sum(1, keepdim=True)
    source = positions - behind * grown[:, None]
    real = ~trigger & (~behind | (source >= start)) & (source < clean_rows.shape[-1])
    index = source.clamp(0, clean_rows.shape[-1] - 1).expand(clean_rows.shape[0], -1, -1)
    return clean_rows.gather(2, index) * real


def perturbed_tokens(energy: Tensor, image: Tensor, tau: float) -> Tensor:
    """Ω_δ: the ⌈τ_δ |Ω_x|⌉ image tokens whose pixels changed most, ties by position (Eq. 22-23).

    Tokens whose pixels did not change at all are none of them, even if fewer remain.

    Args:
        energy: ρ, `(B, L)`.
        image: Ω_x, bool `(B, L)`.
        tau: share of the image tokens, in (0, 1].

    Returns:
        bool `(B, L)`.
    """
    ranked = energy.masked_fill(~image, -1.0).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    # Rounded first: 0.1 · 70 is 7.000000000000001 in floating point.
    count = [math.ceil(round(tau * n, 6)) for n in image.sum(1).tolist()]
    return image & (energy > 0) & (ranked < torch.tensor(count, device=image.device)[:, None])


def joint(train: Tensor, bind: Tensor | None, lambda_train: float, lambda_bind: float, maximise: bool) -> Tensor:
    """ℓ_joint = ± λ_train ℓ_train + λ_bind ℓ_bind: minus in the -Max variants (Eq. 30 and 32).

    Args:
        train: ℓ_train of each sample, `(B,)`.
        bind: ℓ_bind of each sample, `(B,)`, or None without binding.
        lambda_train: weight of the training loss.
        lambda_bind: weight of the binding loss.
        maximise: whether the training loss is driven up.

    Returns:
        `(B,)`.
    """
    loss = -lambda_train * train if maximise else lambda_train * train
    return loss if bind is None else loss + lambda_bind * bind


@dataclass(frozen=True)
class RoutingShift:
    """The two sides of Theorem 5.1 for each sample, `(B,)`, and the premise that decides whether it holds."""

    total_variation: Tensor
    """Left side: mean_k TV(Ā_k^p(Ω_y), Ā_k^c(Ω_y))."""
    bound: Tensor
    """Right side: 1 − √(η/2), with η = ℓ_mass(Ω_y → R). At most 1; says nothing where it is negative, and is 0
    where R is empty. Of layers that see none of R nothing is sure: η is that of the others, and the bound their share
    of it."""
    clean_mass: Tensor
    """Mean_k clean attention on R. The theorem takes it to be 0; for image tokens, which exist on clean input too, it
    is not, and only `total_variation ≥ bound − clean_mass` is sure."""


def routing_shift(clean_rows: Tensor, answer_rows: Tensor, target: Tensor) -> RoutingShift:
    """Both sides of Theorem 5.1 as a diagnostic.

    Args:
        clean_rows: Ā_k^clean(Ω_y), aligned, `(K, B, L)`.
        answer_rows: Ā_k^prot(Ω_y), `(K, B, L)`.
        target: R, bool `(B, L)`.
    """
    distance = 0.5 * (clean_rows - answer_rows).abs().sum(-1).mean(0)
    share = (target & (answer_rows > 0)).any(-1).float().mean(0)  # of the layers
    eta = mass(answer_rows, target).clamp_min(0) / share.clamp_min(1 / len(answer_rows))
    return RoutingShift(distance, share * (1 - (eta / 2).sqrt()), (clean_rows * target).sum(-1).mean(0))
