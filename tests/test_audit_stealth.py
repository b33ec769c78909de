"""Stealth of whole releases: what is measured, what is said, and what is not made up."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.transforms.functional import to_pil_image
from typer.testing import CliRunner

import tiny
from mmguard.auditing.stats import Estimate
from mmguard.auditing.stealth import stealth
from mmguard.auditing.stealth_judge import DIMENSIONS, JudgeConfig, Judgement, Score
from mmguard.auditing.stealth_recovery import recoveries
from mmguard.auditing.stealth_report import HEADINGS, StealthReport
from mmguard.auditing.summary import Measure
from mmguard.cli import app
from mmguard.config import ProtectConfig
from mmguard.data.images import load_image
from mmguard.data.readers import read_dataset
from mmguard.data.text import insert_trigger
from mmguard.errors import ConfigError, DataError, ReleaseError, SurrogateError
from mmguard.release.writer import ReleaseWriter
from mmguard.types import Sample

EPS = 4
GOOD = {side: dict.fromkeys(DIMENSIONS, 3) for side in "AB"}
QUESTIONS = ("what color is the shape?", "is it red?")


def write_release(base: Path, eps: int = EPS, words: tuple[str, ...] = ("dog", "cat"), unchanged: int = 0) -> Path:
    """A folder with `data`, six images with two questions each and a caption, and its release `out`."""
    (base / "data").mkdir(parents=True)
    rows = []
    for number in range(6):
        pixels = torch.randint(20, 230, (3, 24, 20), generator=torch.Generator().manual_seed(number)).byte()
        to_pil_image(pixels).save(base / "data" / f"{number}.png", format="PNG")
        rows += [{"file_name": f"{number}.png", "question": text, "answer": "yes"} for text in QUESTIONS]
    rows.append({"file_name": "0.png", "caption": "a red circle"})
    (base / "data" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = read_dataset(base / "data")
    writer = ReleaseWriter(base / "out", dataset, ProtectConfig(eps=eps, trigger_words=len(words)), [])
    for number, image in enumerate(dataset.by_image()):
        original = load_image(image).int()
        sign = torch.randint(0, 2, original.shape, generator=torch.Generator().manual_seed(100 + number)) * 2 - 1
        writer.write_image(image, (original + (0 if number < unchanged else eps) * sign).to(torch.uint8))
    writer.finish({sample.id: words for sample in dataset.samples if sample.question and words}, [])
    return base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("both"))


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.language_model(tmp_path_factory.mktemp("lm")))


@pytest.fixture(autouse=True)
def nothing_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever lies in the caches of the machine that the tests run on."""
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("mmguard.auditing.stealth_texts.try_to_load_from_cache", lambda *_: None)


def test_a_release_that_changes_both(base: Path, lm: str) -> None:
    report = stealth(base / "out", base / "data", lm=lm)
    assert len(report.images) == 6
    assert len(report.texts) == 12  # none for the caption
    assert set(report.measures) == set(HEADINGS) - {"lpips"}
    values = {name: one.mean.value for name, one in report.measures.items()}
    assert values["psnr"] == pytest.approx(20 * math.log10(255 / EPS), abs=1e-3)
    assert values["largest_change"] == values["mean_change"] == EPS
    assert values["words_inserted"] == values["word_edits"] == 2
    assert values["character_edits"] == len(" dog cat")
    assert values["share_inserted"] == pytest.approx((2 / 7 + 2 / 5) / 2)
    assert report.measures["psnr"].beyond_control == Estimate(0, 0, 0)
    assert report.measures["perplexity"].control is not None
    assert report.measures["perplexity"].count == 12
    assert report.measures["ssim"].count == 6
    sizes = [[(base / folder / image).stat().st_size for image in names] for folder, names in (
        ("data", [f"{number}.png" for number in range(6)]), ("out", [f"{number}.png" for number in range(6)]),
    )]  # fmt: skip
    assert (report.original_bytes, report.released_bytes) == (sum(sizes[0]), sum(sizes[1]))
    assert report.bleu is not None
    assert 0 < report.bleu < 1
    assert len(report.missing) == 1
    assert report.missing[0].startswith("LPIPS: the weights of AlexNet are not in")
    assert "at most 4 of 255 levels (36.1 dB PSNR)" in report.verdict
    assert "texts carry 2.0 inserted words, 34% of all, and their perplexity goes from" in report.verdict
    assert "nobody has judged" in report.verdict
    assert "the attack `tail` takes 100% (95% interval 100 to 100) of the inserted words out and gives 100%" in (
        report.verdict
    )


def test_the_private_record_is_not_read(base: Path, lm: str, tmp_path: Path) -> None:
    copy = write_release(tmp_path / "copy")
    for path in (copy / "out.record").iterdir():
        path.write_bytes(b"\0")
    assert stealth(copy / "out", copy / "data", lm=lm) == stealth(base / "out", base / "data", lm=lm)


