"""Attention masses on releases whose routing is known, and the page that shows them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mmguard.cli import app
from mmguard.config import ProtectConfig, Variant
from mmguard.errors import ReleaseError, SurrogateError
from mmguard.lvlm.loading import load_surrogate
from mmguard.lvlm.surrogate import Surrogate
from mmguard.protection.run import protect
from mmguard.trace.masses import ARMS, GROUPS, Arm, Trace, trace
from mmguard.trace.page import to_dict, to_html, verdict, write

DATA = "easy-vqa:train:what:4"


@pytest.fixture(scope="module")
def surrogate() -> Surrogate:
    return load_surrogate("zoo:qwen3vl-tiny", device="cpu")


@pytest.fixture(scope="module")
def bound(tmp_path_factory: pytest.TempPathFactory, surrogate: Surrogate) -> Path:
    config = ProtectConfig(variant="bph", rounds=2, top_c=8, inner_steps=0)
    return protect(DATA, [surrogate], config, tmp_path_factory.mktemp("bph") / "r").path


@pytest.fixture(scope="module")
def found(bound: Path, surrogate: Surrogate) -> Trace:
    return trace(bound, DATA, surrogate)


def layers(trace: Trace, arm: Arm, group: str) -> list[float]:
    mass = trace.mass(arm, group)
    assert mass is not None
    return [one.value for one in mass.layers]


def test_all_attention_is_accounted_for(found: Trace) -> None:
    assert {(one.arm, one.group) for one in found.masses} == {(arm, group) for arm in ARMS for group in GROUPS}
    for arm in ARMS:
        parts = [layers(found, arm, group) for group in GROUPS if group != "perturbed"]
        assert [sum(layer) for layer in zip(*parts, strict=True)] == pytest.approx([1.0] * 4, abs=1e-5)
        assert all(a < b for a, b in zip(layers(found, arm, "perturbed"), layers(found, arm, "image"), strict=True))
    assert layers(found, "clean", "trigger") == [0] * 4
    for mass in found.masses:
        assert all(one.low <= one.value <= one.high for one in (mass.mean, *mass.layers))


def test_theorem_5_1_holds_once_clean_attention_is_taken_off(found: Trace) -> None:
    clean = found.mass("clean", "perturbed")
    assert clean is not None
    assert found.shift is not None
    assert found.shift.total_variation >= found.shift.bound - clean.mean.value - 1e-4
    assert f"is {found.shift.total_variation:.2f} away" in to_html(found)


def test_the_shift_is_of_the_release_alone(surrogate: Surrogate, bound: Path, found: Trace, tmp_path: Path) -> None:
    config = ProtectConfig(variant="image", eps=1, rounds=1, inner_steps=1, pgd_steps=1)
    hardly = trace(protect(DATA, [surrogate], config, tmp_path / "r").path, DATA, surrogate)
    assert hardly.shift is not None
    assert found.shift is not None
    assert hardly.shift.total_variation < 0.05 < found.shift.total_variation


def test_binding_moves_attention_to_the_words_beyond_the_control(found: Trace) -> None:
    assert layers(found, "release", "trigger")[0] > layers(found, "control", "trigger")[0]
    assert "rests on the inserted words" in verdict(found)


def test_maps_show_the_same_tokens_in_all_arms(found: Trace) -> None:
    assert len(found.maps) == 3
    for one in found.maps:
        assert one.boxes.shape == (36, 4)
        assert int(one.perturbed.sum()) == 4  # a tenth of 36, rounded up
        assert {len(one.attention[arm]) for arm in ARMS} == {36}
        assert torch.equal(one.images["clean"], one.images["clean"].clamp(0, 255))
        assert not torch.equal(one.images["release"], one.images["control"])


@pytest.mark.parametrize(("variant", "absent"), [("random-noise", "trigger"), ("random-words", "perturbed")])
def test_what_a_release_does_not_change_is_not_traced(
    tmp_path: Path, surrogate: Surrogate, variant: Variant, absent: str
) -> None:
    config = ProtectConfig(variant=variant)
    release = protect("easy-vqa:train:what:2", [surrogate], config, tmp_path / "r").path
    found = trace(release, "easy-vqa:train:what:2", surrogate)
    assert {one.group for one in found.masses} == set(GROUPS) - {absent}
    assert ("perturbed tokens: the release changes no image" in found.missing) == (absent == "perturbed")
    assert bool(found.maps) == (absent != "perturbed")
    assert to_html(found).count("<img") == 1 + 4 + len(found.maps)


def test_a_model_that_does_not_tell_its_regions(bound: Path, surrogate: Surrogate, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise SurrogateError("cannot tell")

    monkeypatch.setattr(Surrogate, "token_energy", refuse)
    found = trace(bound, DATA, surrogate, limit=1)
    assert found.missing == ("perturbed tokens: cannot tell",)
    assert found.mass("release", "perturbed") is None
    assert found.shift is None
    assert found.mass("release", "trigger") is not None


def test_words_elsewhere_are_left_out_and_told(bound: Path, surrogate: Surrogate, tmp_path: Path) -> None:
    moved = shutil.copytree(bound, tmp_path / "moved")
    rows = [json.loads(line) for line in (bound / "metadata.jsonl").read_text().splitlines()]
    first, *rest = rows[0]["question"].split()
    rows[0]["question"] = " ".join([first, "river", *rest])
    (moved / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = trace(moved, DATA, surrogate, limit=2)
    assert found.samples == 1
    assert found.missing == ("1 samples: their words do not stand behind the question",)
    with pytest.raises(ReleaseError, match="nothing to trace"):
        trace(moved, DATA, surrogate, limit=1)


def test_page_json_and_figures(found: Trace, tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    write(replace(found, surrogate=evil, missing=(evil,)), tmp_path / "new" / "trace")
    html = (tmp_path / "new" / "trace" / "trace.html").read_text(encoding="utf-8")
    assert "<script" not in html
    assert html.count("&lt;script&gt;") == 2
    assert html.count("<img") == 1 + len(GROUPS) + 3
    stored = json.loads((tmp_path / "new" / "trace" / "trace.json").read_text(encoding="utf-8"))
    assert stored == json.loads(json.dumps(to_dict(replace(found, surrogate=evil, missing=(evil,)))))
    assert "maps" not in stored
    figures = {path.name for path in (tmp_path / "new" / "trace" / "figures").iterdir()}
    assert figures == {"masses.svg", "map-1.svg", "map-2.svg", "map-3.svg"} | {f"layers-{g}.svg" for g in GROUPS}


def test_command_line(bound: Path, tmp_path: Path) -> None:
    arguments = ["trace", str(bound), "--original", DATA, "--surrogate", "zoo:qwen3vl-tiny", "-o", str(tmp_path)]
    result = CliRunner().invoke(app, [*arguments, "--limit", "2", "--json"])
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["samples"] == 2
    assert said["provenance"]["layers"] == 4
    assert (tmp_path / "trace.html").is_file()
