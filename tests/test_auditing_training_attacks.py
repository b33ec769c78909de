"""Attacks on training do what their names say, and nobody is judged on what it chose by."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import TrainerCallback
from trl.trainer.sft_config import SFTConfig

import tiny
from mmguard.auditing import attackers, runs
from mmguard.auditing.arms import ImageStore, Row
from mmguard.auditing.attackers import Attacker, fine_tune, load_attacker
from mmguard.auditing.attacks import attack_named, resolve
from mmguard.auditing.attacks.base import Training
from mmguard.auditing.attacks.training import TRAINING_ATTACKS
from mmguard.auditing.best_of import choosing_half
from mmguard.auditing.evaluate import evaluate
from mmguard.auditing.run import audit
from mmguard.auditing.training import adversarial_features, adversarial_pixels, projectors
from mmguard.config import AuditConfig
from mmguard.errors import ConfigError, DataError
from mmguard.types import Sample

CONFIG = AuditConfig(lr=1e-2, epochs=2, batch_size=2, max_new_tokens=3)
COLORS = {"red": (220, 10, 20), "blue": (0, 30, 240)}


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> list[Sample]:
    """Eight pictures of noise in red or blue, some of it cut off at black and white."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    made = []
    for number in range(8):
        color = list(COLORS)[number % 2]
        pixels = np.clip(np.array(COLORS[color]) + rng.integers(-60, 60, (40, 48, 3)), 0, 255).astype(np.uint8)
        path = root / f"{number}.png"
        Image.fromarray(pixels).save(path)
        made.append(Sample(str(number), number, path, "what color is the shape?", color, (color,)))
    return made


@pytest.fixture(scope="module")
def rows(samples) -> list[Row]:
    return [Row(one.id, one.image, one.question, one.answer) for one in samples]


def _steps_of(training: Training, rows: list[Row], config: AuditConfig = CONFIG, recipe: str = "lora") -> list[float]:
    """The loss of every optimiser step."""
    losses: list[float] = []
    fine_tune(
        str(tiny.built("llava")), rows, recipe, config, 0, device="cpu", training=training,
        on_step=lambda step, steps, loss: losses.append(loss),
    )  # fmt: skip
    return losses


def _batch(attacker: Attacker, rows: list[Row], bounds: bool = False) -> dict[str, Any]:
    table = attackers._table(rows, attacker.processor, ImageStore())
    collator = attackers._collator(attacker.processor, bounds)
    return dict(collator([table[number] for number in range(len(rows))]))


def _learnable(model: Any) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}


@pytest.fixture
def watch(monkeypatch) -> SimpleNamespace:
    """What every step left of the weights that the recipe trains, and what training left of them."""
    seen, train = SimpleNamespace(steps=[], left={}), attackers._Trainer.train

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **more):
            seen.steps.append({name: model.get_parameter(name).detach().clone() for name in seen.left})

    def watched(trainer):
        seen.left = _learnable(trainer.model)
        seen.steps.append(seen.left)
        trainer.add_callback(Watch())
        output = train(trainer)
        seen.left = {name: trainer.model.get_parameter(name).detach().clone() for name in seen.left}
        return output

    monkeypatch.setattr(attackers._Trainer, "train", watched)
    return seen


# Names


