"""Attacks by choice of data do what their names say, and what a mixture is worth is told by what it adds."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

import tiny
from mmguard.auditing import runs
from mmguard.auditing.arms import ImageStore, Row, pair
from mmguard.auditing.attackers import examples, load_attacker
from mmguard.auditing.attacks import SUITE, attack_named, resolve
from mmguard.auditing.attacks.base import Selection
from mmguard.auditing.features import duplicates, features, neighbour_distance, perceptual_hash
from mmguard.auditing.filters import Judge, most, sample_losses, unusual
from mmguard.auditing.html import to_html
from mmguard.auditing.report import AuditReport
from mmguard.auditing.run import audit
from mmguard.auditing.selection import Sifted, clean_places, mean_auc, sift
from mmguard.auditing.stats import Scores, analyse, marginal_values
from mmguard.config import AuditConfig
from mmguard.data.readers import read_dataset
from mmguard.errors import ConfigError

CONFIG = AuditConfig(seeds=1, epochs=1, batch_size=4, lr=1e-2, max_new_tokens=3, bootstrap=100)
QUESTION = "what color is the shape?"


def _write(folder: Path, pixels: list[np.ndarray], inserted: str, questions: int) -> Path:
    """A dataset of images, each with so many questions."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / "images" / f"{number}.png")
        for turn in range(questions):
            answer = ("red", "blue")[(number + turn) % 2]
            question = f"{QUESTION}{' please' * turn}{inserted}"
            rows.append({"file_name": f"images/{number}.png", "question": question, "answer": answer})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> SimpleNamespace:
    """Six images with two questions each, a release that changes both, and a test set."""
    root, rng = tmp_path_factory.mktemp("toy"), np.random.default_rng(0)
    images = [rng.integers(20, 230, (32, 32, 3), dtype=np.uint8) for _ in range(10)]
    noisy = [(image + rng.integers(-8, 9, image.shape)).astype(np.uint8) for image in images]
    return SimpleNamespace(
        original=_write(root / "original", images[:6], "", 2),
        release=_write(root / "release", noisy[:6], " river", 2),
        test=_write(root / "test", images[6:], "", 1),
    )


@pytest.fixture(scope="module")
def pairing(toy):
    return pair(read_dataset(toy.release), read_dataset(toy.original))


@pytest.fixture
def fake(monkeypatch) -> dict[tuple[str, int, str | None], list[Row]]:
    """Attackers without a model that know as much as they have different samples. Keeps what they were trained on."""
    trained: dict[tuple[str, int], list[list[Row]]] = {}

    def fine_tune(name, rows, recipe, config, seed, **more):
        trained.setdefault((name, seed), []).append(list(rows))
        return SimpleNamespace(right=len({row.id for row in rows if "river" not in row.text}) / 3)

    monkeypatch.setattr(runs, "load_attacker", lambda *_: SimpleNamespace(right=0))
    monkeypatch.setattr(runs, "vocabulary", lambda name: ("tree",))
    monkeypatch.setattr(runs, "fine_tune", fine_tune)
    monkeypatch.setattr(
        runs, "evaluate", lambda attacker, samples, *_: (np.arange(len(samples)) < attacker.right).astype(float)
    )
    return trained


def _audit(toy, *attacks: str, out: Path | None = None, model: str = "fake", **more) -> AuditReport:
    config = replace(CONFIG, attacks=attacks, **more)
    return audit(toy.release, toy.original, toy.test, [model], config, out, arms=[], device="cpu")


@pytest.fixture(scope="module")
def colored(tmp_path_factory) -> list[Row]:
    """Sixteen pictures of noise in red or blue, and the answer that goes with them."""
    root, rng = tmp_path_factory.mktemp("colored"), np.random.default_rng(0)
    made = []
    for number in range(16):
        answer, color = (("red", (200, 30, 30)), ("blue", (30, 30, 200)))[number % 2]
        pixels = (np.array(color) + rng.integers(-30, 30, (32, 32, 3))).astype(np.uint8)
        path = root / f"{number}.png"
        Image.fromarray(pixels).save(path)
        made.append(Row(str(number), path, QUESTION, answer))
    return made


EVERY = np.full(1000, True)


def _judge(**more) -> Judge:
    config = replace(CONFIG, **more)
    return Judge(str(tiny.built("llava")), "lora", config, seed=0, device="cpu", store=ImageStore())


# Names


