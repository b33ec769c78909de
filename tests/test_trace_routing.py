"""The routing diagnostic on releases whose routing is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmguard.config import ProtectConfig
from mmguard.errors import DataError
from mmguard.lvlm.surrogate import Surrogate, load_surrogate
from mmguard.protection.run import protect
from mmguard.trace.routing import trace_routing

DATA = "easy-vqa:train:what:4"


@pytest.fixture(scope="module")
def surrogate() -> Surrogate:
    return load_surrogate("zoo:qwen3vl-tiny", device="cpu")


def release(folder: Path, surrogate: Surrogate, **settings: Any) -> Path:
    config = ProtectConfig(**{"rounds": 2, "top_c": 8, "eps": 8, **settings})
    return protect(DATA, [surrogate], config, folder).path


def test_an_unperturbed_copy_routes_as_before(tmp_path: Path, surrogate: Surrogate) -> None:
    folder = release(tmp_path / "r", surrogate, variant="image", eps=1, rounds=1, pgd_steps=1)
    trace = trace_routing(folder, DATA, surrogate)
    assert trace.samples == 4
    assert trace.mass_on_trigger == 0
    assert trace.total_variation < 0.05


def test_binding_moves_the_answers_attention(tmp_path: Path, surrogate: Surrogate) -> None:
    random = trace_routing(release(tmp_path / "w", surrogate, variant="random-words"), DATA, surrogate)
    bound = trace_routing(release(tmp_path / "b", surrogate, variant="bph", inner_steps=0), DATA, surrogate)
    shifted = trace_routing(release(tmp_path / "c", surrogate, variant="crs", inner_steps=0), DATA, surrogate)
    assert bound.mass_on_trigger > random.mass_on_trigger
    assert shifted.total_variation > random.total_variation
    for trace in (random, bound, shifted):
        assert trace.total_variation >= trace.bound - trace.clean_mass_on_perturbed - 1e-4


def test_strangers_are_refused(tmp_path: Path, surrogate: Surrogate) -> None:
    folder = release(tmp_path / "r", surrogate, variant="random-words")
    rows = (folder / "metadata.jsonl").read_text().replace('"file_name"', '"id": "x", "file_name"', 1).splitlines()
    (folder / "metadata.jsonl").write_text(rows[0] + "\n")
    with pytest.raises(DataError, match="no sample id"):
        trace_routing(folder, DATA, surrogate)