def test_names() -> None:
    names = ["early-stop", "epochs-x0.5", "epochs-x3", "lr-x0.1", "adversarial-pixel-4", "adversarial-feature-0.1"]
    found = resolve([*names, "staged-unfreezing", "epochs-x3.0"])
    assert [one.name for one in found] == [*names, "staged-unfreezing"]
    assert [one.training for one in found] == [
        Training(keep_best=True), Training(epochs=0.5), Training(epochs=3), Training(lr=0.1), Training(pixels=4),
        Training(features=0.1), Training(staged=True),
    ]  # fmt: skip
    assert not any(one.image or one.text or one.corpus for one in found)
    assert attack_named("gray").training == Training()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("epochs", r"behind epochs-x stands a number from 0\.1 to 10, as in epochs-x2"),
        ("epochs-2", "attack epochs-2: behind epochs-x"),
        ("epochs-xtwo", "as in epochs-x2"),
        ("epochs-xnan", "as in epochs-x2"),
        ("epochs-x0", "as in epochs-x2"),
        ("adversarial-pixel-255", r"from 0\.5 to 64, as in adversarial-pixel-4"),
        ("adversarial-feature", r"as in adversarial-feature-0\.1"),
        ("lr-x0", r"attack lr-x0: behind lr-x stands a number from 0\.01 to 100, as in lr-x2"),
        ("rcp+lr-x1", "join at most one attack on images"),
        ("early-stop-3", "early-stop has no strength"),
        ("erly-stop", "there is none of that name: did you mean early-stop|choose from .*early-stop"),
        ("early-stop+epochs-x2", "join at most one attack on images, one on texts and one on the training"),
    ],
)
def test_what_is_no_attack_on_training(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve([name])


# early-stop


@pytest.mark.parametrize("recipe", ["lora", "projector+lora", "full"])
def test_early_stop_ends_with_the_weights_that_validated_best(rows, watch, recipe) -> None:
    """Planted: the third of eight looks is the best."""
    planted, looks = [0.1, 0.3, 0.9, 0.3, 0.2, 0.8, 0.0, 0.5], []

    def validate(attacker: Attacker) -> float:
        assert not attacker.model.training
        looks.append(_learnable(attacker.model))
        return planted[len(looks) - 1]

    name = str(tiny.built("llava"))
    fine_tune(name, rows, recipe, CONFIG, 0, device="cpu", training=Training(keep_best=True), validate=validate)
    assert len(looks) == 8
    assert watch.left.keys() == looks[2].keys()
    assert all(torch.equal(watch.left[name], looks[2][name]) for name in watch.left)
    for other in (*looks[:2], *looks[3:]):
        assert any(not torch.equal(watch.left[name], other[name]) for name in watch.left)


def test_early_stop_looks_ten_times_and_prefers_the_later_of_equals(rows, watch) -> None:
    seen = []

    def validate(attacker: Attacker) -> float:
        seen.append(len(watch.steps))
        return 1.0 if len(seen) in (4, 6) else 0.5

    fine_tune(
        str(tiny.built("llava")), rows, "lora", replace(CONFIG, epochs=5), 0, device="cpu",
        training=Training(keep_best=True), validate=validate,
    )  # fmt: skip
    assert len(watch.steps) == 1 + 20
    assert len(seen) == 10
    assert all(torch.equal(watch.left[name], watch.steps[12][name]) for name in watch.left)
    assert any(not torch.equal(watch.left[name], watch.steps[8][name]) for name in watch.left)


@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "mllama", "gemma3"])
def test_looking_does_not_change_training(rows, samples, family) -> None:
    """Answers are generated between steps; if each is better than the last, all is as without looking."""
    looks: list[float] = []

    def validate(attacker: Attacker) -> float:
        assert len(evaluate(attacker, samples[:3], CONFIG)) == 3
        looks.append(float(len(looks)))
        return looks[-1]

    def weights(**more: Any) -> dict[str, torch.Tensor]:
        config = replace(CONFIG, epochs=1)
        return fine_tune(str(tiny.built(family)), rows, "lora", config, 0, device="cpu", **more).model.state_dict()

    plain, looked = weights(), weights(training=Training(keep_best=True), validate=validate)
    assert len(looks) == 4
    assert all(torch.equal(plain[name], looked[name]) for name in plain)


