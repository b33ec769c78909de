"""The command line as people call it: contract, exit codes, messages, and JSON on standard output alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

import tiny
from mmguard import zoo
from mmguard.cli import app
from mmguard.config import ENGINES, IMAGE_FORMATS, PLACES, RECIPES, SCOPES, VARIANTS
from mmguard.data.benchmarks import NAMES

runner = CliRunner()
FAST = ("--rounds", "1", "--inner-steps", "1", "--pgd-steps", "1", "--top-c", "2", "--trigger-words", "2", "--eps", "4")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.build("llava", tmp_path_factory.mktemp("llava")))


def call(*arguments: object) -> tuple[int, str, str]:
    result = runner.invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_protect_verify_audit_one_after_the_other(tmp_path: Path, model: str) -> None:
    release, report = tmp_path / "release", tmp_path / "report"
    code, out, _ = call("protect", "easy-vqa:train:3", "-o", release, "--surrogate", model, *FAST, "--json")
    assert code == 0
    written = json.loads(out)
    assert (written["images"], written["failed"]) == (3, [])
    assert Path(written["record"]).is_dir()

    code, out, _ = call("verify", release, "--original", "easy-vqa:train:3", "--json")
    assert code == 0
    checked = json.loads(out)
    assert checked["ok"] is True
    assert checked["max_eps"] <= 4
    assert checked["max_words"] == 2

    code, out, _ = call(
        "audit", release, "--original", "easy-vqa:train:3", "--test", "easy-vqa:test:3", "--attacker", model,
        "--recipe", "lora", "--seeds", 1, "--epochs", 1, "--jobs", 1, "-o", report, "--json",
    )  # fmt: skip
    assert code == 0
    found = json.loads(out)
    assert "No claim follows" in found["verdict"]
    assert set(found["findings"][0]["accuracy"]) == {
        "clean",
        "release",
        "random-noise",
        "random-words",
        "control",
    }
    assert json.loads((report / "report.json").read_text())["verdict"] == found["verdict"]
    text = (report / "report.md").read_text()
    assert text.startswith("# Audit")
    assert "## Provenance" in text
    # Again, from finished runs, for people.
    code, out, _ = call(
        "audit", release, "--original", "easy-vqa:train:3", "--test", "easy-vqa:test:3", "--attacker", model,
        "--recipe", "lora", "--seeds", 1, "--epochs", 1, "--jobs", 1, "-o", report,
    )  # fmt: skip
    assert code == 0
    assert "Not tested" in out
    assert "Provenance" not in out


def test_a_laboratory_task_is_a_dataset_like_any_other(tmp_path: Path, model: str) -> None:
    release, task = tmp_path / "release", "drawings:science:train:4"
    code, out, _ = call("protect", task, "--limit", 2, "-o", release, "--surrogate", model, *FAST, "--json")
    assert (code, json.loads(out)["images"]) == (0, 2)
    code, out, _ = call("verify", release, "--original", task, "--limit", 2, "--json")
    assert (code, json.loads(out)["ok"]) == (0, True)


def test_verify_says_what_is_wrong(tmp_path: Path, model: str) -> None:
    release = tmp_path / "release"
    call("protect", "easy-vqa:train:2", "-o", release, "--surrogate", model, *FAST, "--json")
    metadata = release / "metadata.jsonl"
    rows = [json.loads(line) for line in metadata.read_text().splitlines()]
    rows[0]["answer"] = "something else"
    metadata.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "release.record" / "record.json").unlink()
    code, out, _ = call("verify", release, "--original", "easy-vqa:train:2")
    assert code == 1
    assert "answer" in out
    assert "8/255 from defaults, 5 words from defaults" in " ".join(out.split())


def test_samples_left_out_give_exit_code_3(tmp_path: Path, model: str) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "bad.png").write_bytes(b"not an image")
    (data / "good.png").write_bytes((Path(__file__).parent / "data" / "good.png").read_bytes())
    rows = [{"file_name": f"{name}.png", "question": "what is it?", "answer": "red"} for name in ("bad", "good")]
    (data / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, _ = call("protect", data, "-o", tmp_path / "release", "--surrogate", model, *FAST)
    assert code == 3
    assert "bad.png" in out
    assert "1 images, 1 samples, 1 left out" in " ".join(out.split())
    assert "never publish" in " ".join(out.split())


def test_captions_alone_are_called_the_weak_case(tmp_path: Path, model: str) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "good.png").write_bytes((Path(__file__).parent / "data" / "good.png").read_bytes())
    (data / "good.txt").write_text("a red square")
    code, out, _ = call("protect", data, "-o", tmp_path / "captions", "--surrogate", model, *FAST)
    assert code == 0
    assert "pictures alone carry the protection, which is the weak case" in out
    assert f"{tmp_path / 'captions.record' / 'files.csv'} says" in out  # in one piece, however long
    assert f"{tmp_path / 'captions' / 'README.md'} is new" not in out
    (data / "README.md").write_text("Mine.")
    (data / "good.txt").unlink()
    (data / "metadata.jsonl").write_text('{"file_name": "good.png", "question": "what?", "answer": "red"}')
    code, out, _ = call("protect", data, "-o", tmp_path / "questions", "--surrogate", model, *FAST)
    assert code == 0
    assert "weak case" not in out
    assert f"{tmp_path / 'questions' / 'README.md'} is new" in out


def test_formats_and_declarations_are_asked_for_and_told(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    exif = Image.Exif()
    exif.update({0x010E: "boats", 0x8825: {1: "N", 2: (52.0, 30.0, 15.0)}})
    Image.linear_gradient("L").convert("RGB").save(data / "photo.jpeg", exif=exif)
    Image.merge("RGB", [Image.radial_gradient("L"), *[Image.linear_gradient("L")] * 2]).quantize(9).save(
        data / "scan.bmp"
    )
    protected = ("protect", data, "--variant", "random-noise", "--eps", "6", "--format", "keep")
    code, out, _ = call(*protected, "--declare-no-training", "-o", tmp_path / "one", "--json")
    assert code == 0
    pictures = json.loads(out)["pictures"]
    assert pictures["formats"] == {"JPEG": 1, "PNG": 1}
    assert pictures["bytes"] == sum((tmp_path / "one" / name).stat().st_size for name in ("photo.jpeg", "scan.png"))
    assert json.loads((tmp_path / "one.record" / "record.json").read_text())["pictures"] == pictures
    assert b"DMI-PROHIBITED-AIMLTRAINING" in (tmp_path / "one" / "photo.jpeg").read_bytes()
    assert call("verify", tmp_path / "one", "--original", data)[0] == 0

    _, out, _ = call(*protected, "-o", tmp_path / "two")
    told = " ".join(out.split())
    assert "Files: 1 JPEG, 1 PNG," in told
    assert "1 picture: palette became RGB" in told
    assert "1 picture: its metadata says where it was taken (GPS)" in told
    assert "what its metadata says of it (EXIF ImageDescription)" in told
    assert b"DMI-PROHIBITED" not in (tmp_path / "two" / "photo.jpeg").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("protect", "no-such-folder", "-o", "OUT"), "no such file or folder"),
        (("protect", "drawings:maps", "-o", "OUT"), "DOMAIN is one of scenes, choices"),
        (("protect", "easy-vqa:train:2", "-o", "OUT", "--eps", "300"), "eps 300"),
        (("protect", "easy-vqa:train:2", "-o", "OUT", "--surrogate", "zoo:none"), "llava-tiny"),
        (("protect", "easy-vqa:train:2", "-o", "OUT", "--surrogate", "OUT"), "OUT"),
        (("verify", "OUT", "--original", "easy-vqa:train:2"), "OUT"),
        (("audit", "OUT", "--original", "easy-vqa:train:2", "--test", "easy-vqa:test:2", "-o", "R"), "OUT"),
        (
            ("audit", "OUT", "--original", "docvqa", "--test", "docvqa", "-o", "R", "--attack", "grey"),
            "did you mean gray",
        ),
        (
            ("audit", "OUT", "--original", "docvqa", "--test", "docvqa", "-o", "R", "--recipe", "magic"),
            "recipe 'magic': choose from lora,",
        ),
    ],
)
def test_errors_name_what_is_wrong(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    placed = [str(tmp_path / a) if a in ("OUT", "R") else a for a in arguments]
    code, out, err = call(*placed)
    assert code == 1
    assert message in " ".join(err.split()) or message in err.replace("\n", "")
    assert out == ""
    code, out, _ = call(*placed, "--json")
    assert code == 1
    assert set(json.loads(out)) == {"error", "message"}


@pytest.mark.parametrize(
    ("option", "choices"),
    [
        ("--variant", VARIANTS),
        ("--format", IMAGE_FORMATS),
        ("--trigger-place", PLACES),
        ("--trigger-scope", SCOPES),
        ("--engine", ENGINES),
    ],
)
def test_a_wrong_choice_is_wrong_usage_and_names_the_right_ones(option: str, choices: tuple[str, ...]) -> None:
    code, _, err = call("protect", "easy-vqa:train:2", "-o", "never-made", option, "magic")
    assert code == 2
    assert option in err
    assert all(choice in err for choice in choices)


def test_surrogates_lists_folders_that_auto_classes_load() -> None:
    code, out, _ = call("surrogates", "--json")
    assert code == 0
    models = json.loads(out)
    assert [m["name"] for m in models] == [f"zoo:{name}" for name in zoo.NAMES]
    for m in models:
        assert set(m) == {"name", "family", "parameters", "path"}
        assert (Path(m["path"]) / "model.safetensors").is_file()


@pytest.mark.parametrize("variant", ["bph", "random-words"])
def test_auto_says_what_it_chose_and_why(variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmguard.lvlm.choose._source", lambda name: None)
    _, _, err = call("protect", "easy-vqa:train:1", "-o", tmp_path / "release", "--variant", variant, *FAST)
    said = " ".join(err.split())
    assert "zoo:qwen3vl-tiny" in said
    assert "does not protect against large models" in said


def test_where_no_model_is_needed_none_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmguard.lvlm.choose._source", lambda name: pytest.fail("asked"))
    code, _, err = call("protect", "easy-vqa:train:1", "-o", tmp_path / "release", "--variant", "random-noise")
    assert code == 0
    assert "Surrogate" not in err


def test_help_answers_without_loading_models() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mmguard.cli", "protect", "--help"], capture_output=True, text=True, check=True
    )
    text = " ".join(done.stdout.replace("│", " ").split())
    assert "Budget of the image perturbation" in text
    flags = "surrogate variant eps trigger-words rounds inner-steps pgd-steps lambda-bind split limit seed device json"
    assert [flag for flag in flags.split() if f"--{flag}" not in text] == []


def test_help_lists_recipes_and_benchmarks() -> None:
    help_ = {parameter.name: parameter.help for parameter in get_command(app).commands["audit"].params}
    assert all(recipe in help_["recipe"] for recipe in RECIPES)
    assert all(benchmark in help_["original"] and benchmark in help_["test"] for benchmark in NAMES)