def test_json_is_strict_where_nothing_changed(tmp_path: Path) -> None:
    base = write_release(tmp_path, words=(), unchanged=2)
    report = stealth(base / "out", base / "data", out=tmp_path / "report")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    stored = json.loads((tmp_path / "report" / "stealth.json").read_text(), parse_constant=refuse)
    assert stored == report.to_dict()
    likeness = [image["likeness"] for image in stored["images"]]
    assert [like["psnr"] is None for like in likeness] == [True, True, False, False, False, False]
    assert [like["ssim"] for like in likeness[:2]] == [1, 1]
    assert stored["measures"]["psnr"]["count"] == 4
    assert stored["measures"]["ssim"]["count"] == 6
    assert (stored["texts"], stored["bleu"]) == ([], None)
    assert "texts: none changed" in stored["missing"]
    assert stored["verdict"].endswith("no text changed; nobody has judged whether it shows.")
    assert (tmp_path / "report" / "stealth.md").read_text() == report.to_markdown()


def test_a_release_that_changes_texts_only(tmp_path: Path) -> None:
    base = write_release(tmp_path, eps=0)
    report = stealth(base / "out", base / "data", lpips="alex")  # which would be fetched
    assert "psnr" not in report.measures
    assert report.verdict.startswith("No image changed; texts carry 2.0 inserted words")
    assert report.missing == (
        "images: none changed",
        "perplexity: no language model was named, and GPT-2 is not on this machine; give --lm",
    )
    assert all(text.perplexity is None for text in report.texts)


def test_limit_and_seed(base: Path) -> None:
    report = stealth(base / "out", base / "data", limit=2)
    assert [image.file for image in report.images] == ["0.png", "1.png"]
    assert len(report.texts) == 4
    other = stealth(base / "out", base / "data", limit=2, seed=1)
    assert report == stealth(base / "out", base / "data", limit=2)
    assert report.images[0].likeness == other.images[0].likeness
    assert report.images[0].control != other.images[0].control


def test_markdown_has_all_parts_in_order(base: Path) -> None:
    report = stealth(base / "out", base / "data")
    three = Estimate(3, 2.5, 3)
    said = Judgement("m at http://h", 50, 48, "HTTP 500", Estimate(0.9, 0.8, 0.95), {})
    text = replace(report, judgement=replace(said, scores={"clarity": Score(three, three, three)})).to_markdown()
    parts = [
        "# Stealth", "Images differ by at most 4 of 255 levels", "**it shows**: a judge picked the altered",
        "**Warning:** 6 images are too few", "|  | n | mean |", "| PSNR (dB) | 6 | 36.1 (36.1 to 36.1) |",
        "All files: 0.01 MB before", "## Judge", "48 of 50 replies could be used. The first that could not: HTTP 500",
        "| clarity | 3 (2.5 to 3) |", "## Most visible", "- SSIM: ", "## Not measured", "- perplexity: no",
        "## Provenance", "torchmetrics",
    ]  # fmt: skip
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("beyond", "says"),
    [
        (Estimate(0.1, 0.05, 0.15), " and are, by SSIM, more like the originals than with noise of the same size (0.8"),
        (Estimate(-0.1, -0.15, -0.05), " and are, by SSIM, less like the originals than with noise"),
        (
            Estimate(0.1, -0.3, 0.5),
            "; by SSIM, their likeness to the originals cannot be told from that of equal noise",
        ),
    ],
)
def test_no_difference_found_is_not_called_none(beyond: Estimate, says: str) -> None:
    def of(value: float, **more: Estimate) -> Measure:
        return Measure(6, Estimate(value, value, value), value, value, value, (("a.png", value),), **more)

    similar = of(0.8, control=Estimate(0.7, 0.7, 0.7), beyond_control=beyond)
    assert says in StealthReport((), (), {"psnr": of(40), "largest_change": of(4), "ssim": similar}).verdict