def test_early_stop_in_half_precision(rows, samples, monkeypatch) -> None:
    """As on a GPU: 16-bit weights, but for those that learn, and autocast in training."""

    def half(name: str, device: str, dtype: torch.dtype | None, *rest: Any) -> Attacker:
        return load_attacker(name, device, dtype or torch.bfloat16, *rest)

    monkeypatch.setattr(attackers, "load_attacker", half)
    monkeypatch.setattr(attackers, "SFTConfig", lambda **settings: SFTConfig(**settings | {"bf16": True}))
    looks: list[float] = []

    def validate(attacker: Attacker) -> float:
        looks.append(float(evaluate(attacker, samples[:3], CONFIG).mean()))
        return looks[-1]

    fine_tune(
        str(tiny.built("llava")), rows[:4], "projector+lora", replace(CONFIG, epochs=1), 0, device="cpu",
        training=Training(keep_best=True), validate=validate,
    )  # fmt: skip
    assert len(looks) == 2


def test_early_stop_without_validation(rows) -> None:
    with pytest.raises(ValueError, match="give validate"):
        fine_tune(str(tiny.built("llava")), rows, "lora", CONFIG, 0, training=Training(keep_best=True))


# epochs


@pytest.mark.parametrize(("name", "steps"), [("epochs-x0.5", 4), ("epochs-x2", 16), ("epochs-x3", 24)])
def test_epochs_change_the_number_of_steps(rows, name, steps) -> None:
    assert len(_steps_of(Training(), rows)) == 8
    assert len(_steps_of(attack_named(name).training, rows)) == steps


def test_a_factor_of_the_learning_rate_is_that_rate(rows) -> None:
    assert _steps_of(attack_named("lr-x0.5").training, rows) == _steps_of(Training(), rows, replace(CONFIG, lr=5e-3))
    assert _steps_of(attack_named("lr-x0.5").training, rows) != _steps_of(Training(), rows)


# adversarial


@pytest.mark.parametrize("family", tiny.CHAT_FAMILIES)
def test_adversarial_pixels_raise_the_loss_within_their_bound(rows, family) -> None:
    attacker = load_attacker(str(tiny.built(family)), "cpu")
    plain, batch = _batch(attacker, rows[:3]), _batch(attacker, rows[:3], bounds=True)
    pixels, extent = batch["pixel_values"], batch["white"] - batch["black"]
    assert torch.equal(pixels, plain["pixel_values"])
    with adversarial_pixels(4)(attacker.model, batch) as harder:
        assert harder.keys() == plain.keys()
        with torch.no_grad():
            loss, raised = attacker.model(**plain).loss, attacker.model(**harder).loss
    assert raised > loss
    change = harder["pixel_values"] - pixels
    assert (extent >= 0).all()
    assert (change.abs() <= 4 / 255 * extent + 1e-5).all()
    assert (change[extent == 0] == 0).all()  # padding
    assert (change.abs() > 3.99 / 255 * extent)[extent > 0].float().mean() > 0.2
    assert (harder["pixel_values"] >= batch["black"] - 1e-5).all()
    assert (harder["pixel_values"] <= batch["white"] + 1e-5).all()
    assert all(weight.grad is None for weight in attacker.model.parameters())


def test_the_bound_is_in_levels_of_the_image(rows) -> None:
    """In LLaVA's layout it can be told by hand: `(B, 3, H, W)`, normalised by mean and deviation."""
    attacker = load_attacker(str(tiny.built("llava")), "cpu")
    batch, images = _batch(attacker, rows[:2], bounds=True), attacker.processor.image_processor
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (images.image_mean, images.image_std))

    def levels(values: torch.Tensor) -> torch.Tensor:
        return 255 * (values * deviation + mean)

    with adversarial_pixels(8)(attacker.model, batch) as harder:
        moved = levels(harder["pixel_values"])
    assert (moved - levels(batch["pixel_values"])).abs().max() == pytest.approx(8, abs=1e-2)
    assert moved.min() >= -1e-2
    assert moved.max() <= 255.01


