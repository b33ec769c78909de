"""Attacks on training: what a thief does, not to the stolen data, but to the way of training on it.

| name | how the attacker trains |
|---|---|
| `early-stop` | keeps the weights of ten points in training that answer a clean validation set best |
| `epochs-xK` | K times as many epochs |
| `lr-xK` | at K times the learning rate |
| `adversarial-pixel-E` | on images changed by up to E/255 to raise the loss (FGSM; Goodfellow et al., 2015) |
| `adversarial-feature-E` | on image features changed by E times their length to raise the loss (Miyato et al., 2017) |
| `staged-unfreezing` | the projector alone in the first half of the steps, all that the recipe trains in the second |
"""

from __future__ import annotations

from mmguard.auditing.attacks.base import Factory, Training, plain, strong

TRAINING_ATTACKS: dict[str, Factory] = {
    "early-stop": plain("early-stop", training=Training(keep_best=True)),
    "epochs": strong(
        "epochs", lambda factor: {"training": Training(epochs=factor)}, float, (0.1, 10), "epochs-x2", sign="x"
    ),
    "lr": strong("lr", lambda factor: {"training": Training(lr=factor)}, float, (0.01, 100), "lr-x2", sign="x"),
    "adversarial-pixel": strong(
        "adversarial-pixel",
        lambda levels: {"training": Training(pixels=levels)},
        float,
        (0.5, 64),
        "adversarial-pixel-4",
    ),
    "adversarial-feature": strong(
        "adversarial-feature",
        lambda share: {"training": Training(features=share)},
        float,
        (0.001, 1),
        "adversarial-feature-0.1",
    ),
    "staged-unfreezing": plain("staged-unfreezing", training=Training(staged=True)),
}
"""The attacks on training by family."""