def test_names() -> None:
    names = ["mix-20", "loss-filter-20", "feature-filter-5", "dedup"]
    names += ["mix-50+loss-filter-20", "mix-9+leaked-detector-3"]
    found = resolve([*names, "loss-filter-20+mix-50"])
    assert [one.name for one in found] == names
    assert [one.selection for one in found] == [
        Selection(clean_percent=20), Selection(judge="loss", drop_percent=20),
        Selection(judge="features", drop_percent=5), Selection(judge="duplicates"),
        Selection(clean_percent=50, judge="loss", drop_percent=20),
        Selection(clean_percent=9, judge="leaked", leaked=3),
    ]  # fmt: skip
    assert not any(one.image or one.text or one.corpus for one in found)
    assert attack_named("gray").selection == Selection()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mix", "attack mix: behind mix- stands a whole number from 1 to 99, as in mix-20"),
        ("mix-0", "attack mix-0: behind mix-"),
        ("mix-100", "attack mix-100: behind mix-"),
        ("mix-0.5", "attack mix-0.5: behind mix-"),
        ("loss-filter-91", "from 1 to 90, as in loss-filter-20"),
        ("dedup-3", "dedup has no strength"),
        ("leaked-detector-5", "looks for protected samples among clean ones: write mix-50.leaked-detector-5"),
        ("mix-50+mix-20", "join one mixture and one filter"),
        ("dedup+loss-filter-20", "join one mixture and one filter"),
        ("mix-50+gray", "join one mixture and one filter"),
        ("mix-50+dedup+loss-filter-20", "join one mixture and one filter"),
    ],
)
def test_what_is_no_choice_of_data(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve([name])


# Mixtures


@pytest.mark.parametrize(("percent", "count"), [(25, 3), (50, 6), (90, 11)])
def test_a_mixture_has_the_share_in_whole_images_and_grows(pairing, percent: int, count: int) -> None:
    places = clean_places(pairing, Selection(clean_percent=percent), 0)
    assert len(set(places)) == len(places) == count
    images = [pairing.pairs[place][0].image for place in places]
    assert len(set(images)) == (count + 1) // 2  # of the last image one question may have to do
    smaller = clean_places(pairing, Selection(clean_percent=10), 0)
    assert places[: len(smaller)] == smaller
    assert places != clean_places(pairing, Selection(clean_percent=percent), 1)
    assert clean_places(pairing, Selection(), 0) == []


def test_the_clean_part_is_the_same_in_every_arm(toy, fake) -> None:
    report = _audit(toy, "mix-25")
    assert report.failures == ()
    (made,) = fake.values()
    clean, release, control, mixed_release, mixed_control, part = made
    # The order of arms is that of ARMS, and the clean arm of a mixture is clean data itself: not trained again.
    assert len({len(rows) for rows in made}) == 1
    for mixed, alone in ((mixed_release, release), (mixed_control, control)):
        is_clean = [row == ours for row, ours in zip(mixed, clean, strict=True)]
        assert sum(is_clean) == 3  # 25 % of 12, exactly
        assert all(row == (a if ours else b) for row, ours, a, b in zip(mixed, is_clean, clean, alone, strict=True))
        assert {row.id for row in part} == {row.id for row, ours in zip(mixed, is_clean, strict=True) if ours}
    assert all(row in clean for row in part)
    assert [part.count(row) for row in part] == [4] * 12


def test_other_seeds_mix_other_samples(toy, fake) -> None:
    _audit(toy, "mix-50", seeds=3)
    parts = [frozenset(row.id for row in made[-1]) for made in fake.values()]
    assert len(set(parts)) > 1


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        ("mix-1", "mix-1: 1 % of 12 samples are 0: choose another share"),
        ("mix-99", "mix-99: 99 % of 12 samples are 12"),
        ("mix-50+leaked-detector-6", "only 6 of 12 samples are clean under mix-50"),
    ],
)
def test_what_cannot_be_mixed_is_told_before_any_run(toy, fake, attack: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _audit(toy, attack)
    assert fake == {}


# Marginal value


def _scores(alone: float, clean: float, control: float, release: float, seeds: int = 3) -> Scores:
    shares = {"clean": clean, "release": release, "control": control, "clean-part": alone}
    by_arm = {arm: np.tile(np.arange(100) < round(100 * share), (seeds, 1)) * 1.0 for arm, share in shares.items()}
    return Scores("big", "lora", by_arm, np.zeros(100), "control", "mix-50")


def test_marginal_values_by_hand() -> None:
    (found,) = marginal_values([_scores(0.5, 0.8, 0.75, 0.5)])
    assert found.alone.value == pytest.approx(0.5)
    assert {arm: one.value for arm, one in found.added.items()} == pytest.approx(
        {"clean": 0.3, "control": 0.25, "release": 0}
    )
    assert found.beyond_control.value == pytest.approx(0.25)
    # The same items are right with and without the release, in every resample.
    assert (found.added["release"].low, found.added["release"].high) == (0, 0)
    assert 0.1 < found.added["clean"].low < 0.3 < found.added["clean"].high < 0.5
    (harmful,) = marginal_values([_scores(0.5, 0.8, 0.75, 0.4)])
    assert harmful.added["release"].value == pytest.approx(-0.1)


def test_a_mixture_is_judged_by_what_the_release_adds(toy, fake, tmp_path) -> None:
    """Planted: an attacker knows as many of 4 answers as it has 12ths of the data without the release's words."""
    report = _audit(toy, "gray", "mix-50", out=tmp_path)
    (found,) = report.mixtures
    assert (found.attack, found.matched, found.seeds) == ("mix-50", "control", 1)
    assert found.alone.value == pytest.approx(0.5)
    assert {arm: one.value for arm, one in found.added.items()} == {"clean": 0.5, "control": 0.5, "release": 0}
    assert report.sifted == ()
    # Clean data helps whoever has it: no part of the worst case, nor of the other attacks.
    assert [one.attack for one in report.under_attack] == ["gray"]
    assert report.worst_case.findings[0].recipe == "best of 2"
    assert "mixing" not in " ".join(report.not_tested)
    (line,) = (line for line in report.to_markdown().splitlines() if line.startswith("| fake | lora | mix-50 |"))
    cells = [cell.strip() for cell in line.strip("| ").split("|")]
    assert [cell.split(" ")[0] for cell in cells[3:]] == ["50.0", "50.0", "50.0", "0.0", "50.0"]
    assert cells[6] == "0.0 (0.0 to 0.0)"
    stored = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert stored["mixtures"][0]["added"]["release"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Mixed with clean data" in page
    assert "perfectly protected data adds 0" in page


def test_only_a_mixture_as_attack_leaves_the_verdict_alone(toy, fake) -> None:
    report = _audit(toy, "mix-50")
    assert report.worst_case is None
    assert report.verdict == _audit(toy).verdict.replace("no attack was", "no attack but mixtures was")


def test_a_mixture_that_fails_costs_itself_only(toy, fake, monkeypatch) -> None:
    real = runs.mixture
    monkeypatch.setattr(runs, "mixture", lambda a, b, clean: real(a, b, clean) if len(clean) != 3 else 1 / 0)
    report = _audit(toy, "mix-25", "mix-50")
    assert [one.attack for one in report.mixtures] == ["mix-50"]
    assert "under mix-25: ZeroDivisionError" in report.failures[0].reason


# Filters


def test_a_filter_leaves_the_others_again_and_again_and_its_auc_is_right() -> None:
    rows = [Row(str(number), Path("x"), "", "") for number in range(6)]
    suspicion = np.array([0.1, 0.9, np.nan, 0.2, 0.5, 0.3])
    left, sifted = sift(rows, suspicion, most(suspicion, 34, EVERY[:6]), clean=[0, 2, 4])
    assert [row.id for row in left] == ["0", "2", "3", "5", "0", "2"]
    assert sifted.dropped == pytest.approx(1 / 3)
    assert sifted.auc == pytest.approx(4 / 6)  # 1, 3, 5 against 0 and 4; what is known does not count
    assert sift(rows, -suspicion, suspicion > 0.5, clean=[0, 2, 4])[1].auc == pytest.approx(2 / 6)
    assert sift(rows, suspicion, suspicion > 2, clean=range(6))[1].auc is None
    with pytest.raises(ConfigError, match="drops every sample"):
        sift(rows, suspicion, np.ones(6, dtype=bool), clean=[])


def test_which_samples_look_more_suspicious_does_not_matter_and_seeds_that_differ_in_it_are_chance() -> None:
    def seeds(*aucs: float | None, folded: bool = False) -> list[Sifted]:
        return [Sifted(0.2, auc, folded) for auc in aucs]

    assert [mean_auc(seeds(*aucs)) for aucs in ((0.2, 0.3, 0.4), (0.8, 0.7, 0.6))] == pytest.approx([0.7, 0.7])
    assert mean_auc(seeds(0.4, 0.6, None)) == pytest.approx(0.5)
    assert mean_auc(seeds(None)) is None
    # Results from before do not say which way they went: all are taken as they are.
    assert mean_auc([Sifted(0.2, 0.7), *seeds(0.3)]) == pytest.approx(0.7)


def test_losses_are_unusual_on_both_sides() -> None:
    losses = np.array([1.0, 1.1, 0.9, 1.0, 0.01, 1.2, 0.8, 100.0, 1.0, 1.0])
    assert np.flatnonzero(most(unusual(losses, EVERY[:10]), 20, EVERY[:10])).tolist() == [4, 7]
    assert np.isfinite(unusual(np.zeros(3), EVERY[:3])).all()


@pytest.mark.parametrize("judge", ["loss", "feature"])
def test_a_thief_takes_its_own_samples_for_usual_and_keeps_them(monkeypatch, judge: str) -> None:
    """Protected samples are the majority, and alike."""
    own = {3, 8, 14, 19}
    rng = np.random.default_rng(0)
    losses = np.where(np.isin(np.arange(20), list(own)), 1.0, 0.05) * rng.uniform(0.9, 1.1, 20)
    monkeypatch.setattr(Judge, "_losses", lambda self, data: losses)
    monkeypatch.setattr(Judge, "_features", lambda self, data: losses[:, None])
    data = [Row(str(number), Path("x"), "", "") for number in range(20)]
    selection = attack_named(f"mix-20+{judge}-filter-50").selection
    drop = _judge().of(data, selection, own, {})[1]
    assert drop.sum() == 8, "half of the sixteen that are not its own"
    assert not drop[list(own)].any()
    losses[[0, 5]] = 1.0  # a protection that failed
    drop = _judge().of(data, replace(selection, drop_percent=88), own, {})[1]
    assert np.flatnonzero(~drop).tolist() == sorted({0, 5} | own), "what is like its own is kept before others"
    assert _judge().of(data, selection, {3}, {})[1].sum() == round(19 / 2), "one sample says what is usual of nothing"


def test_the_loss_filter_finds_planted_answers(colored) -> None:
    """Two of sixteen pictures have an answer that no other has."""
    planted = {3, 10}
    data = [replace(row, target="green" if number in planted else row.target) for number, row in enumerate(colored)]
    selection = attack_named("loss-filter-12").selection
    suspicion, drop = _judge(epochs=50).of(data, selection, (), {})
    assert roc_auc_score([number not in planted for number in range(16)], suspicion) == 1, "their losses are high"
    assert set(np.flatnonzero(drop)) == planted


@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "mllama"])
def test_sample_losses_are_those_of_the_answer(colored, family: str) -> None:
    attacker, store = load_attacker(str(tiny.built(family)), "cpu"), ImageStore()
    data = [replace(colored[0], text=QUESTION * 2), colored[1]]
    found = sample_losses(attacker, data, store)
    for example, loss in zip(examples(attacker, data, store), found, strict=True):
        answer = example["labels"][0] != -100
        with torch.inference_mode():
            chances = attacker.model(**example).logits[0].log_softmax(-1)
        said = chances.roll(1, 0)[answer].gather(1, example["input_ids"][0, answer, None])
        assert loss == pytest.approx(-said.mean().item(), abs=1e-4)


