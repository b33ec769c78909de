"""Benchmarks from file to page: releases and runs are made once, whoever asks, and failures stay where they are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import tiny
from mmguard.auditing import earlier, runs
from mmguard.auditing.attacks import attack_named
from mmguard.bench import run
from mmguard.bench.config import Bench, Experiment
from mmguard.bench.results import Line, known, read_lines
from mmguard.bench.run import run_bench, survey
from mmguard.cli import app
from mmguard.config import AuditConfig, ProtectConfig
from mmguard.errors import ConfigError, DataError
from mmguard.release.layout import UNFINISHED, record_folder
from mmguard.release.writer import ReleaseWriter

PROTECT = ProtectConfig(rounds=1, inner_steps=1, pgd_steps=1, top_c=2, trigger_words=2)
AUDIT = AuditConfig(seeds=3, epochs=1, max_new_tokens=2, bootstrap=200)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.build("llava", tmp_path_factory.mktemp("model") / "llava"))


@pytest.fixture
def bench(model: str) -> Bench:
    one = Experiment(
        "easy-vqa:train:what:3", (model,), ("fake", "other"), "easy-vqa:test:what:4", protect=PROTECT, audit=AUDIT
    )
    variants = ("image", "bph", "text", "multimodal")  # the first has its controls from the second
    every = tuple(replace(one, protect=replace(PROTECT, variant=variant)) for variant in variants)
    return Bench(Path("configs/toy.yaml"), "Toy", every)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, int]]:
    """Attackers without a model: right on fewer test items if a release taught them. Lists the runs made."""
    made: list[tuple[str, str, int]] = []

    def load_attacker(name: str, device: str = "auto") -> SimpleNamespace:
        if name == "broken":
            raise OSError("no such model")
        return SimpleNamespace(name=name, right=0)

    def fine_tune(name, rows, recipe, config, seed, *, device, store, on_step, training, validate):
        noise, words = rows[0].noise_like is not None, "tree" in rows[0].text
        arm = {(True, True): "control", (True, False): "noise", (False, True): "words"}.get((noise, words))
        arm = arm or ("release" if "releases" in str(rows[0].image) else "clean")
        made.append((name, arm, seed))
        return SimpleNamespace(right=2 if arm == "release" else 4)

    def evaluate(attacker, samples, config, store):
        return (np.arange(len(samples)) < attacker.right).astype(float)

    for function in (load_attacker, fine_tune, evaluate):
        monkeypatch.setattr(runs, function.__name__, function)
    monkeypatch.setattr(runs, "vocabulary", lambda name: ("tree",))
    return made


def make(bench: Bench, out: Path, **more) -> run.Results:
    return run_bench(bench, out, jobs=1, device="cpu", **more)


def test_everything_is_made_once(bench: Bench, fake: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    first = make(bench, tmp_path, say=said.append)
    assert first.complete
    assert said[1] == "2 of 4: easy-vqa:train:what:3, bph"
    by_arm = {arm: sum(made == arm for _, made, _ in fake) for arm in ("clean", "noise", "words", "control", "release")}
    shared = 2 * AUDIT.seeds
    assert by_arm == {"clean": shared, "noise": shared, "words": shared, "control": shared, "release": 4 * shared}
    matched = [one.report.findings[0].matched for one in first.outcomes]
    assert matched == ["random-noise", "control", "random-words", "control"]
    assert all(one.report.headline.beyond_control.value == pytest.approx(0.5) for one in first.outcomes)

    content = (tmp_path / "results.json").read_bytes()
    page = (tmp_path / "results.md").read_text(encoding="utf-8")
    monkeypatch.setattr(run, "protect", lambda *_, **__: pytest.fail("made again"))
    monkeypatch.setattr(runs, "fine_tune", lambda *_, **__: pytest.fail("made again"))
    assert make(bench, tmp_path) == first
    assert (tmp_path / "results.json").read_bytes() == content
    assert (tmp_path / "results.md").read_text(encoding="utf-8") == page
    assert make(replace(bench, title="Another", experiments=bench.experiments[1:3]), tmp_path).complete


def test_what_was_made_elsewhere_is_taken_from_there(
    bench: Bench, fake: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(bench, tmp_path / "elsewhere")
    file = tmp_path / "elsewhere" / "results.jsonl"
    monkeypatch.setattr(run, "protect", lambda *_, **__: pytest.fail("made again"))
    lines = read_lines(file)
    assert list(known(lines, bench)) == list(bench.experiments)
    assert [str(state) for state in survey(bench, tmp_path / "here", lines=lines)] == [
        f"{bench.label(one)}: taken from results" for one in bench.experiments
    ]
    grouped = replace(bench, experiments=tuple(replace(one, group="a") for one in bench.experiments))
    assert len(known(lines, grouped)) == len(bench.experiments), "whatever tables call them"
    assert make(bench, tmp_path / "here", lines=lines).complete
    for name in ("results.json", "results.jsonl", "results.md", "results.html"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "elsewhere" / name).read_bytes()
    # A setting that is newer than the file had its default; one that differs is another experiment.
    plain = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    del plain[0]["settings"]["protect.trigger_scope"], plain[1]["settings"]["protect.rounds"]
    plain[2]["evidence"]["failures"] = [{"attacker": "fake", "reason": "broke"}]
    file.write_text("".join(json.dumps(line) + "\n" for line in plain), encoding="utf-8")
    assert list(known(read_lines(file), bench)) == [bench.experiments[0], bench.experiments[3]]


def test_runs_on_the_same_data_are_taken_from_other_experiments(
    bench: Bench, fake: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "weights_digest", lambda name: f"weights of {name}")
    one = next(one for one in bench.experiments if one.protect.variant == "bph")
    before = replace(bench, experiments=(one,))
    after = replace(bench, experiments=(one, replace(one, protect=replace(one.protect, variant="crs"))))
    assert make(before, tmp_path / "before").complete
    lines = read_lines(tmp_path / "before" / "results.jsonl")

    def with_(change: dict[str, Any]) -> list[Line]:
        """The lines, as if they had been made otherwise."""
        (line,) = lines
        evidence = replace(line.evidence, provenance={**line.evidence.provenance, **change})
        return [replace(line, evidence=evidence)]

    def runs_of(lines: list[Line]) -> dict[str, int]:
        fake.clear()
        assert make(after, tmp_path / f"after {len(list(tmp_path.iterdir()))}", lines=lines).complete
        return {arm: sum(made == arm for _, made, _ in fake) for arm in ("clean", "control", "release")}

    everything = dict.fromkeys(("clean", "control", "release"), 2 * AUDIT.seeds)
    assert runs_of([]) == everything | {"release": 4 * AUDIT.seeds}
    assert runs_of(lines) == everything | {"clean": 0, "control": 0}
    assert (tmp_path / "after 1" / "results.json").read_bytes() == (tmp_path / "after 2" / "results.json").read_bytes()
    for change in (
        {"weights": {"fake": "others"}},
        {"weights": {"fake": None, "other": None}},
        {"versions": {}},
        {"device": "cuda"},
        {"test sha256": "other"},
        {"config": one.audit.__dict__ | {"lr": 0.5}},
    ):
        assert runs_of(with_(change)) == everything
    assert runs_of(with_({"revision": 0})) == everything | {"release": 4 * AUDIT.seeds}
    data = lines[0].evidence.provenance["data sha256"]
    assert runs_of(with_({"data sha256": {**data, "control": "other"}})) == everything | {"clean": 0}


def test_runs_under_attack_are_taken_from_other_experiments(
    bench: Bench, fake: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "weights_digest", lambda name: f"weights of {name}")
    one = next(one for one in bench.experiments if one.protect.variant == "bph")
    one = replace(one, attackers=("fake",), audit=replace(AUDIT, attacks=("tail", "mix-50")))
    other = replace(one, protect=replace(one.protect, variant="crs"))
    assert make(replace(bench, experiments=(one,)), tmp_path / "before").complete
    (line,) = read_lines(tmp_path / "before" / "results.jsonl")

    def under(change: dict[str, Any]) -> dict[str, set[str | None]]:
        """Under which attacks an arm is run for another release, if what is known had been made otherwise."""
        evidence = replace(line.evidence, provenance={**line.evidence.provenance, **change})
        here, made = tmp_path / f"after {len(list(tmp_path.iterdir()))}", {}
        assert make(replace(bench, experiments=(one, other)), here, lines=[replace(line, evidence=evidence)]).complete
        for path in (here / "runs").glob("*.json"):
            run_ = json.loads(path.read_text(encoding="utf-8"))
            made.setdefault(run_["arm"], set()).add(run_.get("attack"))
        return made

    release = {"release": {None, "tail", "mix-50"}}
    assert under({"commits": ["an earlier one"]}) == release
    found = json.loads((tmp_path / "after 1" / "results.json").read_text(encoding="utf-8"))["experiments"][1]
    assert "an earlier one" in found["audit"]["provenance"]["commits"]
    assert under({"attack versions": {}}) == release | {
        "clean": {"tail"}, "control": {"tail", "mix-50"}, "clean-part": {"mix-50"}
    }  # fmt: skip


def test_attacks_that_are_not_asked_for_may_be_unknown(bench: Bench, fake: list, tmp_path: Path) -> None:
    one = replace(bench.experiments[1], attackers=("fake",), audit=replace(AUDIT, attacks=("tail",)))
    assert make(replace(bench, experiments=(one,)), tmp_path / "before").complete
    (line,) = read_lines(tmp_path / "before" / "results.jsonl")
    scores = tuple(replace(one, attack=one.attack and "of-another-version") for one in line.evidence.scores)
    foreign = replace(line, evidence=replace(line.evidence, scores=scores, attacks=("of-another-version",)))
    assert make(replace(bench, experiments=(one,)), tmp_path / "after", lines=[foreign]).complete


def test_what_a_shorthand_meant_or_code_did_before_does_not_count(bench: Bench, fake: list, tmp_path: Path) -> None:
    one = replace(bench.experiments[1], attackers=("fake",), audit=replace(AUDIT, attacks=("tail",)))
    bench = replace(bench, experiments=(one,))
    assert make(bench, tmp_path).complete
    (line,) = read_lines(tmp_path / "results.jsonl")
    assert list(known([line], bench)) == [one]
    for evidence in (
        replace(line.evidence, attacks=("tail", "punct")),
        replace(line.evidence, provenance={**line.evidence.provenance, "revision": 0}),
        replace(line.evidence, provenance={**line.evidence.provenance, "attack versions": {"revision": 0}}),
    ):
        assert not known([replace(line, evidence=evidence)], bench)
    settings = {name: value for name, value in line.settings.items() if name != "audit.max_pixels"}
    assert not known([replace(line, settings=settings)], bench), "which showed pictures in full"


def test_filters_that_took_all_of_a_mixture_for_usual_do_not_count(bench: Bench, fake: list, tmp_path: Path) -> None:
    one = bench.experiments[1]
    assert make(replace(bench, experiments=(one,)), tmp_path).complete
    (line,) = read_lines(tmp_path / "results.jsonl")
    attacks = ("mix-50+loss-filter-25",)
    asked = replace(one, audit=replace(one.audit, attacks=attacks))
    asking = replace(bench, experiments=(asked,))
    now = replace(line, settings={**line.settings, "audit.attacks": [*attacks]})
    now = replace(now, evidence=replace(line.evidence, attacks=attacks))
    assert list(known([now], asking)) == [asked]
    before = {name: value for name, value in now.evidence.provenance.items() if name != "comparison revision"}
    assert not known([replace(now, evidence=replace(now.evidence, provenance=before))], asking)
    plan = SimpleNamespace(attacks=attacks, provenance=now.evidence.provenance)
    assert earlier._same_attack(attacks[0], plan, now.evidence.provenance)
    assert not earlier._same_attack(attacks[0], plan, before)
    assert earlier.compares_alike(attack_named("mix-50"), before), "which compares nothing"


@pytest.mark.parametrize("content", ["{", "{}", "[1]", None])
def test_a_file_that_holds_no_results_is_named(content: str | None, bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=r"results\.jsonl: is no file of results"):
        read_lines(file)


def test_results_say_what_they_were_made_with_and_no_secrets(bench: Bench, fake: list, tmp_path: Path) -> None:
    make(bench, tmp_path)
    text = (tmp_path / "results.json").read_text(encoding="utf-8")
    results = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert results["config"] == "configs/toy.yaml"
    one = results["experiments"][1]
    assert one["settings"]["protect.rounds"] == 1
    assert one["audit"]["provenance"]["seeds"] == [0, 1, 2]
    assert one["audit"]["findings"][0]["beyond_control"].keys() == {"value", "low", "high"}
    release = one["release"]
    assert {"torch", "transformers", "peft", "mmguard"} <= release["versions"].keys()
    assert len(release["data"]) == len(release["files sha256"]) == 64
    (digest,) = release["weights"].values()
    assert len(digest) == 64
    record = json.loads((record_folder(tmp_path / release["folder"]) / "record.json").read_text())
    for sample in record["samples"]:
        assert " ".join(sample["words"]) not in text


def test_a_gpu_that_trainers_would_not_take_is_refused_first(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run with CUDA_VISIBLE_DEVICES=1 and cuda"):
        run_bench(bench, tmp_path / "out", device="cuda:1")
    assert not (tmp_path / "out").exists()


def test_an_interrupted_release_is_taken_over(
    bench: Bench, fake: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ReleaseWriter, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            make(bench, tmp_path)
    assert [path.parent.name for path in tmp_path.rglob(UNFINISHED)]
    assert [state.release for state in survey(bench, tmp_path)] == [False] * 4
    assert make(bench, tmp_path).complete
    assert len(list((tmp_path / "releases").glob("*.record"))) == 4


@pytest.mark.parametrize(
    ("change", "releases", "made"),
    [
        # Settings of an audit leave releases alone; those of a protection leave clean data and random words alone.
        ({"audit": replace(AUDIT, lr=1.0)}, 1, {"clean", "control", "release"}),
        ({"protect": replace(PROTECT, seed=1)}, 2, {"control", "release"}),
        ({"protect": replace(PROTECT, trigger_words=1)}, 2, {"control", "release"}),
        ({"dataset": "easy-vqa:train:what:4"}, 2, {"clean", "control", "release"}),
        ({"test": "easy-vqa:test:what:3"}, 1, {"clean", "control", "release"}),
    ],
)
def test_what_is_different_is_made_anew_and_nothing_else(
    change: dict, releases: int, made: set, bench: Bench, fake: list, tmp_path: Path
) -> None:
    one = replace(bench.experiments[1], attackers=("fake",))
    assert make(replace(bench, experiments=(one,)), tmp_path).complete
    fake.clear()
    assert make(replace(bench, experiments=(replace(one, **change),)), tmp_path).complete
    assert len(list((tmp_path / "releases").glob("*.record"))) == releases
    assert {arm for _, arm, _ in fake} == made


def test_releases_of_other_seeds_share_the_controls(bench: Bench, fake: list, tmp_path: Path) -> None:
    one = replace(bench.experiments[1], attackers=("fake",))
    other = replace(one, protect=replace(one.protect, seed=1))
    assert make(replace(bench, experiments=(one, other)), tmp_path).complete
    made = {arm: sum(made == arm for _, made, _ in fake) for arm in ("clean", "control", "release")}
    assert made == {"clean": AUDIT.seeds, "control": AUDIT.seeds, "release": 2 * AUDIT.seeds}


def test_attacks_are_added_to_what_is_there(bench: Bench, fake: list, tmp_path: Path) -> None:
    one = replace(bench.experiments[1], attackers=("fake",))
    make(replace(bench, experiments=(one,)), tmp_path)
    fake.clear()
    attacked = replace(bench, experiments=(replace(one, audit=replace(AUDIT, attacks=("gray", "jpeg-50"))),))
    (state,) = survey(attacked, tmp_path)
    assert (state.runs, state.found) == (10 + 18, 10)
    (outcome,) = make(attacked, tmp_path).outcomes
    assert {arm for _, arm, _ in fake} == {"clean", "control", "release"}
    assert len(fake) == 18
    assert [one.attack for one in outcome.report.under_attack] == ["gray", "jpeg-50"]
    assert "### Under attack" in (tmp_path / "results.md").read_text(encoding="utf-8")


def test_other_weights_are_another_release(bench: Bench, fake: list, tmp_path: Path) -> None:
    folder = tiny.build("llava", tmp_path / "model")
    one = replace(bench.experiments[1], surrogates=(str(folder),), attackers=("fake",))
    make(replace(bench, experiments=(one,)), tmp_path)
    (folder / "note.txt").write_text("another state")
    assert [state.release for state in survey(replace(bench, experiments=(one,)), tmp_path)] == [False]


def test_surrogates_share_their_controls(bench: Bench, fake: list, tmp_path: Path) -> None:
    one = replace(bench.experiments[1], attackers=("fake",))
    another = replace(one, surrogates=(str(tiny.build("qwen3_vl", tmp_path / "model")),))
    assert make(replace(bench, experiments=(one, another)), tmp_path).complete
    by_arm = {arm: sum(made == arm for _, made, _ in fake) for arm in ("clean", "control", "release")}
    assert by_arm == {"clean": AUDIT.seeds, "control": AUDIT.seeds, "release": 2 * AUDIT.seeds}


def test_failures_stay_where_they_are(
    bench: Bench, fake: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    real = run.protect

    def protect(*arguments, **more):
        asked.append(arguments[2].variant)
        if arguments[2].variant == "bph":
            raise RuntimeError("no memory")
        return real(*arguments, **more)

    monkeypatch.setattr(run, "protect", protect)
    noise = replace(PROTECT, variant="random-noise", eps=4)
    alone = replace(bench.experiments[0], attackers=("fake", "broken"), protect=noise)
    results = make(replace(bench, experiments=(*bench.experiments[:2], alone)), tmp_path)
    assert [one.failure for one in results.outcomes] == ["RuntimeError: no memory"] * 2 + [None]
    assert asked == ["image", "bph", "random-noise"]  # what failed is not tried twice
    assert not results.complete
    assert [one.attacker for one in results.outcomes[2].report.findings] == ["fake"]
    page = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert "**Not complete**" in page
    assert "- easy-vqa:train:what:3, bph, eps 8: RuntimeError: no memory" in page
    assert "- easy-vqa:train:what:3, random-noise, eps 4: broken: zero-shot: OSError: no such model" in page


def test_what_is_there_stays_until_it_is_made_anew(
    bench: Bench, fake: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make(bench, tmp_path)
    file = tmp_path / "results.jsonl"
    content = file.read_bytes()
    seen: list[bytes] = []

    def plan_audit(*arguments, **more):
        seen.append(file.read_bytes())
        raise OSError("the disk is away")

    monkeypatch.setattr(run, "plan_audit", plan_audit)
    failed = make(bench, tmp_path)
    assert [*seen, file.read_bytes()] == [content] * 5
    assert [one.report.to_dict() for one in failed.outcomes] == [one.report.to_dict() for one in first.outcomes]
    assert {one.failure for one in failed.outcomes} == {"OSError: the disk is away"}
    assert not failed.complete
    page = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert "bph: OSError: the disk is away" in page


def test_controls_of_pictures_beside_fluent_texts_are_their_own(bench: Bench) -> None:
    """A setting of one experiment need make no sense with the variant of another."""
    image, bph = bench.experiments[:2]
    fluent = replace(bph, protect=replace(PROTECT, variant="bph", fluency="a model"))
    assert run._model(image, replace(bench, experiments=(fluent, image))) == image
    assert run._model(image, replace(bench, experiments=(fluent, image, bph))) == bph


def test_attackers_that_fail_now_do_not_replace_what_they_did_before(
    bench: Bench, fake: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = replace(bench, experiments=bench.experiments[1:2])
    first = make(one, tmp_path).outcomes[0]
    real = runs.load_attacker

    def load_attacker(name: str, device: str = "auto") -> SimpleNamespace:
        if name == "other":
            raise OSError("the hub is away")
        return real(name, device)

    monkeypatch.setattr(runs, "load_attacker", load_attacker)
    for file in (tmp_path / "runs").iterdir():
        file.unlink()
    (again,) = make(one, tmp_path).outcomes
    assert again.report.to_dict() == first.report.to_dict()
    assert again.failure == "other: zero-shot: OSError: the hub is away"
    # What was found in spite of the same failure is taken, and so is what has none.
    (tmp_path / "results.jsonl").unlink()
    assert [len(outcome.report.failures) for outcome in make(one, tmp_path).outcomes] == [1]
    assert [outcome.failure for outcome in make(one, tmp_path).outcomes] == [None]
    monkeypatch.setattr(runs, "load_attacker", real)
    assert make(one, tmp_path).complete


def test_a_release_that_was_tampered_with_is_no_evidence(bench: Bench, fake: list, tmp_path: Path) -> None:
    only = replace(bench, experiments=bench.experiments[1:2])
    folder = tmp_path / make(only, tmp_path).outcomes[0].release["folder"]
    metadata = folder / "metadata.jsonl"
    metadata.write_text(metadata.read_text().replace('"answer": "', '"answer": "not '))
    (outcome,) = make(only, tmp_path).outcomes
    assert "does not verify" in (outcome.failure or "")


def test_survey_counts_and_reads_no_data_before_there_is_a_release(
    bench: Bench, fake: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(run, "read_dataset", lambda *_: pytest.fail("read"))
        states = list(survey(bench, tmp_path))
    assert [(state.release, state.runs) for state in states] == [(False, None)] * 4
    assert str(states[0]) == "easy-vqa:train:what:3, image: release to make, runs to make"
    assert list(tmp_path.iterdir()) == []
    make(replace(bench, experiments=bench.experiments[1:2]), tmp_path)
    before = sorted(tmp_path.rglob("*"))
    states = list(survey(bench, tmp_path))
    assert (states[1].runs, states[1].found) == (20, 20)
    assert str(states[1]) == "easy-vqa:train:what:3, bph: release there, 20 of 20 runs there"
    assert [state.release for state in states] == [False, True, False, False]
    more = replace(bench.experiments[1], audit=replace(AUDIT, seeds=4))
    (state,) = survey(replace(bench, experiments=(more,)), tmp_path)
    assert (state.runs, state.found) == (26, 20)
    assert sorted(tmp_path.rglob("*")) == before


def test_command(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "toy.yaml"
    config.write_text(
        "defaults:\n"
        "  dataset: easy-vqa:train:what:2\n"
        "  test: easy-vqa:test:what:2\n"
        f"  surrogates: [{model}]\n"
        f"  attackers: [{model}]\n"
        "  protect: {rounds: 1, pgd_steps: 1, top_c: 2, trigger_words: 1}\n"
        "  audit: {epochs: 1, max_new_tokens: 2}\n"
        "experiments:\n"
        "  - protect: {variant: bph}\n"
    )
    command = ["bench", "--config", "toy.yaml", "--seeds", "1", "--jobs", "1", "--device", "cpu"]
    looked = CliRunner().invoke(app, [*command, "--dry-run"])
    assert looked.exit_code == 0
    assert looked.stdout.strip() == "easy-vqa:train:what:2, bph: release to make, runs to make"
    made = CliRunner().invoke(app, [*command, "--report", "docs/results.md", "--json"])
    assert made.exit_code == 0, made.output
    results = json.loads(made.stdout)
    assert results["complete"] is True
    assert results == json.loads((tmp_path / "out" / "toy" / "results.json").read_text())
    assert results == json.loads((tmp_path / "docs" / "results.json").read_text())
    page = (tmp_path / "docs" / "results.md").read_text()
    assert page == (tmp_path / "out" / "toy" / "results.md").read_text()
    assert "**No claim follows**" in page
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0
    assert "Means over attackers" in again.stdout
    assert "1 of 1: easy-vqa:train:what:2, bph" in again.stderr
    state = json.loads(CliRunner().invoke(app, [*command, "--dry-run", "--json"]).stdout)
    assert state == [{"label": "easy-vqa:train:what:2, bph", "release": True, "runs": 4, "found": 4, "taken": False}]


def test_command_with_a_failure_has_exit_code_3(tmp_path: Path) -> None:
    config = tmp_path / "toy.yaml"
    config.write_text(
        "defaults: {dataset: no-such-folder, test: none, surrogates: [zoo:llava-tiny], attackers: [zoo:llava-tiny]}\n"
        "experiments: [{}]\n"
    )
    result = CliRunner().invoke(app, ["bench", "--config", str(config), "-o", str(tmp_path / "out"), "--json"])
    assert result.exit_code == 3
    assert "no such file or folder" in json.loads(result.stdout)["experiments"][0]["failure"]
    result = CliRunner().invoke(app, ["bench", "--config", str(tmp_path / "none.yaml")])
    assert result.exit_code == 1
