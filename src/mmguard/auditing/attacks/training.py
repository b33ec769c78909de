"""Attacks on training: what a thief does, not to the stolen data, but to the way of training on it.

| name | how the attacker trains |
|---|---|
| `early-stop` | keeps the weights of ten points in training that answer a clean validation set best |
| `epochs-xK` | K times as many epochs |
| `adversarial-pixel-E` | on images changed by up to E/255 to raise the loss (FGSM; Goodfellow et al., 2015) |
| `adversarial-feature-E` | on image features changed by E times their length to raise the loss (Miyato et al., 2017) |
| `staged-unfreezing` | the projector alone in the first half of the steps, all that the recipe trains in the second |
"""

from __future__ import annotations

from collections.abc import Callable

from mmguard.auditing.attacks.base import Attack, Factory, Training
from mmguard.errors import ConfigError


def _plain(name: str, training: Training) -> Factory:
    """A factory of an attack without a strength."""

    def factory(strength: str | None) -> Attack:
        if strength is not None:
            raise ConfigError(f"attack {name}-{strength}: {name} has no strength, write {name} alone")
        return Attack(name, training=training)

    return factory


def _strong(
    name: str,
    training: Callable[[float], Training],
    bounds: tuple[float, float],
    usual: float,
    *,
    sign: str = "",
) -> Factory:
    """A factory of an attack with a strength, a number between bounds behind a sign; `usual` is for messages."""
    low, high = bounds

    def factory(strength: str | None) -> Attack:
        try:
            value = float(strength.removeprefix(sign)) if strength and strength.startswith(sign) else low - 1
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            given = f"{name}-{strength}" if strength else name
            raise ConfigError(
                f"attack {given}: behind {name}-{sign} stands a number from {low:g} to {high:g}, "
                f"as in {name}-{sign}{usual:g}"
            )
        return Attack(f"{name}-{sign}{value:g}", training=training(value))

    return factory


TRAINING_ATTACKS: dict[str, Factory] = {
    "early-stop": _plain("early-stop", Training(keep_best=True)),
    "epochs": _strong("epochs", lambda factor: Training(epochs=factor), (0.1, 10), 2, sign="x"),
    "adversarial-pixel": _strong("adversarial-pixel", lambda levels: Training(pixels=levels), (0.5, 64), 4),
    "adversarial-feature": _strong("adversarial-feature", lambda share: Training(features=share), (0.001, 1), 0.1),
    "staged-unfreezing": _plain("staged-unfreezing", Training(staged=True)),
}
"""The attacks on training by family."""
