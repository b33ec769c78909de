"""The README's commands and code are run, on small data; what it names exists."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torchvision.transforms.functional import to_pil_image
from typer.testing import CliRunner

from mmguard.cli import app
from snippets import blocks, commands, least_work

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [command for language, text in blocks(README) if language == "bash" for command in commands(text)]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    least_work(monkeypatch)
    for offset, name in enumerate(("my-photos", "my-test-photos")):
        (tmp_path / name / "images").mkdir(parents=True)
        rows = []
        for number in range(2):
            generator = torch.Generator().manual_seed(10 * offset + number)
            image = torch.randint(0, 256, (3, 40, 40), generator=generator, dtype=torch.uint8)
            to_pil_image(image).save(tmp_path / name / "images" / f"{number}.png")
            rows.append({"file_name": f"images/{number}.png", "question": "What is it?", "answer": "a cup"})
        (tmp_path / name / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_quick_start_runs_in_order(photos: None) -> None:
    quick_start = [command for command in COMMANDS if command[0] in ("protect", "verify", "audit")]
    assert [command[0] for command in quick_start] == ["protect", "verify", "audit", "protect"]
    quick_start[3] = [word.replace("my-photos-release", "second-release") for word in quick_start[3]]
    for command in quick_start:
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, (command, result.output)


def test_python_example_runs(photos: None, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = (text for language, text in blocks(README) if language == "python")
    exec(compile(code, "README.md", "exec"), {})
    assert "No claim follows" in capsys.readouterr().out


def test_demo_runs_with_no_arguments_but_less_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmguard import demo

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "TRAIN", "easy-vqa:train:what:4")
    monkeypatch.setattr(demo, "TEST", "easy-vqa:test:what:4")
    result = CliRunner().invoke(app, ["demo"])
    assert result.exit_code == 0, result.output
    for name in ("release/metadata.jsonl", "release.record/record.json", "report/report.md", "before-after.png"):
        assert (tmp_path / "mmguard-demo" / name).is_file()
    assert "zoo:llava-tiny" in (tmp_path / "mmguard-demo" / "report" / "report.md").read_text()


def test_files_that_the_readme_names_exist() -> None:
    named = re.findall(r"\]\((?!https?://)([^)]+)\)", README)
    assert named
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_ci_runs_the_readme_s_test_command() -> None:
    assert "pip install '.[test]' && pytest" in README
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "'.[test]'" in ci
    assert ci.rstrip().endswith("pytest")