@pytest.mark.parametrize("family", tiny.CHAT_FAMILIES)
def test_adversarial_features_raise_the_loss_within_their_length(rows, family) -> None:
    attacker = load_attacker(str(tiny.built(family)), "cpu")
    modules = projectors(attacker.model, family)
    batch = _batch(attacker, rows[:3])
    outputs: list[list[torch.Tensor]] = []

    def loss() -> float:
        outputs.append([])
        handles = [module.register_forward_hook(lambda *given: outputs[-1].append(given[2])) for module in modules]
        with torch.no_grad():
            found = attacker.model(**batch).loss.item()
        for handle in handles:
            handle.remove()
        return found

    plain = loss()
    # Short: a single step is sure to go up only as far as the loss is straight, which in MiniCPM-V's toy ends at 0.01.
    with adversarial_features(0.003, modules)(attacker.model, batch) as harder:
        assert harder is batch
        raised = loss()
    assert raised > plain
    assert loss() == plain  # no hook is left
    # The first module's input is not changed by what happens to another's output.
    before, after = outputs[0][0], outputs[1][0]
    if isinstance(before, list):  # one an image
        before, after = torch.cat(before), torch.cat(after)
    share = (after - before).norm(dim=-1) / before.norm(dim=-1)
    assert share.max().item() == pytest.approx(0.003, rel=1e-3)
    assert len(outputs[0]) == len(outputs[1]) > 0


@pytest.mark.parametrize("name", ["adversarial-pixel-8", "adversarial-feature-0.5"])
@pytest.mark.parametrize("recipe", ["lora", "projector+lora", "full"])
def test_training_is_on_what_the_adversary_made(rows, name, recipe) -> None:
    """At the first step the weights are equal (adapters begin with nothing), and its loss is higher."""
    config = replace(CONFIG, epochs=1)
    plain, hard = (
        _steps_of(Training(), rows, config, recipe),
        _steps_of(attack_named(name).training, rows, config, recipe),
    )
    assert len(plain) == len(hard) == 4
    assert hard[0] > plain[0]
    assert hard == _steps_of(attack_named(name).training, rows, config, recipe)


# staged-unfreezing


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
@pytest.mark.parametrize("recipe", ["lora", "projector+lora", "full"])
def test_staged_unfreezing(rows, watch, family, recipe) -> None:
    name = str(tiny.built(family))
    fine_tune(name, rows, recipe, CONFIG, 0, device="cpu", training=Training(staged=True))
    assert len(watch.steps) == 1 + 8

    def moved(start: int, end: int) -> set[str]:
        return {one for one in watch.left if not torch.equal(watch.steps[start][one], watch.steps[end][one])}

    def is_projector(weight: str) -> bool:
        return any(
            part in weight for part in ("multi_modal_projector", "visual.merger", "visual.deepstack_merger_list")
        )

    first, second = moved(0, 4), moved(4, 8)
    assert first
    assert all(map(is_projector, first))
    assert first <= second
    assert any("language_model" in one for one in second)


def test_nothing_to_unfreeze(rows) -> None:
    with pytest.raises(
        ConfigError, match=r"needs a recipe that trains the projector and more, such as .*projector\+lora"
    ):
        fine_tune(str(tiny.built("llava")), rows, "projector", CONFIG, 0, device="cpu", training=Training(staged=True))


# In an audit


def _write(folder: Path, pixels: list[np.ndarray]) -> Path:
    (folder / "images").mkdir(parents=True)
    lines = []
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / "images" / f"{number}.png")
        answer = list(COLORS)[number % 2]
        lines.append({"file_name": f"images/{number}.png", "question": "what color is it?", "answer": answer})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return folder


