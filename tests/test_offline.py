"""`--offline`: nothing asks for a network, in any process, whether it would be answered or not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mmguard

_NO_NETWORK = """
import os, socket, sys

def refuse(event, arguments):
    local = event == "socket.connect" and arguments[0].family == socket.AF_UNIX
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto") and not local:
        with open(os.environ["ATTEMPTS"], "a") as attempts:
            print(event, arguments, file=attempts)
        raise OSError("there is no network in this test")

sys.addaudithook(refuse)
"""
"""Python runs a module of the name `sitecustomize` when it starts: in every process, and before anything else."""

FAST = ("--rounds", "1", "--inner-steps", "1", "--pgd-steps", "1", "--top-c", "2", "--trigger-words", "2")


@pytest.fixture
def attempts(tmp_path: Path) -> Path:
    """A file that gets a line whenever a process asks for a network, and is not there otherwise."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(_NO_NETWORK)
    return tmp_path / "attempts"


def run(attempts: Path, *arguments: object, code: int = 0) -> str:
    """Runs Python with a user's environment: nothing in it says that the hub is offline. What it prints, if it ends
    with the code."""
    # The package by its absolute path: a relative one of ours would not be found from another folder.
    paths = [str(attempts.with_name("site")), str(Path(mmguard.__file__).parents[1])]
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")}
    environment |= {"PYTHONPATH": os.pathsep.join(paths), "ATTEMPTS": str(attempts)}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, env=environment, cwd=attempts.parent
    )
    assert done.returncode == code, done.stderr
    return done.stdout


def test_without_it_the_hub_is_asked(attempts: Path) -> None:
    out = run(attempts, "-c", "from mmguard.lvlm.choose import choose_surrogate; print(choose_surrogate().name)")
    assert out == "zoo:qwen3vl-tiny\n"
    assert "huggingface.co" in attempts.read_text()


def test_protect_and_audit_ask_for_no_network(attempts: Path) -> None:
    data = "easy-vqa:train:what:3"
    out = run(attempts, "-m", "mmguard.cli", "protect", data, "-o", "release", "--offline", "--json", *FAST)
    assert json.loads(out)["images"] == 3
    out = run(
        attempts, "-m", "mmguard.cli", "audit", "release", "--original", data, "--test", "easy-vqa:test:what:3",
        "--attacker", "zoo:qwen3vl-tiny", "--seeds", 1, "--epochs", 1, "-o", "report", "--offline", "--json",
    )  # fmt: skip
    assert "verdict" in json.loads(out)
    assert not attempts.exists()


def test_bench_asks_for_no_network(attempts: Path) -> None:
    matrix = """
title: toy
defaults:
  dataset: easy-vqa:train:what:2
  surrogates: [zoo:qwen3vl-tiny]
  attackers: [zoo:qwen3vl-tiny]
  test: easy-vqa:test:what:2
  protect: {rounds: 1, inner_steps: 1, pgd_steps: 1, top_c: 2, trigger_words: 2}
  audit: {seeds: 1, epochs: 1, max_new_tokens: 2, bootstrap: 200}
experiments:
  - protect: {variant: crs}
"""
    (attempts.parent / "toy.yaml").write_text(matrix)
    out = run(attempts, "-m", "mmguard.cli", "bench", "--config", "toy.yaml", "--offline", "--json")
    assert json.loads(out)["complete"]
    assert not attempts.exists()


def test_with_models_and_data_that_are_here_no_network_is_asked_for_either(attempts: Path) -> None:
    data, model = "easy-vqa:train:what:3", ("--surrogate", "zoo:qwen3vl-tiny")
    out = run(attempts, "-m", "mmguard.cli", "protect", data, *model, "-o", "release", "--json", *FAST)
    assert json.loads(out)["images"] == 3
    assert not attempts.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("protect", "s3://bucket/folder", "-o", "out"), "s3://bucket/folder: is not on this machine"),
        (("protect", "owner/name", "-o", "out"), "owner/name: is no local path, and cannot be loaded"),
        (("protect", "easy-vqa:train:2", "-o", "out", "--surrogate", "owner/name"), "owner/name"),
    ],
)
def test_what_is_not_here_is_said(arguments: tuple[str, ...], message: str, attempts: Path) -> None:
    out = run(attempts, "-m", "mmguard.cli", *arguments, "--offline", "--json", code=1)
    assert message in json.loads(out)["message"]
    assert not attempts.exists()