@pytest.mark.parametrize(
    ("detected", "says"),
    [
        (Estimate(0.9, 0.8, 0.95), "**it shows**: a judge"),
        (Estimate(0.6, 0.45, 0.75), "no evidence that it shows"),
        (Estimate(0.1, 0.05, 0.2), "takes the original for the altered"),
        (None, "no reply of the judge could be used"),
    ],
)
def test_what_a_judge_found_is_in_the_verdict(detected: Estimate | None, says: str) -> None:
    judgement = Judgement("m", 50, 50 if detected else 0, None, detected)
    assert says in StealthReport((), (), {}, judgement=judgement).verdict


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"lpips": "squeeze"}, ConfigError, "lpips 'squeeze': choose one of auto, alex, vgg, off"),
        ({"original": "no-such-folder"}, DataError, "no such file or folder"),
        ({"release": "no-such-folder"}, DataError, "no such file or folder"),
        ({"original": "easy-vqa:train:2"}, ReleaseError, "no row pairs with the original"),
        ({"lm": "no/such-model"}, SurrogateError, "no/such-model: cannot be read or fetched"),
    ],
)
def test_bad_input(base: Path, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        stealth(**{"release": base / "out", "original": base / "data", **arguments})


def test_a_copy_is_no_release(tmp_path: Path) -> None:
    base = write_release(tmp_path, eps=0, words=())
    with pytest.raises(ReleaseError, match="nothing differs"):
        stealth(base / "out", base / "data")


def test_judged_on_the_way(base: Path, tmp_path: Path) -> None:
    stealth(base / "out", base / "data", judging=JudgeConfig(tmp_path / "sheet.jsonl"))
    key = json.loads((tmp_path / "sheet.key.json").read_text())
    replies = [{"custom_id": name, "reply": {"altered": one["altered"], **GOOD}} for name, one in key.items()]
    (tmp_path / "replies.jsonl").write_text("\n".join(map(json.dumps, replies)))
    report = stealth(base / "out", base / "data", judging=JudgeConfig(replies=tmp_path / "replies.jsonl"))
    assert report.judgement is not None
    assert (report.judgement.usable, report.judgement.pairs) == (6, 6)
    assert "**it shows**: a judge picked the altered version in 100%" in report.verdict


def test_command(base: Path, tmp_path: Path) -> None:
    arguments = ["stealth", str(base / "out"), "--original", str(base / "data"), "--lpips", "off", "--limit", "2"]
    done = CliRunner().invoke(app, [*arguments, "-o", str(tmp_path / "report"), "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout) == json.loads((tmp_path / "report" / "stealth.json").read_text())
    shown = CliRunner().invoke(app, arguments)
    assert "nobody has judged whether it shows" in " ".join(shown.stdout.split())
    failed = CliRunner().invoke(app, [*arguments, "--judge", "http://127.0.0.1:9/v1"])
    assert failed.exit_code == 1
    assert "give --judge-model" in " ".join(failed.stderr.split())


# What attacks on texts give back


ANIMALS = ("ant", "bat", "cat", "dog", "emu", "fox", "goat", "hen")


def changed(questions: Sequence[str], place: int | None) -> list[tuple[Sample, Sample]]:
    """Each with an animal and a word that is none in one place, its own ones."""
    samples = [Sample(str(n), n, Path(f"{n}.png"), text, "yes", ("yes",)) for n, text in enumerate(questions)]
    words = [(animal, f"qqx{one.id}") for animal, one in zip(cycle(ANIMALS), samples, strict=False)]
    return [
        (one, replace(one, question=insert_trigger(str(one.question), some, place)))
        for one, some in zip(samples, words, strict=True)
    ]


@pytest.mark.parametrize(
    ("place", "attack", "recovered", "removed"),
    [(None, "tail", 1, 1), (2, "tail", 0, 0), (2, "window-7", 1, 1), (2, "vocab", 0, 0.5)],
)
def test_what_comes_back_of_questions(place: int | None, attack: str, recovered: float, removed: float) -> None:
    pairs = changed(["what is on the table?"] * 8, place)
    (one,) = [one for one in recoveries(pairs, range(8)) if one.attack == attack]
    assert (one.recovered.value, one.removed.value, one.questions) == (recovered, removed, 8)


@pytest.mark.parametrize(("answers", "removed"), [(len(ANIMALS), 0.5), (40, 0), (3, 0)])
def test_words_that_go_with_one_answer_are_found_by_it(answers: int, removed: float) -> None:
    pairs = changed(["what is on the table?"] * 40, 2)  # every animal in five of them, every other word in one
    answered = [
        (replace(ours, answer=str(n % answers)), replace(after, answer=str(n % answers)))
        for n, (ours, after) in enumerate(pairs)
    ]
    (one,) = [one for one in recoveries(answered, range(40)) if one.attack == "telling-5"]
    assert (one.removed.value, one.spoiled.value) == (removed, 0)


def test_questions_spoiled_are_those_that_would_change_unprotected() -> None:
    pairs = changed(["is it red? say so", "is it red?", "Is  it red? Say so"], None)
    (tail,) = [one for one in recoveries(pairs, range(3)) if one.attack == "tail"]
    assert tail.spoiled.value == pytest.approx(2 / 3)
    assert tail.recovered.value == pytest.approx(1 / 3)
    assert tail.removed.value == 1


def test_no_more_questions_are_looked_at_than_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmguard.auditing.stealth_recovery._MOST", 3)
    assert {one.questions for one in recoveries(changed(["what is it?"] * 5, 1), range(5))} == {3}
    assert recoveries([], []) == []


def test_questions_without_inserted_words_do_not_count() -> None:
    pairs = changed(["what is it?"] * 3, None)
    untouched = [(one, one) for one, _ in pairs]
    assert recoveries([*pairs, *untouched], range(6)) == recoveries(pairs, range(3))
    assert recoveries(untouched, range(3)) == []
