"""The site: what its pages tell to run is run, it builds without a warning, and it loads nothing from elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import datasets
import pytest
import torch
import typer
import yaml
from torchvision.transforms.functional import to_pil_image
from typer.testing import CliRunner

import figures
import mmguard
from mmguard.auditing.recipes import PLANS
from mmguard.cli import app
from mmguard.zoo.drawings.tasks import TASKS
from snippets import blocks, commands, least_work

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {
    path.relative_to(DOCS).as_posix(): blocks(path.read_text(encoding="utf-8")) for path in sorted(DOCS.rglob("*.md"))
}
RUN_BY_OTHERS = {"index.md", "trainers.md"}
"""The installation, the demo (`.ci/run`, test_readme.py) and other people's trainers (test_trainers.py)."""
RUNNABLE = [
    page
    for page, found in PAGES.items()
    if page not in RUN_BY_OTHERS and {"bash", "python"} & {name for name, _ in found}
]


def _picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    to_pil_image(torch.randint(0, 256, (3, 40, 40), generator=generator, dtype=torch.uint8)).save(path)


def _questions(folder: str, seed: int) -> None:
    rows = []
    for number in range(2):
        _picture(Path(folder, f"{number}.png"), seed + number)
        rows.append({"file_name": f"{number}.png", "question": "What is it?", "answer": "a cup"})
    Path(folder, "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _owners() -> None:
    """The captioned photos and the conversations that the page shows."""
    for number, (name, caption) in enumerate({"cup": "a red cup on a table", "street": "a street"}.items()):
        _picture(Path("my-photos", f"{name}.png"), number)
        Path("my-photos", f"{name}.txt").write_text(caption)
        _picture(Path("my-chats", "images", f"{name}.png"), 10 + number)
    (chats,) = (text for language, text in PAGES["start/owners.md"] if language == "json" and text.startswith("["))
    Path("my-chats", "train.json").write_text(chats)


def _researchers() -> None:
    (sweep,) = (text for language, text in PAGES["start/researchers.md"] if language == "yaml")
    Path("sweep.yaml").write_text(sweep)


def _attackers() -> None:
    """A release, as the page for owners makes it."""
    _questions("my-photos", 0)
    _questions("my-test-photos", 10)
    mmguard.protect("my-photos", out="my-photos-release")


BEFORE: dict[str, Callable[[], None]] = {
    "start/owners.md": _owners,
    "start/researchers.md": _researchers,
    "start/attackers.md": _attackers,
}
"""What readers of a page have before they begin."""


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    least_work(monkeypatch)


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("page", RUNNABLE)
def test_what_a_page_tells_to_run_runs(page: str) -> None:
    BEFORE.get(page, lambda: None)()
    known: dict[str, object] = {}
    with patch.dict(PLANS), patch.dict(TASKS):  # pages show how to add to them
        for language, text in PAGES[page]:
            if language == "python":
                exec(compile(text, page, "exec"), known)
            if language == "bash":
                found = list(commands(text))
                assert len(found) == len(text.replace("\\\n", "").splitlines()), f"not only mmguard: {text}"
                for command in found:
                    result = CliRunner().invoke(app, command)
                    assert result.exit_code == 0, (command, result.output, result.exception)


def test_pages_with_commands_are_run_somewhere() -> None:
    assert {"start/owners.md", "start/researchers.md", "start/attackers.md"} <= set(RUNNABLE)
    assert {page for page in PAGES if page.startswith("howto/")} <= set(RUNNABLE)
    for page in RUN_BY_OTHERS:
        assert {language for language, _ in PAGES[page]} & {"bash"}


def test_data_that_pages_show_can_be_read() -> None:
    shown = [(language, text) for found in PAGES.values() for language, text in found]
    for language, text in shown:
        if language == "json":
            json.loads(text)
        if language == "yaml":
            assert isinstance(yaml.safe_load(text), dict)
    assert {"json", "yaml"} <= {language for language, _ in shown}


def test_options_that_pages_name_exist() -> None:
    command = typer.main.get_command(app)
    known = {option for one in command.commands.values() for parameter in one.params for option in parameter.opts}
    known.add("--help")
    named = set()
    for page in PAGES:
        text = (DOCS / page).read_text(encoding="utf-8").partition("\nWritten by")[0]  # tables name other commands
        for code in re.findall(r"`((?:mmguard |--)[^`]+)`", text):
            named |= {(page, option) for option in re.findall(r"--[a-z-]+", code)}
    assert {(page, option) for page, option in named if option not in known} == set()
    assert ("start/attackers.md", "--attack") in named


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as it would be published; any warning, as of a broken link, ends the build."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(ROOT)
        patched.setenv("NO_MKDOCS_2_WARNING", "1")
        config = load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(folder))
        config.plugins.on_startup(command="build", dirty=False)
        build(config)
    return folder


def test_the_site_has_every_page(site: Path) -> None:
    assert all((site / page).with_suffix(".html").is_file() for page in PAGES)
    reference = (site / "reference" / "python.html").read_text(encoding="utf-8")
    assert "trigger_place" in reference
    assert "Where the trigger stands" in reference


def test_readers_load_nothing_from_elsewhere(site: Path) -> None:
    loads = re.compile(r"""<(?:script|img|iframe|source|link)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//[^>]*>""")
    for page in site.rglob("*.html"):
        assert loads.findall(page.read_text(encoding="utf-8")) == [], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import\s+)[\"']?(?:https?:)?//", sheet.read_text(encoding="utf-8")), sheet


def test_the_reference_has_every_public_name() -> None:
    reference = (DOCS / "reference" / "python.md").read_text(encoding="utf-8")
    for name, home in mmguard._HOMES.items():
        assert f"::: {home}.{name}\n" in reference or f"::: {home}\n" in reference, name


def test_every_figure_is_shown_and_can_be_made_again() -> None:
    made = {path.name for path in figures.IMAGES.iterdir()}
    text = "".join((DOCS / page).read_text(encoding="utf-8") for page in PAGES)
    assert made == set(re.findall(r"\]\(images/([\w.-]+)\)", text))
    assert made == {*figures.CHARTS, *figures.PICTURES}
    for chart in figures.CHARTS.values():
        assert chart().svg.startswith(b"<?xml")


def test_charts_show_what_was_measured() -> None:
    shown = {one.label: (one.value, one.low, one.high) for one in figures.removed()}
    results = json.loads((DOCS / "results.json").read_text(encoding="utf-8"))
    found = [one for one in results["experiments"] if one["settings"]["group"] == "black box"]
    assert len(shown) == len(found) > 3
    for one in found:
        mean = one["audit"]["headline"]["gain_removed"]
        task = one["settings"]["dataset"].partition(":train")[0]
        assert shown[f"{task}, {one['settings']['protect.variant']}"] == tuple(mean.values())
    drawn = (figures.IMAGES / "gain-removed.svg").read_text(encoding="utf-8")
    assert all(f"<!-- {label} -->" in drawn for label in shown)


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == mmguard.__version__
    assert "2605.14291" in str(citation["references"])


def test_the_dockerfile_names_a_gpu_build_of_torch_the_engine_for_several_gpus_and_the_command() -> None:
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    assert any(re.match(r"FROM pytorch/pytorch:[\d.]+-cuda[\d.]+-", line) for line in lines)
    assert any(re.match(r"RUN pip install '\.\[.*\bray\b.*\]'", line) for line in lines)
    assert 'ENTRYPOINT ["mmguard"]' in lines