@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "mllama", "gemma3", "smolvlm"])
def test_features_see_image_and_question_and_not_the_answer(colored, family: str) -> None:
    attacker, store = load_attacker(str(tiny.built(family)), "cpu"), ImageStore()
    first, second = colored[:2]
    data = [
        first, replace(first, target="a long answer"), replace(first, text=f"{QUESTION} river"),
        replace(first, image=second.image),
    ]  # fmt: skip
    found = features(attacker, data, store)
    assert found.shape[0] == 4
    assert np.isfinite(found).all()
    assert found[1] == pytest.approx(found[0], abs=1e-4)
    assert np.abs(found[2] - found[0]).max() > 1e-2
    assert np.abs(found[3] - found[0]).max() > 1e-2


def test_features_far_from_all_others_are_outliers() -> None:
    found = np.random.default_rng(0).normal(size=(60, 8))
    planted = np.arange(60) % 20 == 0
    found[planted] += 8 * np.eye(8)[:3]
    distance = neighbour_distance(found, EVERY[:60])
    assert distance.shape == (60,)
    assert roc_auc_score(planted, distance) == 1
    assert neighbour_distance(found[:3], EVERY[:3]).shape == (3,)


def test_the_feature_filter_tells_nothing_where_nothing_differs(monkeypatch) -> None:
    """Also with several questions about each image, which are near one another, and clean or released together."""
    rng = np.random.default_rng(0)
    images = np.repeat(rng.normal(size=(100, 32)), 3, axis=0)
    monkeypatch.setattr(Judge, "_features", lambda self, data: images + 0.3 * rng.normal(size=images.shape))
    data = [Row(str(number), Path("x"), "", "") for number in range(300)]
    own = range(60)
    suspicion, drop = _judge().of(data, attack_named("mix-20+feature-filter-20").selection, own, {})
    assert sift(data, suspicion, drop, own)[1].auc == pytest.approx(0.5, abs=0.1)


