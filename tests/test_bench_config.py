"""A benchmark's file: what lists and defaults make, and what is said of mistakes. The shipped files are valid."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import tiny
from mmguard.auditing.attacks import resolve
from mmguard.bench.config import Bench, Experiment, load_bench
from mmguard.bench.run import run_bench
from mmguard.config import AuditConfig, ProtectConfig
from mmguard.errors import ConfigError

ROOT = Path(__file__).parents[1]
SHIPPED = sorted((ROOT / "configs").rglob("*.yaml"))

BASE = """
title: Toy
defaults:
  dataset: textvqa
  surrogates: [one]
  attackers: [two, three]
  protect: {rounds: 2, inner_lr: 1e-4}
  audit: {seeds: 1}
"""


def load(tmp_path: Path, text: str, seeds: int | None = None) -> Bench:
    path = tmp_path / "toy.yaml"
    path.write_text(text, encoding="utf-8")
    return load_bench(path, seeds)


def test_an_experiment_says_what_is_different(tmp_path: Path) -> None:
    bench = load(tmp_path, BASE + "experiments:\n  - protect: {eps: 4}\n  - {dataset: docvqa, audit: {lr: 2}}\n")
    assert bench.title == "Toy"
    first, second = bench.experiments
    protect, audit = ProtectConfig(rounds=2, inner_lr=1e-4), AuditConfig(seeds=1)
    assert first == Experiment("textvqa", ("one",), ("two", "three"), protect=replace(protect, eps=4), audit=audit)
    assert (second.dataset, second.protect, second.audit) == ("docvqa", protect, replace(audit, lr=2.0))
    assert isinstance(second.audit.lr, float)


def test_lists_make_all_combinations_and_doubles_are_one(tmp_path: Path) -> None:
    bench = load(
        tmp_path,
        BASE + "experiments:\n"
        "  - {dataset: [docvqa, mmstar], protect: {variant: [bph, image], eps: [1, 2, 4]}}\n"
        "  - {dataset: mmstar, protect: {eps: 4}}\n",
    )
    assert len(bench.experiments) == 12
    seen = [(one.dataset, one.protect.variant, one.protect.eps) for one in bench.experiments]
    assert seen[:4] == [("docvqa", "bph", 1), ("docvqa", "bph", 2), ("docvqa", "bph", 4), ("docvqa", "image", 1)]
    assert len(set(seen)) == 12
    assert bench.columns == {"protect.variant": "variant", "protect.eps": "eps"}
    assert bench.label(bench.experiments[-1]) == "mmstar, image, eps 4"


def test_what_is_a_list_itself_is_no_axis(tmp_path: Path) -> None:
    bench = load(
        tmp_path,
        BASE + "experiments:\n"
        "  - {protect: {weights: [0.25, 0.75]}, audit: {recipes: [lora, full], attacks: [gray, jpeg-50]}}\n",
    )
    (one,) = bench.experiments
    assert one.audit.attacks == ("gray", "jpeg-50")
    assert one.protect.weights == (0.25, 0.75)
    assert one.audit.recipes == ("lora", "full")


def test_headings_that_would_be_the_same_are_told_apart(tmp_path: Path) -> None:
    bench = load(tmp_path, BASE + "experiments:\n  - {protect: {seed: [0, 1]}, audit: {seed: [0, 7], lr: [null, 1]}}\n")
    assert list(bench.columns.values()) == ["variant", "protect.seed", "lr", "audit.seed"]
    assert bench.label(bench.experiments[0]) == "textvqa, bph, protect.seed 0, lr default, audit.seed 0"


def test_seeds_of_the_command_line_win(tmp_path: Path) -> None:
    bench = load(tmp_path, BASE + "experiments:\n  - audit: {seeds: [1, 2]}\n", seeds=5)
    assert [one.audit.seeds for one in bench.experiments] == [5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("experiments: [", "no YAML"),
        ("- 1", r"toy.yaml: \[1\] is no mapping"),
        (BASE, "experiments: list at least one"),
        (BASE + "experiments: []", "experiments: list at least one"),
        (BASE + "experiment: []", "toy.yaml: unknown key 'experiment': did you mean experiments?"),
        (BASE + "experiments:\n  - {}\n  - datasets: x", "experiment 2: unknown key 'datasets': did you mean dataset?"),
        (
            BASE + "experiments:\n  - protect: {varant: bph}",
            "experiment 1: protect: unknown key 'varant': did you mean",
        ),
        (BASE + "  color: red\nexperiments:\n  - {}", "defaults: unknown key 'color': choose from dataset"),
        (BASE + "experiments:\n  - protect: bph", "experiment 1: protect: 'bph' is no mapping"),
        (BASE + "experiments:\n  - attackers: two", "experiment 1: attackers: 'two' is no list"),
        (BASE + "experiments:\n  - attackers: []", "name at least one model"),
        (BASE + "experiments:\n  - surrogates: [auto]", "auto depends on the machine"),
        (BASE + "experiments:\n  - dataset: my-photos", "experiment 1: test: my-photos is no benchmark"),
        (BASE + "experiments:\n  - dataset: []", "dataset: an empty list"),
        (BASE + "experiments:\n  - limit: many", "limit: 'many' is no whole number"),
        (BASE + "experiments:\n  - limit: true", "limit: True is no whole number"),
        (BASE + "experiments:\n  - protect: {eps: 4.5}", "eps: 4.5 is no whole number"),
        (BASE + "experiments:\n  - protect: {tau: lots}", "tau: 'lots' is no number"),
        (BASE + "experiments:\n  - protect: {eps: 300}", "experiment 1: protect: eps 300: give a whole number from 0"),
        (
            BASE + "experiments:\n  - protect: {inner_lr: 0}",
            "experiment 1: protect: inner-lr 0.0: give a number above 0",
        ),
        (BASE + "experiments:\n  - audit: {lora_rank: 0}", "experiment 1: audit: lora-rank 0: give 1 or more"),
        (BASE + "experiments:\n  - audit: {lr: 1e999}", "experiment 1: audit: lr inf: give a number above 0"),
        (BASE + "experiments:\n  - audit: {lr: 1" + 400 * "0" + "}", "experiment 1: audit: lr: 10+ is no number"),
        (BASE + "experiments:\n  - limit: 0", "experiment 1: limit 0: give 1 or more images"),
        (BASE + "experiments:\n  - test_limit: -1", "experiment 1: test_limit -1: give 1 or more images"),
        (BASE + "experiments:\n  - dataset: {name: docvqa}", r"experiment 1: dataset: \{'name': 'docvqa'\} is no text"),
        (
            BASE + "experiments:\n  - protect: {eps: {a: 1}}",
            r"experiment 1: protect: eps: \{'a': 1\} is no whole number",
        ),
        (BASE + "experiments:\n  - protect: {variant: {a: 1}}", r"variant: \{'a': 1\}: choose one of bph"),
        (BASE + "experiments:\n  - attackers: [{a: 1}]", r"attackers: \{'a': 1\} is no text"),
        (
            BASE + "experiments:\n  - protect: {declare_no_training: 3}",
            r"protect: declare_no_training: 3 is no switch \(true or false\)",
        ),
        (BASE.replace("Toy", "{a: 1}") + "experiments:\n  - {}", r"toy.yaml: title: \{'a': 1\} is no text"),
        (BASE.replace("Toy", "2026-13-01") + "experiments:\n  - {}", "toy.yaml: is no YAML"),
        (BASE + "experiments:\n  - protect: {variant: magic}", "variant: 'magic': choose one of bph"),
        (BASE + "experiments:\n  - audit: {recipes: [magic]}", "recipes: 'magic': choose one of lora"),
        (
            BASE + "experiments:\n  - audit: {attacks: [gray, grey]}",
            "experiment 1: attack 'grey': .* did you mean gray",
        ),
        (BASE + "experiments:\n  - arms: [noise]", "arms: 'noise': choose one of clean"),
        (BASE.replace("  dataset: textvqa\n", "") + "experiments:\n  - {}", "experiment 1: dataset is missing"),
    ],
)
def test_mistakes_are_named_with_file_and_key(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        load(tmp_path, text)
    assert "toy.yaml" in str(error.value)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.yaml: cannot be read \(No such file"):
        load_bench(tmp_path / "none.yaml")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all shipped files: what they have in common once they are shrunk is made once."""
    return tmp_path_factory.mktemp("out")