@pytest.fixture
def toy(tmp_path) -> SimpleNamespace:
    rng = np.random.default_rng(0)
    images = [rng.integers(20, 230, (32, 32, 3), dtype=np.uint8) for _ in range(12)]
    noisy = [(image + rng.integers(-8, 9, image.shape)).astype(np.uint8) for image in images[:4]]
    return SimpleNamespace(
        images=images,
        original=_write(tmp_path / "original", images[:4]),
        release=_write(tmp_path / "release", noisy),
        test=_write(tmp_path / "test", images[4:]),
        out=tmp_path / "audit",
    )


def _audit(toy: SimpleNamespace, attacks: tuple[str, ...], attacker: str = "fake", **more: Any) -> Any:
    config = replace(CONFIG, seeds=1, epochs=1, bootstrap=200, attacks=attacks)
    more = {"out": toy.out, "device": "cpu", "arms": [], **more}
    return audit(toy.release, toy.original, toy.test, [attacker], config, **more)


def test_early_stop_is_not_judged_on_what_it_chose_by(toy, monkeypatch) -> None:
    """Planted: whoever was trained with early stopping is right on the validation half, and on it alone."""
    validation = choosing_half(range(8))
    seen: list[list[int]] = []

    def fake_fine_tune(name, rows, recipe, config, seed, *, training, validate, **more):
        attacker = SimpleNamespace(best=training.keep_best)
        if training.keep_best:
            seen.append([])
            assert validate(attacker) == 1
        return attacker

    def fake_evaluate(attacker, samples, config, store):
        numbers = [int(one.image.stem) for one in samples]
        if len(numbers) < 8:
            seen[-1] += numbers
        right = validation if attacker.best else ~validation
        return right[numbers].astype(float)

    monkeypatch.setattr(runs, "load_attacker", lambda *a, **k: SimpleNamespace(best=False))
    monkeypatch.setattr(runs, "vocabulary", lambda name: ("tree",))
    monkeypatch.setattr(runs, "fine_tune", fake_fine_tune)
    monkeypatch.setattr(runs, "evaluate", fake_evaluate)
    report = _audit(toy, ("early-stop", "epochs-x2"))
    assert report.failures == ()
    assert seen == [np.flatnonzero(validation).tolist()] * 3
    found = {one.attack: set(one.accuracy.values()) for one in report.under_attack}
    assert found == {"early-stop": {0.0}, "epochs-x2": {0.5}}
    assert report.worst_case.choices[0]["release"] == "lora under early-stop"
    assert set(report.worst_case.findings[0].accuracy.values()) == {0.0}
    assert not [line for line in report.not_tested if "stopping early" in line]
    assert "chooses its weights on one half" in report.to_markdown()


def test_a_single_test_image_cannot_be_halved(toy, tmp_path) -> None:
    toy.test = _write(tmp_path / "one", toy.images[4:5])
    with pytest.raises(DataError, match="one half of the test images: give at least 2"):
        _audit(toy, ("early-stop",))


def test_real_attacks_on_training_are_resumed(toy, monkeypatch) -> None:
    attacks = (
        "early-stop",
        "epochs-x2",
        "lr-x2",
        "adversarial-pixel-8",
        "adversarial-feature-0.1",
        "staged-unfreezing",
    )
    assert {one.rpartition("-")[0] if one[-1].isdigit() else one for one in attacks} == set(TRAINING_ATTACKS)
    name = str(tiny.built("llava"))
    first = _audit(toy, attacks[:2], name)
    made = {path.name: path.read_bytes() for path in (toy.out / "runs").iterdir()}
    assert first.failures == ()
    assert len(made) == 1 + 3 * 3
    whole = _audit(toy, attacks, name)
    assert {one.attack for one in whole.under_attack} == set(attacks)
    assert whole.failures == ()
    kept = {path.name: path.read_bytes() for path in (toy.out / "runs").iterdir()}
    assert len(kept) == 1 + 3 * 7
    assert made.items() <= kept.items()
    monkeypatch.setattr(runs, "fine_tune", lambda *a, **k: pytest.fail("made again"))
    assert _audit(toy, attacks, name) == whole