def test_neighbours_are_looked_for_among_some_and_no_sample_is_its_own() -> None:
    found = np.array([0.0, 1.0, 3.0, 10.0])[:, None]
    distance = neighbour_distance(found, np.array([True, True, False, True])) * found.std()
    assert distance == pytest.approx([(1 + 10) / 2, (1 + 9) / 2, (2 + 3) / 2, (9 + 10) / 2])


def test_the_feature_filter_finds_planted_images(colored, tmp_path) -> None:
    Image.new("RGB", (32, 32), "lime").save(tmp_path / "odd.png")
    data = [*colored, replace(colored[0], image=tmp_path / "odd.png")]
    _, drop = _judge().of(data, attack_named("feature-filter-6").selection, (), {})
    assert np.flatnonzero(drop).tolist() == [16]


def test_the_detector_finds_what_it_learned_from_leaked_samples(colored) -> None:
    """Planted: protection inserts two words. Half of the data is protected."""
    words = ["river", "stone", "lamp", "cloud", "door"]

    def protected(number: int) -> Row:
        return replace(colored[number], text=f"{QUESTION} {words[number % 5]} {words[number % 3]}")

    clean = [0, 1, 4, 5, 8, 9, 12, 13]
    data = [row if number in clean else protected(number) for number, row in enumerate(colored)]
    leaked = {place: protected(place) for place in clean[:4]}
    suspicion, drop = _judge().of(data, attack_named("mix-50+leaked-detector-4").selection, clean, leaked)
    assert np.flatnonzero(np.isnan(suspicion)).tolist() == clean[:4]
    assert not drop[clean[:4]].any()
    _, sifted = sift(data, suspicion, drop, clean)
    assert sifted.auc == 1
    assert np.flatnonzero(drop).tolist() == [number for number in range(16) if number not in clean]


