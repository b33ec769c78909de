"""The whole audit on a toy release, and that an interrupted one goes on where it stopped."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from os import PathLike, fsdecode
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from mmguard.auditing import run, runs
from mmguard.auditing.best_of import choosing_half
from mmguard.auditing.plan import plan_audit
from mmguard.auditing.run import audit
from mmguard.config import AuditConfig
from mmguard.errors import ConfigError, DataError, ReleaseError
from mmguard.runtime.devices import device_of
from mmguard.runtime.executor import Failed
from mmguard.runtime.progress import progress

CONFIG = AuditConfig(seeds=2, epochs=1, batch_size=4, lr=1e-2, max_new_tokens=3, bootstrap=200)


def _write(folder: Path, pixels: list[np.ndarray], questions: list[str]) -> Path:
    (folder / "images").mkdir(parents=True)
    rows = []
    for number, (image, question) in enumerate(zip(pixels, questions, strict=True)):
        Image.fromarray(image).save(folder / "images" / f"{number}.png")
        answer = ("red", "blue")[number % 2]
        rows.append({"file_name": f"images/{number}.png", "question": question, "answer": answer})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


@pytest.fixture
def toy(tmp_path) -> SimpleNamespace:
    """A dataset of eight images, a release that changes both image and text, and a test set."""
    rng = np.random.default_rng(0)
    images = [rng.integers(20, 230, (32, 32, 3), dtype=np.uint8) for _ in range(12)]
    noisy = [(image + rng.integers(-8, 9, image.shape)).astype(np.uint8) for image in images]
    question = "what color is the shape?"
    return SimpleNamespace(
        images=images,
        original=_write(tmp_path / "original", images[:8], [question] * 8),
        release=_write(tmp_path / "release", noisy[:8], [f"{question} river stone"] * 8),
        test=_write(tmp_path / "test", images[8:], [question] * 4),
        out=tmp_path / "audit",
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(tiny.build("llava", tmp_path_factory.mktemp("models") / "llava"))


@pytest.fixture
def fake(monkeypatch) -> list[tuple]:
    """Attackers without a model: right on as many test items as the arm deserves. Lists the runs made."""
    made: list[tuple] = []
    deserved = {"clean": 4, "release": 1, "random-noise": 4, "random-words": 4, "control": 4}

    def load_attacker(name, device="auto", dtype=None):
        if name.startswith("broken"):
            raise OSError("no such model")
        return SimpleNamespace(right=0)

    def fine_tune(name, rows, recipe, config, seed, *, device, store, on_step, training, validate):
        arm = "release" if "river" in rows[0].text else "clean"
        if rows[0].noise_like is not None:
            arm = "control" if "tree" in rows[0].text else "random-noise"
        elif "tree" in rows[0].text:
            arm = "random-words"
        on_step(1, 2, 2.0 + seed)
        on_step(2, 2, 1.0 + seed)
        made.append((name, recipe, arm, seed))
        if name == "interrupted" and len(made) == 4:
            raise KeyboardInterrupt
        return SimpleNamespace(right=deserved[arm])

    def evaluate(attacker, samples, config, store):
        return (np.arange(len(samples)) < attacker.right).astype(float)

    for function in (load_attacker, fine_tune, evaluate):
        monkeypatch.setattr(runs, function.__name__, function)
    monkeypatch.setattr(runs, "vocabulary", lambda name: ("tree",))
    return made


def _audit(toy, attackers=("fake",), config=CONFIG, **more):
    more = {"out": toy.out, "device": "cpu", **more}
    return audit(toy.release, toy.original, toy.test, attackers, config, **more)


def test_attacks_that_change_no_question_are_named(toy, fake):
    """Which has no full stop, and whose words any list of English words has."""
    for folder in (toy.original, toy.release):
        path = folder / "metadata.jsonl"
        path.write_text(path.read_text().replace("shape?", "shape"))
    report = _audit(toy, config=replace(CONFIG, attacks=("tail", "vocab", "last-2", "gray")))
    assert report.warnings == (
        "tail: changes 0 of 8 released questions, and so tests little of texts",
        "vocab: changes 0 of 8 released questions, and so tests little of texts",
    )


def test_a_plan_that_is_only_looked_at_tries_no_attack(toy, monkeypatch):
    monkeypatch.setattr("mmguard.auditing.plan._idle", lambda *_: pytest.fail("tried"))
    config = replace(CONFIG, attacks=("tail",))
    assert plan_audit(toy.release, toy.original, toy.test, ["fake"], config, device="cpu").runs


@pytest.mark.parametrize(("words", "tokens"), [(1, 32), (20, 159), (200, 256)])
def test_answers_may_be_as_long_as_those_of_the_test(toy, words, tokens):
    path = toy.test / "metadata.jsonl"
    path.write_text(path.read_text().replace('"red"', json.dumps(" ".join(["crimson"] * words))))
    config = replace(CONFIG, max_new_tokens=32)
    plan = plan_audit(toy.release, toy.original, toy.test, ["fake"], config, device="cpu")
    assert plan.runner.config.max_new_tokens == tokens
    assert plan.provenance["config"]["max_new_tokens"] == plan.runner.config.max_new_tokens


def test_a_part_of_the_release_is_enough_for_an_audit(toy, fake):
    report = _audit(toy, limit=5)
    assert (report.provenance["training images"], report.provenance["limit"]) == (5, 5)
    assert report.warnings == (
        "attackers saw no more than the first 5 released images: with more they may learn otherwise.",
    )
    whole = _audit(toy, limit=500)
    assert whole.provenance["training images"] == 8
    assert whole.warnings == ()
    assert len(fake) == 2 * 2 * 5, "other data makes other runs"


def test_end_to_end(toy, model, capfd):
    before = {path: path.read_bytes() for path in toy.release.rglob("*") if path.is_file()}
    report = _audit(toy, [model], out=None)
    (finding,) = report.findings
    assert report.failures == ()
    assert report.warnings == ()
    assert set(finding.accuracy) == {"clean", "release", "random-noise", "random-words", "control"}
    assert finding.matched == "control"
    assert finding.status == "unjudged"
    assert "No claim follows" in report.verdict
    assert report.provenance["training images"] == 8
    assert report.provenance["test samples"] == 4
    assert report.provenance["seeds"] == [0, 1]
    assert len(report.provenance["release data sha256"]) == 64
    again = _audit(toy, [model], out=None, arms=[]).findings[0]
    assert again.accuracy == {arm: finding.accuracy[arm] for arm in ("clean", "release", "control")}
    assert again.drop == finding.drop
    assert capfd.readouterr().out == ""
    assert before == {path: path.read_bytes() for path in toy.release.rglob("*") if path.is_file()}


def test_real_runs_are_resumed(toy, model, monkeypatch):
    first = _audit(toy, [model], arms=["control"])
    assert set(first.findings[0].accuracy) == {"clean", "release", "control"}
    for name in ("fine_tune", "evaluate", "load_attacker"):
        monkeypatch.setattr(runs, name, lambda *a, **k: pytest.fail("made again"))
    assert _audit(toy, [model], arms=["control"]) == first
    assert json.loads((toy.out / "report.json").read_text(encoding="utf-8")) == first.to_dict()


def test_effect(toy, fake):
    report = _audit(toy, config=replace(CONFIG, seeds=3))
    assert report.headline.beyond_control.value == pytest.approx(0.75)
    assert report.verdict.startswith("**Attackers lose** 75.0 points")
    assert len(fake) == len(set(fake)) == 15


ATTACKED = replace(CONFIG, attacks=("gray", "jpeg-50+punct"))


def test_attacks(toy, fake, monkeypatch):
    """Grayscale undoes the protection on half of what it cost; clean data and control bear it."""
    seen, real = [], runs.fine_tune

    def fine_tune(name, rows, recipe, config, seed, **more):
        attacker = real(name, rows, recipe, config, seed, **more)
        attack = rows[0].attack.name if rows[0].attack else None
        seen.append((attack, fake[-1][2], seed))
        return SimpleNamespace(right=3) if attack == "gray" and fake[-1][2] == "release" else attacker

    monkeypatch.setattr(runs, "fine_tune", fine_tune)
    # Right on an item of either half first, so that choosing and judging see the same.
    order = np.argsort(np.argsort(choosing_half(range(4)), kind="stable") % 2, kind="stable")
    monkeypatch.setattr(runs, "evaluate", lambda attacker, *_: (order < attacker.right).astype(float))
    report = _audit(toy, config=replace(ATTACKED, seeds=3))
    attacked = [(attack, arm) for attack, arm, _ in seen if attack]
    assert set(attacked) == {(attack, arm) for attack in ATTACKED.attacks for arm in ("clean", "release", "control")}
    assert len(seen) == len(set(seen)) == 15 + 2 * 9
    assert [one.attack for one in report.findings] == [None]
    assert [(one.attack, one.beyond_control.value) for one in report.under_attack] == [
        ("gray", pytest.approx(0.25)), ("jpeg-50+punct", pytest.approx(0.75)),
    ]  # fmt: skip
    assert report.headline.beyond_control.value == pytest.approx(0.75)
    (choice,) = report.worst_case.choices
    assert choice == {"clean": "lora", "control": "lora", "release": "lora under gray"}
    assert "in the worst case" in report.verdict
    assert "Without attacks they lose 75.0 points" in report.verdict
    text = report.to_markdown()
    assert "## Under attack" in text
    assert "| fake | best of 3 | chosen |" in text
    assert not [line for line in report.not_tested if "JPEG" in line or "grayscale" in line or "punctuation" in line]


def test_finished_runs_stay_valid_when_attacks_are_added(toy, fake):
    _audit(toy)
    before = sorted(path.name for path in (toy.out / "runs").iterdir())
    _audit(toy, config=ATTACKED)
    assert len(fake) == 10 + 2 * 6
    _audit(toy, config=replace(CONFIG, attacks=("punct+jpeg-50", "gray")))
    assert len(fake) == 10 + 2 * 6
    assert set(before) < {path.name for path in (toy.out / "runs").iterdir()}


def test_an_interrupted_audit_under_attack_goes_on(toy, fake, monkeypatch):
    real = runs.evaluate

    def evaluate(*arguments):
        if len(fake) == 15:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(runs, "evaluate", evaluate)
    with pytest.raises(KeyboardInterrupt):
        _audit(toy, config=ATTACKED)
    monkeypatch.setattr(runs, "evaluate", real)
    told: list[str] = []
    report = _audit(toy, config=ATTACKED, progress=lambda share, what: told.append(what))
    assert report.failures == ()
    assert len(fake) == 10 + 2 * 6 + 1  # the run that was cut off was made again, and no other
    assert told[0] == "fake lora control seed 0 under gray"
    assert "fake lora clean seed 1 under jpeg-50+punct" in told


def test_an_attack_that_fails_costs_itself_only(toy, fake, monkeypatch):
    real = runs.fine_tune

    def fine_tune(name, rows, recipe, *rest, **more):
        if rows[0].attack and rows[0].attack.name == "gray":
            raise RuntimeError("no such purifier")
        return real(name, rows, recipe, *rest, **more)

    monkeypatch.setattr(runs, "fine_tune", fine_tune)
    report = _audit(toy, config=ATTACKED)
    assert [one.attack for one in report.under_attack] == ["jpeg-50+punct"]
    assert [one.reason for one in report.failures] == ["lora clean seed 0 under gray: RuntimeError: no such purifier"]
    assert report.worst_case.findings[0].recipe == "best of 2"


def test_workers_attack_alike(toy, model):
    config = replace(CONFIG, seeds=1, attacks=("rcp+case",))
    alone, together = (_audit(toy, [model], config, out=toy.out / str(jobs), arms=[], jobs=jobs) for jobs in (1, 2))
    assert together == alone
    assert len(alone.under_attack) == 1
    kept, again = ({path.name: path.read_bytes() for path in (toy.out / str(n) / "runs").iterdir()} for n in (1, 2))
    assert kept == again
    assert len(kept) == 7


def test_unknown_attack(toy, fake):
    with pytest.raises(ConfigError, match="did you mean gray"):
        _audit(toy, config=replace(CONFIG, attacks=("grey",)))
    assert fake == []


def test_partial_scores_are_kept_to_the_bit(toy, fake, monkeypatch):
    shares = np.array([1, 0.9, 1 / 3, 12 / 13])
    monkeypatch.setattr(runs, "evaluate", lambda attacker, samples, config, store: shares)
    first = _audit(toy)
    assert first.findings[0].accuracy["clean"] == pytest.approx(shares.mean())
    monkeypatch.setattr(runs, "evaluate", lambda *_: pytest.fail("made again"))
    assert _audit(toy) == first


def test_losses_are_kept_and_a_run_without_them_still_counts(toy, fake):
    first = _audit(toy)
    (curve,) = (one for one in first.losses if one.arm == "release")
    assert (curve.steps, curve.mean, curve.low, curve.high) == ((1, 2), (2.5, 1.5), (2, 1), (3, 2))
    assert "Training loss of fake (lora)" in (toy.out / "report.html").read_text(encoding="utf-8")
    assert "losses" not in json.loads((toy.out / "report.json").read_text(encoding="utf-8"))
    assert _audit(toy).losses == first.losses
    for path in (toy.out / "runs").glob("*_release_*"):
        stored = json.loads(path.read_text(encoding="utf-8"))
        del stored["losses"]
        path.write_text(json.dumps(stored), encoding="utf-8")
    again = _audit(toy)
    assert len(fake) == 10
    assert again.findings == first.findings
    assert {one.arm for one in again.losses} == {"clean", "random-noise", "random-words", "control"}


def test_a_run_that_diverged_counts_and_is_named(toy, fake, monkeypatch):
    real = runs.fine_tune

    def fine_tune(name, rows, recipe, config, seed, *, on_step, **more):
        tuned = real(name, rows, recipe, config, seed, on_step=on_step, **more)
        if fake[-1][2:] == ("release", 1):
            on_step(2, 2, float("nan"))
        return tuned

    monkeypatch.setattr(runs, "fine_tune", fine_tune)
    for report in (_audit(toy), _audit(toy)):  # the second from the shelf
        (warning,) = report.warnings
        assert warning.startswith("training diverged")
        assert warning.endswith(": fake lora release seed 1")
        assert report.findings[0].seeds == 2
    page = (toy.out / "report.html").read_text(encoding="utf-8")
    assert "release diverged (1 seed)" in page
    assert "clean 1.5" in page


def test_another_metric_is_another_test(toy, fake):
    _audit(toy)
    path = toy.test / "metadata.jsonl"
    rows = [json.loads(line) | {"metric": "anls"} for line in path.read_text(encoding="utf-8").splitlines()]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    _audit(toy)
    assert len(fake) == 20


def test_an_interrupted_audit_goes_on(toy, fake):
    with pytest.raises(KeyboardInterrupt):
        _audit(toy, ["interrupted"])
    report = _audit(toy, ["interrupted"])
    assert report.failures == ()
    assert len(fake) == 11  # the run that was cut off was made again, and no other
    assert len(set(fake)) == 10
    _audit(toy, ["interrupted"])
    assert len(fake) == 11


def test_workers_make_the_same_runs(toy, model):
    alone = _audit(toy, [model, "no-such-model"], replace(CONFIG, seeds=1), out=toy.out / "alone")
    together = _audit(toy, [model, "no-such-model"], replace(CONFIG, seeds=1), out=toy.out / "together", jobs=2)
    assert together == alone
    assert len(alone.findings) == len(alone.failures) == 1
    kept, again = (
        {path.name: path.read_bytes() for path in (toy.out / name / "runs").iterdir()} for name in ("alone", "together")
    )
    assert kept == again
    assert len(kept) == 6


def test_a_lost_worker_costs_its_run_only(toy, fake, monkeypatch):
    """What `execute` says of a worker that was killed (tests/test_runtime_executor.py)."""
    real = run.execute

    def losing(work, jobs, workers, advance):
        for job, outcome in real(work, jobs, 1, advance):
            lost = str(job) == "fake lora clean seed 1"
            yield job, Failed("its process ended with exit code -9", transient=True) if lost else outcome

    monkeypatch.setattr(run, "execute", losing)
    report = _audit(toy)
    assert report.findings == ()
    assert [one.reason for one in report.failures] == ["lora clean seed 1: its process ended with exit code -9"]
    assert len(fake) == 10
    monkeypatch.setattr(run, "execute", real)
    assert _audit(toy).failures == ()
    assert fake[10:] == [("fake", "lora", "clean", 1)]


def test_workers_share_out_all_cores(toy, fake, monkeypatch):
    """Also where there are fewer runs than jobs."""
    shares, real = [], run.execute

    def execute(runner, jobs, workers, advance):
        shares.append((workers, runner.threads))
        return real(replace(runner, threads=None), jobs, 1, advance)

    monkeypatch.setattr(run, "execute", execute)
    monkeypatch.setattr(run, "cores", lambda: 22)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 22)
    _audit(toy, jobs=22)
    assert shares == [(11, 2)]


def test_an_error_ends_its_recipe_only(toy, fake, monkeypatch):
    real = runs.fine_tune

    def fine_tune(name, rows, recipe, *rest, **more):
        if recipe == "full":
            raise RuntimeError("out of memory")
        return real(name, rows, recipe, *rest, **more)

    monkeypatch.setattr(runs, "fine_tune", fine_tune)
    told: list[float] = []
    report = _audit(toy, config=replace(CONFIG, recipes=("full", "lora")), progress=lambda share, _: told.append(share))
    assert [finding.recipe for finding in report.findings] == ["lora"]
    assert [one.reason for one in report.failures] == ["full clean seed 0: RuntimeError: out of memory"]
    assert [one.recipe for one in report.failures] == ["full"]
    assert "since it failed: fake (full)." in report.verdict
    assert told[-1] == 1


def test_a_damaged_model_card_is_the_failure_of_its_attacker(toy, fake, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "mmguard.json").write_text("{", encoding="utf-8")
    report = _audit(toy, [str(folder), "zoo:none", "fake"])
    assert [finding.attacker for finding in report.findings] == ["fake"]
    assert "not a model card" in report.failures[0].reason
    assert "no such model" in report.failures[1].reason


def test_audits_that_share_a_shelf_share_runs(toy, fake, tmp_path):
    """Two releases of one budget: clean data and random words are the same, and so is all control data if asked for."""
    other = _write(
        tmp_path / "other", [image ^ 1 for image in toy.images[:8]], ["what color is the shape? leaf river"] * 8
    )
    for controls, made in ((None, {"release", "random-noise", "control"}), (toy.release, {"release"})):
        fake.clear()
        shelf = tmp_path / f"shelf {controls is None}"
        for release in (toy.release, other):
            done = list(fake)
            plan = plan_audit(
                release, toy.original, toy.test, ["fake"], CONFIG, runs=shelf, device="cpu", controls=controls
            )
            run.carry_out(plan)
        assert {arm for _, _, arm, _ in fake[len(done) :]} == made


def test_controls_of_another_dataset(toy, fake, tmp_path):
    other = _write(tmp_path / "other", [image ^ 1 for image in toy.images[:4]], ["what color is the shape? leaf"] * 4)
    with pytest.raises(ReleaseError, match="4 samples"):
        plan_audit(toy.release, toy.original, toy.test, ["fake"], CONFIG, controls=other)


def test_a_half_written_run_is_made_again(toy, fake):
    _audit(toy)
    path = next((toy.out / "runs").glob("*release_1_*"))
    path.write_text(path.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    _audit(toy)
    assert fake[10:] == [("fake", "lora", "release", 1)]


def test_more_seeds_attackers_and_recipes_reuse_what_is_there(toy, fake):
    _audit(toy)
    _audit(toy, ["fake", "other"], replace(CONFIG, seeds=3, recipes=("lora", "full"), bootstrap=300))
    assert len(fake) == len(set(fake)) == 2 * 2 * 3 * 5


@pytest.mark.parametrize(
    "change", [{"lr": 1e-3}, {"epochs": 2.0}, {"batch_size": 2}, {"lora_rank": 4}, {"max_new_tokens": 5}]
)
def test_other_settings_are_not_reused(toy, fake, change):
    _audit(toy)
    _audit(toy, config=replace(CONFIG, **change))
    assert len(fake) == 20


def test_what_is_one_runs_alone_leaves_room_in_the_common_store(toy, fake, monkeypatch):
    real = runs.fine_tune

    def fine_tune(name, rows, *rest, store, **more):
        for row in rows:
            row.load(store)
        return real(name, rows, *rest, store=store, **more)

    monkeypatch.setattr(runs, "fine_tune", fine_tune)
    plan = plan_audit(toy.release, toy.original, toy.test, ["fake"], replace(CONFIG, attacks=("gray",)), device="cpu")
    run.carry_out(plan)
    kept = set(plan.runner._store._kept)
    assert kept == {image for both in plan.runner.pairing.pairs for image in (both[0].image, both[1].image)}


def test_words_are_looked_up_for_runs_that_draw_some(toy, fake, monkeypatch):
    asked: list[str] = []
    monkeypatch.setattr(runs, "vocabulary", lambda name: (asked.append(name), ("tree",))[1])
    _audit(toy)
    assert asked == ["fake"] * 4  # random-words and control, of two seeds


def test_models_of_attacks_follow_the_device(toy, fake, monkeypatch):
    seen, real = set(), runs.fine_tune

    def fine_tune(*given, **more):
        seen.add(device_of("auto").type)
        return real(*given, **more)

    monkeypatch.setattr(runs, "fine_tune", fine_tune)
    _audit(toy, device="meta")
    assert seen == {"meta"}
    assert device_of("auto").type != "meta"


def test_runs_of_another_device_are_not_reused(toy, fake):
    """And on a GPU, with 16-bit weights, none of batches of another size."""
    for device in ("cpu", "cuda"):
        for size in (64, 2, 2):
            _audit(toy, config=replace(CONFIG, eval_batch_size=size), device=device)
    assert len(fake) == 10 + 2 * 10


def test_rank_does_not_matter_to_full_fine_tuning(toy, fake):
    _audit(toy, config=replace(CONFIG, recipes=("full",)))
    _audit(toy, config=replace(CONFIG, recipes=("full",), lora_rank=4))
    assert len(fake) == 10


@pytest.mark.parametrize(
    ("part", "changed"),
    [
        ("release", {"release", "random-noise", "control"}),
        ("original", {"clean", "random-noise", "random-words", "control"}),
        ("test", {"clean", "release", "random-noise", "random-words", "control"}),
    ],
)
def test_arms_of_other_data_are_not_reused_and_no_others_made(toy, fake, part, changed):
    _audit(toy)
    path = getattr(toy, part) / "images" / "0.png"
    pixels = np.asarray(Image.open(path)).copy()
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(path)
    _audit(toy)
    assert {arm for _, _, arm, _ in fake[10:]} == changed
    assert len(fake) == 10 + 2 * len(changed)


def test_another_model_under_the_same_name_is_not_reused(toy, fake, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_text("a", encoding="utf-8")
    _audit(toy, [str(folder)])
    (folder / "weights").write_text("bb", encoding="utf-8")
    _audit(toy, [str(folder)])
    assert len(fake) == 20


def test_another_model_of_an_attack_is_another_attack(toy, fake, tmp_path, monkeypatch):
    monkeypatch.setattr("mmguard.auditing.attacks.text_models.language_model", lambda *_: None)
    monkeypatch.setattr("mmguard.auditing.attacks.text_models.paraphrase", lambda question, model: question)
    folder = tmp_path / "rewriter"
    folder.mkdir()
    (folder / "weights").write_text("a", encoding="utf-8")
    config = replace(CONFIG, attacks=(f"paraphrase:{folder}+early-stop", "punct"))
    _audit(toy, config=config)
    assert len(fake) == 10 + 6 + 6
    (folder / "weights").write_text("bb", encoding="utf-8")
    _audit(toy, config=config)
    assert len(fake) == 22 + 6  # those of the model alone


def test_names_that_look_alike_do_not_share_a_file(toy, fake):
    _audit(toy, ["a/b", "a-b"])
    _audit(toy, ["a/b", "a-b"])
    assert len(fake) == 20


def test_one_attacker_fails_and_the_other_goes_on(toy, fake):
    report = _audit(toy, ["broken", "fake"])
    assert [(one.attacker, one.reason) for one in report.failures] == [("broken", "zero-shot: OSError: no such model")]
    assert [finding.attacker for finding in report.findings] == ["fake"]
    assert "broken: zero-shot: OSError" in report.to_markdown()


def test_leaked_test_images_are_left_out_and_told(toy, fake):
    Image.fromarray(toy.images[3]).save(toy.test / "images" / "1.png", compress_level=0)  # other bytes
    report = _audit(toy)
    assert report.provenance["test samples"] == 3
    assert "1 of 4 test images are training images too" in report.to_markdown()


def test_a_test_set_of_training_images(toy, fake):
    with pytest.raises(DataError, match="no test image is left: 8 are training images"):
        audit(toy.release, toy.original, toy.original, ["fake"], CONFIG)
    with pytest.raises(DataError, match="no test image is left: 8 are training images"):
        audit(toy.release, toy.original, toy.release, ["fake"], CONFIG)
    assert fake == []


def test_unreadable_test_images_are_told(toy, fake):
    (toy.test / "images" / "2.png").write_bytes(b"no image")
    report = _audit(toy)
    assert report.provenance["test samples"] == 3
    assert any("1 test images cannot be read" in warning for warning in report.warnings)


def test_no_jobs(toy):
    with pytest.raises(ConfigError, match="jobs 0: give 1 or more"):
        _audit(toy, jobs=0)


def test_unknown_arm(toy):
    with pytest.raises(ConfigError, match="random-nois: choose from"):
        _audit(toy, arms=["random-nois"])


def test_a_gpu_that_trainers_would_not_take(toy):
    with pytest.raises(ConfigError, match="run with CUDA_VISIBLE_DEVICES=1 and cuda"):
        _audit(toy, device="cuda:1")


@pytest.fixture
def looked_at() -> Iterator[list[Path]]:
    """What this process opens or lists, as long as the test lasts. Hooks cannot be taken away: it ends by itself."""
    seen: list[Path] = []
    watching = True

    def hook(event: str, arguments: tuple) -> None:
        # A file may be named by its number, and `listdir` by nothing, for the folder where one is.
        if (
            watching
            and event in ("open", "os.listdir", "os.scandir")
            and isinstance(arguments[0], (str, bytes, PathLike))
        ):
            seen.append(Path(fsdecode(arguments[0])).absolute())

    sys.addaudithook(hook)
    yield seen
    watching = False


def test_nothing_private_is_read(toy, fake, looked_at):
    record = toy.release.with_name("release.record")
    record.mkdir()
    (record / "record.json").write_text("{}", encoding="utf-8")
    looked_at.clear()
    assert _audit(toy, out=None).findings
    assert any(path.is_relative_to(toy.release) for path in looked_at)
    assert [path for path in looked_at if path.is_relative_to(record)] == []


@pytest.mark.parametrize("again", [False, True])
def test_progress_reaches_one(toy, fake, again):
    if again:
        _audit(toy)
    told: list[tuple[float, str]] = []
    _audit(toy, progress=lambda share, what: told.append((share, what)))
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    assert again or told[0][1] == "fake zero-shot"


def test_bar_writes_to_standard_error_only(capfd):
    with progress("Working", 2) as advance:
        advance(0.5)
        advance(1.5)
    out, err = capfd.readouterr()
    assert out == ""
    assert "Working" in err
    with progress("Working", 2, enabled=False) as advance:
        advance(2)
    assert capfd.readouterr() == ("", "")


def test_what_an_attacker_cannot_be_shown_is_left_out_for_all(toy, model, tmp_path):
    """A shape that Qwen2-VL refuses and LLaVA takes, and a test picture that is damaged."""
    long = np.zeros((4, 900, 3), dtype=np.uint8)
    Image.fromarray(long).save(toy.original / "images" / "2.png")
    Image.fromarray(long + 5).save(toy.release / "images" / "2.png")
    Image.fromarray(long + 9).save(toy.test / "images" / "1.png")
    (toy.test / "images" / "3.png").write_bytes((toy.test / "images" / "3.png").read_bytes()[:300])
    qwen = str(tiny.build("qwen2_vl", tmp_path / "qwen"))
    config = replace(CONFIG, seeds=1)
    report = _audit(toy, [model, qwen], config, out=None, arms=[])
    assert report.failures == ()
    assert [finding.attacker for finding in report.findings] == [model, qwen]
    assert report.provenance["training samples"] == 7
    assert report.provenance["test samples"] == 2
    unreadable, unfit, released = report.warnings
    assert unreadable.startswith(f"1 test images cannot be read and were left out: {toy.test / 'images' / '3.png'}: ")
    says = f"{qwen} takes no image of 900 x 4 pixels (absolute aspect ratio"
    assert unfit.startswith(f"1 test images were left out for all attackers: {toy.test / 'images' / '1.png'}: {says}")
    left_out = f"1 released samples were left out of all arms: {toy.release / 'images' / '2.png'}: {says}"
    assert released.startswith(left_out)
    assert len(plan_audit(toy.release, toy.original, toy.test, [model], config, device="cpu").runner.samples) == 3


def test_what_changed_is_told_by_what_is_left(toy, model, tmp_path):
    """The only changed picture is of a shape that an attacker refuses: the rest has words of its own alone."""
    qwen = str(tiny.build("qwen2_vl", tmp_path / "qwen"))
    for number in range(8):
        Image.fromarray(toy.images[number]).save(toy.release / "images" / f"{number}.png")
    long = np.zeros((4, 900, 3), dtype=np.uint8)
    Image.fromarray(long).save(toy.original / "images" / "2.png")
    Image.fromarray(long + 5).save(toy.release / "images" / "2.png")
    plan = plan_audit(toy.release, toy.original, toy.test, [model, qwen], CONFIG, device="cpu")
    assert plan.arms == ("clean", "release", "random-words")
    assert plan.provenance["images changed"] is False
    assert plan.provenance["texts changed"] is True
    (toy.release / "metadata.jsonl").write_bytes((toy.original / "metadata.jsonl").read_bytes())
    with pytest.raises(DataError, match=r"no change is left to train on: .* takes no image of 900 x 4 pixels"):
        plan_audit(toy.release, toy.original, toy.test, [model, qwen], CONFIG, device="cpu")


def test_nothing_that_an_attacker_takes_is_an_error(toy, model, tmp_path):
    for number in range(8):
        for part, level in ((toy.original, 0), (toy.release, 5)):
            Image.fromarray(np.full((4, 900, 3), level, dtype=np.uint8)).save(part / "images" / f"{number}.png")
    with pytest.raises(DataError, match=r"no image is left to train on: .*0.png: .* takes no image of 900 x 4 pixels"):
        _audit(toy, [str(tiny.build("qwen2_vl", tmp_path / "qwen"))])


def test_a_picture_that_is_lost_meanwhile_is_named_and_the_next_audit_goes_on_without_it(toy, model, monkeypatch):
    real, lost = runs.fine_tune, toy.release / "images" / "3.png"

    def fine_tune(*given, **more):
        attacker = real(*given, **more)
        lost.unlink(missing_ok=True)
        return attacker

    config = replace(CONFIG, seeds=1)
    with monkeypatch.context() as patch:
        patch.setattr(runs, "fine_tune", fine_tune)
        report = _audit(toy, [model], config, arms=[])
    assert report.findings == ()
    (failure,) = report.failures
    assert str(lost) in failure.reason
    assert "No result" in report.verdict
    again = _audit(toy, [model], config, arms=[])
    assert len(again.findings) == 1
    assert again.provenance["training samples"] == 7
    assert any("3.png" in warning for warning in again.warnings)
