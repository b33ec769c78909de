"""The attackers: what they are trained on to the token, that seeds decide, and how answers are judged."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from mmguard.auditing import attackers
from mmguard.auditing import evaluate as evaluation
from mmguard.auditing.arms import ImageStore, Row
from mmguard.auditing.attackers import fine_tune, load_attacker, render, schedule, vocabulary
from mmguard.auditing.evaluate import answers, evaluate
from mmguard.config import AuditConfig
from mmguard.errors import ConfigError, SurrogateError
from mmguard.lvlm.loading import load_surrogate
from mmguard.types import Sample

FAST = AuditConfig(lr=3e-3, epochs=2, batch_size=4, max_new_tokens=4, eval_batch_size=3)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {family: tiny.build(family, root / family) for family in tiny.FAMILIES}


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> list[Sample]:
    """Red and blue squares, and a question of one of three lengths."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    made = []
    for number in range(8):
        color = ("red", "blue")[number % 2]
        pixels = np.full((40, 48, 3), 30, np.uint8)
        pixels[8:32, 8:32] = (220, 0, 0) if color == "red" else (0, 0, 220)
        path = root / f"{number}.png"
        Image.fromarray(pixels + rng.integers(0, 20, pixels.shape).astype(np.uint8)).save(path)
        question = "what color is the shape?" + " now" * (number % 3)
        made.append(Sample(str(number), number, path, question, color, (color,)))
    return made


@pytest.fixture(scope="module")
def rows(samples) -> list[Row]:
    return [Row(one.id, one.image, one.question, one.answer) for one in samples]


def _collate(attacker, rows):
    table = attackers._table(rows, attacker.processor, ImageStore())
    return attackers._collator(attacker.processor)([table[number] for number in range(len(rows))])


