"""Bars and logs: every stage has one, counts its work once, and is found again in the log."""

from __future__ import annotations

import json
import logging
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import tiny
from mmguard.cli import app
from mmguard.config import ProtectConfig
from mmguard.data.readers import read_dataset
from mmguard.errors import ConfigError
from mmguard.lvlm.loading import load_surrogate
from mmguard.lvlm.prompt import Encoded
from mmguard.lvlm.surrogate import Forward, Surrogate
from mmguard.protection.ensemble import Ensemble
from mmguard.protection.loop import optimise, start, work
from mmguard.release.verify import verify
from mmguard.runtime import progress as module
from mmguard.runtime.log import logging_to
from mmguard.runtime.progress import progress, stages

FLAGS = ("--rounds", "1", "--inner-steps", "1", "--pgd-steps", "1", "--top-c", "2", "--trigger-words", "2")


@pytest.fixture(scope="module")
def llava() -> Surrogate:
    return load_surrogate(tiny.built("llava"), device="cpu")


@pytest.mark.parametrize("variant", ["bph", "image", "text"])
@pytest.mark.parametrize("short_of_memory", [False, True])
def test_each_stage_is_counted_to_its_end(
    variant: str, short_of_memory: bool, llava: Surrogate, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ProtectConfig(variant=variant, rounds=2, inner_steps=2, pgd_steps=1, top_c=2, trigger_words=1)
    ensemble = Ensemble([llava], config)
    groups = read_dataset("easy-vqa:train:3").by_image()
    items = [start(path, samples[:1], config, ensemble.vocabulary()) for path, samples in groups.items()]
    plain = Surrogate.forward

    def forward(self: Surrogate, encoded: Encoded, *rest: Any) -> Forward:
        if len(encoded.labels) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return plain(self, encoded, *rest)

    if short_of_memory:
        monkeypatch.setattr(Surrogate, "forward", forward)
    counted: Counter[str] = Counter()
    optimise(items, ensemble, config, lambda stage, amount: counted.update({stage: amount}))
    assert counted == work(items, config)
    assert ("Perturbing" in counted, "Searching" in counted) == (variant != "text", variant != "image")


@pytest.mark.parametrize("captions", [1, 3])
def test_no_trigger_is_searched_for_captions(captions: int, llava: Surrogate) -> None:
    config = ProtectConfig(rounds=1, inner_steps=1, pgd_steps=1, top_c=2, trigger_words=1, batch_size=1)
    ensemble = Ensemble([llava], config)
    groups = read_dataset("easy-vqa:train:3").by_image()
    items = []
    for number, (path, (first, *_)) in enumerate(groups.items()):
        sample = replace(first, question=None) if number < captions else first
        items.append(start(path, [sample], config, ensemble.vocabulary()))
    counted: Counter[str] = Counter()
    optimise(items, ensemble, config, lambda stage, amount: counted.update({stage: amount}))
    assert counted == work(items, config)
    assert dict(counted) == {"Adapting": 2, "Perturbing": 3} | ({"Searching": 2} if captions == 1 else {})


def test_bars_of_several_stages(capsys: pytest.CaptureFixture[str]) -> None:
    with stages({"Adapting": 4, "Perturbing": 2}) as advance:
        advance("Adapting", 4)
        advance("Perturbing", 1)
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = [line.split() for line in shown.err.splitlines() if line.strip()]
    assert [(line[0], line[2]) for line in lines] == [("Adapting", "100%"), ("Perturbing", "50%")]


def test_nothing_is_shown_unless_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("Writing", 2, enabled=False) as advance:
        advance(1)
    assert capsys.readouterr() == ("", "")


def test_verification_shows_a_bar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mmguard.protection.run import protect

    config = ProtectConfig(variant="random-noise")
    release = protect("easy-vqa:train:2", [], config, tmp_path / "release", show_progress=True)
    shown = capsys.readouterr().err
    assert "Reading" in shown
    assert "Writing" in shown
    verify(release.path, "easy-vqa:train:2", show_progress=True)
    assert "Verifying" in capsys.readouterr().err


def test_a_log_has_stages_warnings_and_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOG_EVERY", 0.0)
    file, before = tmp_path / "logs" / "run.log", (logging.getLogger("mmguard").level, warnings.showwarning)

    def run() -> None:
        with logging_to(file) as log:
            log.info("settings")
            with progress("Writing", 4, enabled=False) as advance:
                advance(1)
            # Directly: in a test, pytest takes what `warnings.warn` says.
            warnings.showwarning(UserWarning("too slow"), UserWarning, "file", 1)
            raise KeyError("gone")

    for _ in range(2):
        with pytest.raises(KeyError):
            run()
    text = file.read_text()
    for said in ("INFO settings", "INFO begins: Writing", "INFO Writing: 25 %", "WARNING UserWarning: too slow",
                 "ERROR KeyError: 'gone'", "Traceback"):  # fmt: skip
        assert text.count(said) == 2, said  # appended, and each line once
    assert (logging.getLogger("mmguard").level, warnings.showwarning) == before
    assert not logging.getLogger("mmguard").handlers


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"run\.log: cannot be written"), logging_to(tmp_path / "file" / "run.log"):
        pass


def test_protect_logs(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "bad.png").write_bytes(b"not an image")
    (data / "good.png").write_bytes((Path(__file__).parent / "data" / "good.png").read_bytes())
    rows = [{"file_name": f"{name}.png", "question": "what is it?", "answer": "red"} for name in ("bad", "good")]
    (data / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["protect", str(data), "-o", str(tmp_path / "release"), "--surrogate", str(tiny.built("llava")), *FLAGS]
    result = CliRunner().invoke(app, [*command, "--log", str(tmp_path / "run.log"), "--json"])
    assert result.exit_code == 3
    assert json.loads(result.stdout)["files"] == {"left out": 1, "unchanged": 0, "protected": 1}
    text = (tmp_path / "run.log").read_text()
    for said in (
        "variant='bph'",
        "Adapting, Perturbing, Searching",
        "left out: ",
        "bad.png",
        "done: 1 images, 1 samples",
    ):
        assert said in text
    again = CliRunner().invoke(app, [*command, "--log", str(tmp_path / "run.log")])
    assert again.exit_code == 1
    assert "ERROR ReleaseError" in (tmp_path / "run.log").read_text()


@pytest.mark.parametrize("place", ["release/run.log", "release.record/run.log", "data/run.log"])
def test_a_log_lies_apart(place: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    flags = ["-o", str(tmp_path / "release"), "--log", str(tmp_path / place)]
    result = CliRunner().invoke(app, ["protect", str(tmp_path / "data"), *flags, "--variant", "random-noise"])
    assert result.exit_code == 1
    assert "choose a file beside it" in " ".join(result.stderr.split())
    assert [path.name for path in tmp_path.rglob("*")] == ["data"]
