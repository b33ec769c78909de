"""Releases in the hands of other people's trainers, as docs/trainers.md describes it."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from torchvision.transforms.functional import to_pil_image

import mmguard
import tiny
from mmguard import zoo
from test_lvlm_pixels import photograph

DOCS = (Path(__file__).parents[1] / "docs" / "trainers.md").read_text(encoding="utf-8")
QUESTIONS = ("What color is the circle?", "Which shape is shown?", "How many people are there?", "Is it a dog?")
FORMS = {"chats": "my-chats-release", "questions": "my-photos-release"}
"""By name in the documented `dataset_info.json`, the release that holds rows of this form."""


def documented(language: str) -> str:
    (block,) = re.findall(rf"```{language}\n(.*?)```", DOCS, re.S)
    return block


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both datasets, their releases and the documented `dataset_info.json`."""
    root = tmp_path_factory.mktemp("trainers")
    rows: dict[str, list[dict[str, Any]]] = {form: [] for form in FORMS}
    for number, question in enumerate(QUESTIONS):
        name, turns = f"{number}.png", [("human", f"<image>\n{question}"), ("gpt", "red")]
        conversation = [{"from": speaker, "value": text} for speaker, text in turns]
        rows["chats"].append({"id": str(number), "image": name, "conversations": conversation})
        rows["questions"].append({"file_name": name, "question": question, "answer": "red", "tag": "<image>"})
    config = mmguard.ProtectConfig(rounds=1, inner_steps=0, pgd_steps=1, top_c=2, trigger_words=2)
    for form, release in FORMS.items():
        folder = root / release.removesuffix("-release")
        folder.mkdir()
        for number, row in enumerate(rows[form]):
            to_pil_image(photograph(number, 96, 96).mul(255).byte()).save(
                folder / row.get("image", row.get("file_name")), format="PNG"
            )
        if form == "chats":
            (folder / "train.json").write_text(json.dumps(rows[form]))
        else:
            (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[form]))
        mmguard.protect(folder, [str(tiny.built("llava"))], config, root / release)
    (root / "dataset_info.json").write_text(documented("json"))
    return root


def released(workplace: Path, form: str) -> list[dict[str, Any]]:
    text = (workplace / json.loads(documented("json"))[form]["file_name"]).read_text(encoding="utf-8")
    return json.loads(text) if form == "chats" else [json.loads(line) for line in text.splitlines()]


def prompts(workplace: Path, form: str) -> list[str]:
    """What stands before the answer, as LLaMA-Factory joins the documented columns."""
    columns = json.loads(documented("json"))[form]["columns"]
    if form == "chats":
        return [row[columns["messages"]][0]["value"] for row in released(workplace, form)]
    return [f"{row[columns['prompt']]}\n{row[columns['query']]}" for row in released(workplace, form)]


@pytest.mark.parametrize("form", FORMS)
def test_a_release_has_the_documented_columns(workplace: Path, form: str) -> None:
    described = json.loads(documented("json"))[form]
    rows = released(workplace, form)
    assert described["file_name"].startswith(f"{FORMS[form]}/")
    assert len(rows) == len(QUESTIONS)
    assert all(set(described["columns"].values()) <= row.keys() for row in rows)
    assert all((workplace / FORMS[form] / row[described["columns"]["images"]]).is_file() for row in rows)
    for prompt, question in zip(prompts(workplace, form), QUESTIONS, strict=True):
        assert re.fullmatch(rf"<image>\n{re.escape(question)} \w+ \w+", prompt), "two words more"


def test_the_documented_settings_name_a_documented_release() -> None:
    settings = yaml.safe_load(documented("yaml"))
    assert FORMS[settings["dataset"]] == settings["media_dir"]


@pytest.fixture(scope="module")
def llamafactory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The documented version's command, freshly installed from the package index."""
    (requirement,) = re.findall(r"pip install (llamafactory==\S+)", documented("bash"))
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=True)
    subprocess.run([home / "bin" / "pip", "install", "--quiet", requirement], check=True)
    yield home / "bin" / "llamafactory-cli"
    shutil.rmtree(home)  # 6 GB


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info < (3, 11), reason="LLaMA-Factory 0.9.5 needs Python 3.11")
@pytest.mark.parametrize("form", FORMS)
def test_llamafactory_trains_on_a_release(workplace: Path, llamafactory: Path, form: str) -> None:
    changes = {
        "model_name_or_path": str(zoo.path("llava-tiny")), "dataset": form, "media_dir": FORMS[form],
        "output_dir": f"adapter-{form}", "max_steps": 2,
    }  # fmt: skip
    settings = workplace / f"{form}.yaml"
    settings.write_text(yaml.safe_dump(yaml.safe_load(documented("yaml")) | changes))
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [llamafactory, "train", settings.name], cwd=workplace, env=alone | {"CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    assert f"Num examples = {len(QUESTIONS)}" in done.stdout
    texts = [prompt.removeprefix("<image>\n") for prompt in prompts(workplace, form)]
    assert any(f"{text} ASSISTANT:red" in done.stdout for text in texts), "the example that it prints"
    log = [json.loads(line) for line in (workplace / f"adapter-{form}" / "trainer_log.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert len(losses) == 2
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)
    adapter = load_file(workplace / f"adapter-{form}" / "adapter_model.safetensors")
    assert any(value.abs().max() > 0 for name, value in adapter.items() if "lora_B" in name), "it starts at zero"