def test_near_duplicates_are_dropped_and_nothing_else(tmp_path) -> None:
    rng = np.random.default_rng(0)
    pixels = [np.kron(rng.integers(20, 230, (6, 6, 3)), np.ones((8, 8, 1))).astype(np.uint8) for _ in range(2)]
    jpeg = io.BytesIO()
    Image.fromarray(pixels[0]).save(jpeg, "JPEG", quality=60)
    noisy = (pixels[0] + rng.integers(-8, 9, pixels[0].shape)).astype(np.uint8)
    images = {"one": Image.fromarray(pixels[0]), "two": Image.fromarray(pixels[1]), "jpeg": Image.open(jpeg)}
    images |= {"noisy": Image.fromarray(noisy), "small": images["one"].resize((24, 24), Image.Resampling.BOX)}
    for name, image in images.items():
        image.save(tmp_path / f"{name}.png")
    cases = [
        ("one", QUESTION, "red", False),
        ("two", QUESTION, "red", False),
        ("jpeg", QUESTION, "red", True),
        ("noisy", f"{QUESTION} river stone", "red", True),
        ("small", QUESTION, "red", True),
        ("noisy", QUESTION, "blue", False),
        ("noisy", "how many corners does it have?", "red", False),
        ("one", QUESTION, "blue", True),  # of the noisy one, which was kept
    ]
    data = [
        Row(str(number), tmp_path / f"{name}.png", text, answer) for number, (name, text, answer, _) in enumerate(cases)
    ]
    assert duplicates(data, ImageStore()).tolist() == [dropped for *_, dropped in cases]
    assert perceptual_hash(images["one"]).shape == (64,)


# The whole audit