def shrunk(one: Experiment) -> Experiment:
    """The same on a tiny model, with the least of everything."""
    model = str(tiny.built("llava"))
    return replace(
        one,
        dataset="easy-vqa:train:what:2",
        test="easy-vqa:test:what:2",
        limit=None,
        test_limit=None,
        surrogates=tuple(model for _ in one.surrogates),
        attackers=(model,),
        protect=replace(
            one.protect, rounds=1, top_c=2, inner_steps=min(1, one.protect.inner_steps_for(2)), inner_batch_size=1,
            pgd_steps=min(1, one.protect.pgd_steps), trigger_words=min(2, one.protect.trigger_words),
            bind_layers=min(2, one.protect.bind_layers),
            fluency=one.protect.fluency and str(tiny.built_language_model()),
        ),
        audit=replace(
            one.audit, seeds=1, epochs=1, max_new_tokens=2, recipes=one.audit.recipes[:1],
            attacks=tuple(attack.name.replace("mix-20", "mix-50") for attack in resolve(one.audit.attacks)[:2]),
        ),
    )  # fmt: skip


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_files_run(path: Path, out: Path) -> None:
    bench = load_bench(path)
    first, last = bench.experiments[0], bench.experiments[-1]
    small = tuple(dict.fromkeys([shrunk(first), shrunk(last)]))
    results = run_bench(replace(bench, experiments=small), out, jobs=1, device="cpu")
    assert [one.failure for one in results.outcomes] == [None] * len(small)
    assert results.complete


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_files_begin_with_their_command(path: Path) -> None:
    head = path.read_text(encoding="utf-8").splitlines()[0]
    assert head.startswith(f"# mmguard bench --config {path.relative_to(ROOT).as_posix()}")


@pytest.mark.parametrize("path", [path for path in SHIPPED if path.parent.name == "paper"], ids=lambda path: path.stem)
def test_the_papers_files_have_the_papers_settings(path: Path) -> None:
    swept = path.stem.removeprefix("sweep_")
    settings = {"inner_steps": 1, "inner_batch_size": 2, "lambda_bind": 2.0, "inner_lr": None, "inner_rank": 8}
    settings |= {"rounds": 5, "pgd_steps": 5, "top_c": 64}  # which it does not name
    settings.pop(swept, None)
    for one in load_bench(path).experiments:
        assert {name: getattr(one.protect, name) for name in settings} == settings