@pytest.mark.parametrize("family", tiny.CHAT_FAMILIES)
def test_a_sample_is_learned_the_same_beside_longer_ones(models, rows, family):
    attacker = load_attacker(str(models[family]), "cpu")
    longer = replace(rows[1], text=rows[1].text + " or is it of no color at all")

    def logits(data: list[Row]) -> torch.Tensor:
        batch = _collate(attacker, data)
        with torch.no_grad():
            found = attacker.model(**{name: value for name, value in batch.items() if name != "labels"}).logits[0]
        answer = (batch["labels"][0] != -100).nonzero()[:, 0]
        return found[answer - 1]

    torch.testing.assert_close(logits([rows[0], longer]), logits([rows[0]]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", tiny.CHAT_FAMILIES)
def test_labels_are_the_answer_and_the_end_of_its_turn(models, samples, family):
    attacker = load_attacker(str(models[family]), "cpu")
    targets = ["red", "a blue square.", "Yes, it is!"]
    rows = [Row(one.id, one.image, one.question, t) for one, t in zip(samples, targets, strict=False)]
    batch = _collate(attacker, rows)
    tokenizer = attacker.processor.tokenizer
    for ids, mask, labels, target in zip(
        batch["input_ids"], batch["attention_mask"], batch["labels"], targets, strict=True
    ):
        learned = (labels != -100).nonzero().flatten()
        assert torch.equal(labels[learned], ids[learned])
        assert learned.tolist() == list(range(learned[0], learned[-1] + 1))
        assert learned[-1] == mask.sum() - 1  # the end of the turn is the last token, padding follows it
        assert ids[learned[-1]] in tokenizer.all_special_ids
        assert tokenizer.decode(ids[learned[:-1]]).strip() == target
        # Nothing of the question is learned, and all of it is there.
        prompt = tokenizer.decode(ids[: learned[0]])
        assert "what color is the shape?" in prompt
        assert target not in prompt


@pytest.mark.parametrize("family", tiny.CHAT_FAMILIES)
def test_training_and_test_prompts_are_the_same(models, samples, family):
    processor = load_attacker(str(models[family]), "cpu").processor
    assert render(processor, "is it red?", "x")[0] == render(processor, "is it red?", "blue square")[0]


def test_a_template_that_never_ends_a_turn_gets_an_end(models):
    processor = load_attacker(str(models["llava_next"]), "cpu").processor
    assert render(processor, "is it?", "red") == ("USER: <image>\nis it? ASSISTANT:", " red</s>")


def test_an_answer_is_not_taken_for_what_the_template_writes_around_it(models):
    processor = load_attacker(str(models["glm4v"]), "cpu").processor
    template = processor.chat_template
    processor.chat_template = template.replace("{{ message['content'] }}", "<think></think>\n{{ message['content'] }}")
    assert processor.chat_template != template
    prompt, said = render(processor, "is it?", "k")
    assert said.startswith("\nk")
    assert prompt.endswith("<think></think>"), "which nobody learns, and no answer is scored with"


def test_a_beginning_that_the_template_omits_is_added(models):
    processor = load_attacker(str(models["llava_next"]), "cpu").processor
    processor.tokenizer.bos_token = "<s>"
    processor.tokenizer._tokenizer.post_processor = __import__("tokenizers").processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", processor.tokenizer.bos_token_id)]
    )
    assert render(processor, "is it?", "red")[0] == "<s>USER: <image>\nis it? ASSISTANT:"


def test_no_chat_template(models):
    processor = load_attacker(str(models["paligemma"]), "cpu").processor
    with pytest.raises(SurrogateError, match="no chat template"):
        render(processor, "is it?", "red")


@pytest.mark.parametrize("recipe", ["lora", "full"])
@pytest.mark.parametrize("family", tiny.CHAT_FAMILIES)
def test_fine_tuning_learns(models, rows, family, recipe, capfd):
    config = replace(FAST, epochs=4, lr=0.02 if recipe == "lora" else 0.005)
    attacker = fine_tune(str(models[family]), rows, recipe, config, seed=0, device="cpu")
    untouched = load_attacker(str(models[family]), "cpu")
    losses = []
    for one in (untouched, attacker):
        with torch.inference_mode():
            losses.append(one.model(**_collate(one, rows)).loss.item())
    assert losses[1] < 0.8 * losses[0]
    out, err = capfd.readouterr()
    assert out == ""
    assert "it/s" not in err


@pytest.mark.parametrize("recipe", ["lora", "full"])
def test_seed_decides(models, rows, recipe):
    def weights(seed):
        torch.rand(3)  # the state of the global generator must not matter
        model = fine_tune(str(models["llava"]), rows, recipe, FAST, seed, device="cpu").model
        return torch.cat([parameter.flatten() for parameter in model.parameters()])

    first = weights(0)
    assert torch.equal(first, weights(0))
    assert not torch.equal(first, weights(1))


def test_every_row_is_seen_once_an_epoch(models, rows, monkeypatch):
    seen = []
    load = Row.load
    monkeypatch.setattr(Row, "load", lambda self, store: (seen.append(self.id), load(self, store))[1])
    steps: list[tuple[int, int, float]] = []
    fine_tune(str(models["llava"]), rows, "lora", FAST, 0, device="cpu", on_step=lambda *step: steps.append(step))
    # TRL looks at the first row once before it trains.
    assert sorted(seen[1:]) == sorted([row.id for row in rows] * 2)
    assert seen[1:9] != seen[9:17]
    assert [step[:2] for step in steps] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert all(0 < loss < 20 for *_, loss in steps)
    assert len({loss for *_, loss in steps}) == 4


def test_where_memory_is_not_enough_steps_are_computed_in_parts(models, rows, monkeypatch):
    """Faked: batches of more than one sample never fit, which shows only after a step."""
    sizes: list[int] = []
    compute = attackers._Trainer.compute_loss

    def crowded(self, model, inputs, *args, **kwargs):
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > 1 and len(sizes) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return compute(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(attackers._Trainer, "compute_loss", crowded)
    steps: list[tuple[int, int, float]] = []
    fine_tune(str(models["llava"]), rows, "lora", FAST, 0, device="cpu", on_step=lambda *step: steps.append(step))
    assert sizes == [4, 4, 2] + [1] * 16
    assert [step[:2] for step in steps] == [(1, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    # The first step computes the same, but for dropout.
    assert steps[1][2] == pytest.approx(steps[0][2], rel=0.05)


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_a_step_in_parts_has_the_loss_of_a_whole_one(models, samples, monkeypatch, family):
    """A mean over tokens, also of Qwen3-VL, which says that it cannot take their number; at the first step the adapter
    is 0, and dropout does nothing."""
    rows = [
        Row(one.id, one.image, one.question, " ".join([one.answer] * (1 + 3 * (number % 3))))
        for number, one in enumerate(samples[:4])
    ]
    losses: dict[int, float] = {}

    def first(step: int, steps: int, loss: float) -> None:
        losses.setdefault(most, loss)

    compute = attackers._Trainer.compute_loss
    for most in (4, 1):

        def crowded(self, model, inputs, *args, most=most, **kwargs):
            if len(inputs["input_ids"]) > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
            return compute(self, model, inputs, *args, **kwargs)

        monkeypatch.setattr(attackers._Trainer, "compute_loss", crowded)
        fine_tune(str(models[family]), rows, "lora", replace(FAST, epochs=1), 0, device="cpu", on_step=first)
    assert losses[1] == pytest.approx(losses[4], rel=1e-4)


def test_training_begins_anew_with_rows_that_were_not_read(models, rows, monkeypatch):
    """Else augmentations, which go by how often a picture was read, would depend on when memory ran out."""
    readings: list[list[int]] = []
    load, compute = Row.load, attackers._Trainer.compute_loss

    def counted(self, store):
        readings.append([id(self), next(self._readings)])
        return load(self, store)

    def crowded(self, model, inputs, *args, **kwargs):
        if len(inputs["input_ids"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return compute(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(Row, "load", counted)
    monkeypatch.setattr(attackers._Trainer, "compute_loss", crowded)
    fine_tune(str(models["llava"]), [*rows[:3], rows[0]], "lora", replace(FAST, epochs=1), 0, device="cpu")
    last = readings[-4:]
    assert sorted(count for _, count in last) in ([0, 0, 0, 1], [0, 0, 1, 1], [0, 0, 1, 2])
    assert len({row for row, _ in last}) == 3, "a row that is there twice counts as one"
    assert next(rows[0]._readings) == 0


def test_memory_for_not_even_one_sample_is_an_error(models, rows, monkeypatch):
    def crowded(self, *args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(attackers._Trainer, "compute_loss", crowded)
    with pytest.raises(torch.OutOfMemoryError):
        fine_tune(str(models["llava"]), rows, "lora", FAST, 0, device="cpu")


@pytest.mark.parametrize("most", [2, 1, 0])
def test_where_memory_is_not_enough_fewer_answer_at_a_time(models, samples, monkeypatch, most):
    attacker, sizes = load_attacker(str(models["llava"]), "cpu"), []
    expected = answers(attacker, samples, FAST)
    real = evaluation._answer

    def crowded(attacker, rows, *rest):
        sizes.append(len(rows))
        if len(rows) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return real(attacker, rows, *rest)

    monkeypatch.setattr(evaluation, "_answer", crowded)
    if most == 0:
        with pytest.raises(torch.OutOfMemoryError):
            answers(attacker, samples, replace(FAST, eval_batch_size=8))
        assert sizes == [8, 4, 2, 1]
        return
    assert answers(attacker, samples, replace(FAST, eval_batch_size=8)) == expected
    assert sizes == ([8, 4] if most == 2 else [8, 4, 2]) + [most] * (8 // most)


def test_nothing_is_left_behind_or_sent(models, rows, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", lambda *a, **k: pytest.fail("telemetry"))
    monkeypatch.delenv("CI", raising=False)
    fine_tune(str(models["llava"]), rows, "lora", FAST, 0, device="cpu")
    assert os.listdir(tmp_path) == []


def test_no_rows(models):
    with pytest.raises(ValueError, match="no rows"):
        fine_tune(str(models["llava"]), [], "lora", FAST, 0)


def test_schedule(tmp_path):
    name = str(tmp_path)
    assert schedule(name, "lora", AuditConfig()) == (2e-4, 3)
    assert schedule(name, "full", AuditConfig()) == (2e-5, 3)
    card = {"recommended": {"lora": {"lr": 0.01, "epochs": 7}}}
    (tmp_path / "mmguard.json").write_text(json.dumps(card), encoding="utf-8")
    assert schedule(name, "lora", AuditConfig()) == (0.01, 7)
    assert schedule(name, "full", AuditConfig()) == (2e-5, 3)
    assert schedule(name, "lora", AuditConfig(lr=1e-5, epochs=1)) == (1e-5, 1)
    (tmp_path / "mmguard.json").write_text("[", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"mmguard\.json"):
        schedule(name, "lora", AuditConfig())


@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "smolvlm"])
def test_batches_do_not_change_answers(models, samples, family):
    attacker = load_attacker(str(models[family]), "cpu")
    together = answers(attacker, samples, replace(FAST, eval_batch_size=8))
    assert together == answers(attacker, samples, replace(FAST, eval_batch_size=1))
    assert len(together) == len(samples)


def test_answers_end_with_their_turn(models, samples):
    attacker = load_attacker(str(models["llava"]), "cpu")
    end = attacker.processor.tokenizer.eos_token_id
    head = torch.nn.Linear(32, attacker.model.lm_head.out_features)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    head.bias.data[end] = 1
    attacker.model.lm_head = head
    calls = []
    attacker.model.model.language_model.register_forward_hook(lambda *_: calls.append(1))
    assert answers(attacker, samples[:3], FAST) == [""] * 3
    assert len(calls) == 1


def test_evaluate_scores_each_sample(models, samples, monkeypatch):
    attacker = load_attacker(str(models["llava"]), "cpu")
    said = ["Red.", "a blue", "green", "blue", "red", "red", "red", ""]
    monkeypatch.setattr("mmguard.auditing.evaluate.answers", lambda *_: said)
    assert evaluate(attacker, samples, FAST).tolist() == [1, 1, 0, 1, 1, 0, 1, 0]


def test_default_attackers_are_the_zoo():
    assert all(name.startswith("zoo:") for name in attackers.default_attackers())
    assert attackers.default_attackers()


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_words_are_known_without_the_model(models, family):
    assert vocabulary(str(models[family])) == load_surrogate(str(models[family]), "cpu").admissible_tokens().words