def test_filters_in_an_audit(toy, tmp_path, monkeypatch) -> None:
    attacks = ("dedup", "mix-50+loss-filter-25", "mix-50+leaked-detector-3")
    model = str(tiny.built("llava"))
    report = _audit(toy, *attacks, out=tmp_path, model=model)
    assert report.failures == ()
    assert [one.attack for one in report.mixtures] == list(attacks[1:])
    assert [one.attack for one in report.under_attack] == ["dedup"]
    made = {(one.attack, one.arm): one for one in report.sifted}
    assert set(made) == {
        (attack, arm) for attack in attacks for arm in ("clean", "release", "control")
    } - {("mix-50+leaked-detector-3", "clean")}  # nothing to detect  # fmt: skip
    # A quarter of the three samples that are not the thief's own, of six.
    assert {one.dropped for (attack, _), one in made.items() if "-filter-" in attack} == {1 / 6}
    assert {key for key, one in made.items() if one.auc is None} == {
        *((attack, "clean") for attack in attacks[:2]), *(("dedup", arm) for arm in ("release", "control")),
    }  # fmt: skip
    # Zero-shot, three arms, three under dedup, the clean part, and three and two of the filters on mixtures.
    assert len(list((tmp_path / "runs").iterdir())) == 1 + 3 + 3 + 1 + 3 + 2
    for name in ("fine_tune", "evaluate", "load_attacker", "Judge"):
        monkeypatch.setattr(runs, name, lambda *a, **k: pytest.fail("made again"))
    assert _audit(toy, *attacks, out=tmp_path, model=model) == report


def test_filters_in_reports() -> None:
    from mmguard.auditing.report import Filtered

    findings, headline = analyse([_scores(0.5, 0.8, 0.8, 0.5)])
    sifted = (
        Filtered("big", "lora", "mix-50+loss-filter-20", "release", 0.2, 0.834),
        Filtered("big", "lora", "dedup", "clean", 0.041, None),
    )
    report = AuditReport(headline, tuple(findings), sifted=sifted)
    lines = ["| big | lora | mix-50+loss-filter-20 | release | 20 | 0.83 |", "| big | lora | dedup | clean | 4 | – |"]
    assert "\n".join(lines) in report.to_markdown()
    page = to_html(report)
    assert "What filters dropped" in page
    assert "0.83</td>" in page
    assert json.loads(report.to_json())["sifted"][0]["auc"] == 0.834
    bare = AuditReport(headline, tuple(findings))
    assert "dropped" not in bare.to_markdown()
    assert "What filters dropped" not in to_html(bare)
    assert "Mixed with" not in bare.to_markdown()


def test_the_worst_case_draws_on_all_of_the_suite_but_its_mixture(toy, fake, monkeypatch) -> None:
    def of(self, data, selection, own, leaked):
        suspicion = np.arange(len(data), dtype=float)
        return suspicion, most(suspicion, selection.drop_percent, EVERY[: len(data)])

    monkeypatch.setattr(Judge, "of", of)
    report = _audit(toy, "suite", seeds=3)
    assert report.failures == ()
    assert {one.attack for one in report.under_attack} == {*SUITE} - {"mix-20"}
    assert [one.attack for one in report.mixtures] == ["mix-20"]
    assert report.worst_case is not None
    assert [one.recipe for one in report.worst_case.findings] == ["best of 12"]  # none, and eleven of the suite
    # Three seeds of three arms and of two that no attack is made on, of three under each, and the clean part alone.
    assert sum(map(len, fake.values())) == 3 * (3 + 11 * 3 + 2 + 1)


def test_a_mixture_depends_on_the_originals_too(toy, tmp_path, fake) -> None:
    from mmguard.auditing.plan import plan_audit

    config = replace(CONFIG, attacks=("mix-50", "mix-50+dedup"))
    plan = plan_audit(toy.release, toy.original, toy.test, ["fake"], config, arms=[], device="cpu")
    described = {(run.arm, run.attack): plan.runner.describe(run) for run in plan.runs}
    clean = plan.runner.data_digest("clean")
    assert described["release", "mix-50"]["clean data"] == clean
    assert described["clean-part", "mix-50"]["data"] == clean
    assert "clean data" not in described["release", None]
    assert ("clean", "mix-50") not in described
    assert "scikit-learn" in described["clean", "mix-50+dedup"]["versions"]
    assert "scikit-learn" not in described["release", "mix-50"]["versions"]
