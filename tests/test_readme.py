"""The README's commands and code are run, on small data; what it names exists."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from torchvision.transforms.functional import to_pil_image
from typer.testing import CliRunner

from mmguard.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"```bash\n(.*?)```", README, re.S)
    for line in block.splitlines()
    if line.startswith("mmguard ")
]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mmguard.lvlm.choose._hub_has", lambda name: False)
    for offset, name in enumerate(("my-photos", "my-test-photos")):
        (tmp_path / name / "images").mkdir(parents=True)
        rows = []
        for number in range(2):
            generator = torch.Generator().manual_seed(10 * offset + number)
            image = torch.randint(0, 256, (3, 40, 40), generator=generator, dtype=torch.uint8)
            to_pil_image(image).save(tmp_path / name / "images" / f"{number}.png")
            rows.append({"file_name": f"images/{number}.png", "question": "What is it?", "answer": "a cup"})
        (tmp_path / name / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def shortened(command: list[str]) -> list[str]:
    """The same command with the least work, and a zoo model where the README needs the hub."""
    words = [word.replace("Qwen/Qwen3-VL-4B-Instruct", "zoo:qwen3vl-tiny") for word in command[1:]]
    if words[0] == "protect":
        words += ["--rounds", "1", "--pgd-steps", "1", "--top-c", "2"]
    if words[0] == "audit":
        words += ["--seeds", "1", "--epochs", "1", "--jobs", "1", "--attacker", "zoo:llava-tiny"]
    return words


def test_quick_start_runs_in_order(photos: None) -> None:
    quick_start = [c for c in COMMANDS if c[1] in ("protect", "verify", "audit")]
    assert [c[1] for c in quick_start] == ["protect", "verify", "audit", "protect"]
    for command in quick_start[:3]:
        result = CliRunner().invoke(app, shortened(command))
        assert result.exit_code == 0, (command, result.output)
    other = [word.replace("my-photos-release", "second-release") for word in shortened(quick_start[3])]
    assert CliRunner().invoke(app, other).exit_code == 0


def test_python_example_runs(photos: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    code = code.replace('variant="crs"', 'variant="crs", rounds=1, pgd_steps=1, top_c=2')
    code = code.replace("attackers=", "config=mmguard.AuditConfig(seeds=1, epochs=1), attackers=")
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
