"""Every violation that a release can have is found, and a good one passes."""

from __future__ import annotations

import json
import shutil
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from torchvision.transforms.functional import to_pil_image

from mmguard.config import ProtectConfig
from mmguard.data.images import load_image
from mmguard.data.readers import read_dataset
from mmguard.errors import DataError, ReleaseError
from mmguard.release.verify import Verification, verify
from mmguard.release.writer import ReleaseWriter

EPS, WORDS = 3, 2
TRIGGERS = {"0": ("zebra", "Moon"), "1": ("sun",), "c": ("zebra", "sun"), "c#1": ("moon", "sun")}
CHAT = [
    {"from": "human", "value": "<image>\nis it red?"},
    {"from": "gpt", "value": "yes"},
    {"from": "human", "value": "and now?"},
    {"from": "gpt", "value": "no"},
]
ROWS: list[dict[str, Any]] = [
    {"file_name": "a.jpg", "question": "is it  red?", "answer": "yes", "organ": "HEAD"},
    {"file_name": "a.jpg", "question": "is it dark?", "answer": "yes", "organ": "HEAD"},
    {"file_name": "b.png", "caption": "a dog", "number": 1},
    {"file_name": "b.png", "id": "c", "conversations": CHAT},
]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data`, its release `out` and the record."""
    base = tmp_path_factory.mktemp("good")
    (base / "data").mkdir()
    for seed, name in enumerate(("a.jpg", "b.png")):
        pixels = torch.randint(0, 256, (3, 6, 8), generator=torch.Generator().manual_seed(seed)).byte()
        to_pil_image(pixels).save(base / "data" / name, format="PNG")
    (base / "data" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    dataset = read_dataset(base / "data")
    writer = ReleaseWriter(base / "out", dataset, ProtectConfig(eps=EPS, trigger_words=WORDS), [])
    for seed, image in enumerate(dataset.by_image()):
        original = load_image(image).int()
        delta = torch.randint(-EPS, EPS + 1, original.shape, generator=torch.Generator().manual_seed(seed))
        writer.write_image(image, (original + delta).clamp(0, 255).to(torch.uint8))
    writer.finish(TRIGGERS, [])
    return base


@pytest.fixture
def base(good: Path, tmp_path: Path) -> Path:
    """A copy of `good` to tamper with."""
    shutil.copytree(good, tmp_path / "copy")
    return tmp_path / "copy"


def check(base: Path, recorded: bool, **arguments: Any) -> Verification:
    if not recorded:
        shutil.rmtree(base / "out.record")
        arguments = {"eps": EPS, "trigger_words": WORDS, **arguments}
    return verify(base / "out", base / "data", **arguments)


def test_a_copy_from_the_hub_is_verified_against_the_record_at_home(base: Path) -> None:
    copy = base / "from the hub"
    shutil.move(base / "out", copy)
    for name in (".gitattributes", ".cache/huggingface/download/a.png.metadata", ".git/config"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).touch()
    alone = verify(copy, base / "data", eps=EPS, trigger_words=WORDS)
    assert alone.ok, alone.problems
    assert "no record could be read" in alone.notes[0]
    known = verify(copy, base / "data", record=base / "out.record")
    assert known.ok, known.problems
    assert (known.eps, known.eps_from, known.notes) == (EPS, "record", [])
    (copy / ".gitattributes2").touch()
    assert verify(copy, base / "data").problems[-1] == ".gitattributes2: does not belong to the release"
    with pytest.raises(ReleaseError, match=r"data: has no record\.json: give the folder"):
        verify(copy, base / "data", record=base / "data")


def rows_of(base: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (base / "out" / "metadata.jsonl").read_text().splitlines()]


def put_rows(base: Path, rows: list[dict[str, Any]]) -> None:
    (base / "out" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def change_row(base: Path, place: int, /, **fields: Any) -> None:
    rows = rows_of(base)
    put_rows(base, [{**row, **fields} if number == place else row for number, row in enumerate(rows)])


def change_turn(base: Path, number: int, **fields: Any) -> None:
    turns = rows_of(base)[3]["conversations"]
    change_row(base, 3, conversations=[{**t, **fields} if k == number else t for k, t in enumerate(turns)])


def drop_field(base: Path, number: int, field: str) -> None:
    rows = rows_of(base)
    del rows[number][field]
    put_rows(base, rows)


def add_rows(base: Path, *rows: dict[str, Any]) -> None:
    put_rows(base, [*rows_of(base), *rows])


def drop_rows(base: Path, *numbers: int) -> None:
    put_rows(base, [row for place, row in enumerate(rows_of(base)) if place not in numbers])


def swap_rows(base: Path, a: int, b: int) -> None:
    rows = rows_of(base)
    rows[a], rows[b] = rows[b], rows[a]
    put_rows(base, rows)


def crop(base: Path) -> None:
    to_pil_image(load_image(base / "out/a.png")[:, 1:]).save(base / "out/a.png", format="PNG")


def as_jpeg(base: Path) -> None:
    # A JPEG under a PNG's name whose pixels are within any budget of 255.
    with Image.open(base / "out/a.png") as file:
        file.convert("RGB").save(base / "out/a.png", format="JPEG")


def with_metadata(base: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Software", "mmguard")
    with Image.open(base / "out/a.png") as file:
        picture = file.convert("RGB")
    picture.save(base / "out/a.png", pnginfo=info)


def link(base: Path) -> None:
    (base / "out/a.png").unlink()
    (base / "out/a.png").symlink_to(base / "data/a.jpg")


TAMPERINGS: list[tuple[str, Callable[[Path], object], str]] = [
    ("drop a row", lambda b: drop_rows(b, 1), "id 1: is missing"),
    ("drop a chat", lambda b: drop_rows(b, 3), "id c, c#1: is missing"),
    ("drop rows with their image", lambda b: drop_rows(b, 0, 1), "a.png: does not belong"),
    ("double a row", lambda b: add_rows(b, rows_of(b)[0]), "metadata.jsonl:5: belongs to no row"),
    (
        "add a row",
        lambda b: add_rows(b, {"file_name": "b.png", "question": "q"}),
        "jsonl:5: belongs to no row",
    ),
    ("another order", lambda b: swap_rows(b, 0, 2), "not in the original's order"),
    (
        "no JSON",
        lambda b: (b / "out/metadata.jsonl").open("a").write("{"),
        "metadata.jsonl:5: not valid JSON",
    ),
    ("alter an answer", lambda b: change_row(b, 0, answer="no"), "(id 0): fields altered: answer"),
    ("answer's type", lambda b: change_row(b, 2, number=True), "(id 2): fields altered: number"),
    ("alter a caption", lambda b: change_row(b, 2, caption="a cat"), "fields altered: caption"),
    ("alter another field", lambda b: change_row(b, 1, organ="CHEST"), "organ"),
    ("add a field", lambda b: change_row(b, 1, note=""), "note"),
    ("drop a field", lambda b: drop_field(b, 1, "organ"), "organ"),
    ("drop the answer", lambda b: drop_field(b, 1, "answer"), "answer"),
    ("drop the question", lambda b: drop_field(b, 1, "question"), "question"),
    ("question is no text", lambda b: change_row(b, 1, question=None), "question"),
    ("another image", lambda b: change_row(b, 0, file_name="b.png"), "id 0: is missing"),
    ("an original's path", lambda b: change_row(b, 0, file_name="../data/a.jpg"), "id 0: is missing"),
    ("delete a word", lambda b: change_row(b, 0, question="is red? zebra Moon"), "(id 0): the owner's words"),
    ("replace a word", lambda b: change_row(b, 1, question="is it light? sun"), "(id 1): the owner's words"),
    (
        "white space",
        lambda b: change_row(b, 0, question="is it red? zebra Moon"),
        "(id 0): the owner's words",
    ),
    (
        "add a word",
        lambda b: change_row(b, 0, question="is it  red? zebra Moon x"),
        "(id 0): 3 words inserted",
    ),
    ("add a sign", lambda b: change_row(b, 1, question="is it dark? sun !"), "(id 1): the owner's words"),
    ("alter a reply", lambda b: change_turn(b, 1, value="no"), "(id c): fields altered: conversations"),
    ("alter a role", lambda b: change_turn(b, 0, **{"from": "user"}), "conversations"),
    ("unknown role", lambda b: change_turn(b, 0, **{"from": "robot"}), "conversations"),
    ("drop the tag", lambda b: change_turn(b, 0, value="is it red? zebra sun"), "conversations"),
    ("no conversation", lambda b: change_row(b, 3, conversations="x"), "conversations"),
    (
        "words of a turn",
        lambda b: change_turn(b, 2, value="and then? moon sun"),
        "(id c#1): the owner's words",
    ),
    ("add to a turn", lambda b: change_turn(b, 2, value="and now? a b c"), "(id c#1): 3 words inserted"),
    ("add a file", lambda b: (b / "out/c.png").write_bytes(b""), "c.png: does not belong"),
    ("add a hidden file", lambda b: (b / "out/.x").write_bytes(b""), ".x: does not belong"),
    (
        "publish the record",
        lambda b: shutil.copytree(b / "out.record", b / "out/r"),
        "r/record.json: does not",
    ),
    ("remove an image", lambda b: (b / "out/a.png").unlink(), "no such image file"),
    ("break an image", lambda b: (b / "out/a.png").write_bytes(b"x"), "cannot be decoded"),
    ("crop an image", crop, "a.png: is 8 x 5 pixels, the original 8 x 6"),
    ("another format", as_jpeg, "a.png: is JPEG, by its name PNG"),
    ("PNG with text", with_metadata, "a.png: its metadata is not the original's (text)"),
    ("link an original", link, "a.png: is a link"),
]


def test_a_good_release_passes(good: Path) -> None:
    result = verify(good / "out", good / "data")
    assert result.ok
    assert (result.images, result.samples, result.max_eps, result.max_words) == (2, 5, EPS, WORDS)
    assert (result.eps, result.eps_from) == (EPS, "record")
    assert (result.trigger_words, result.trigger_words_from) == (WORDS, "record")
    assert json.loads(json.dumps(result.to_dict()))["ok"] is True
    assert result.notes == []
    assert verify(good / "out", read_dataset(good / "data")).ok


def test_budgets_come_from_arguments_record_or_defaults(base: Path) -> None:
    strict = check(base, recorded=True, eps=EPS - 1)
    assert (strict.eps_from, strict.trigger_words_from) == ("arguments", "record")
    assert f"a.png: differs by {EPS}/255, the budget is {EPS - 1}/255" in strict.problems
    shutil.rmtree(base / "out.record")
    result = verify(base / "out", base / "data")
    assert (result.eps, result.trigger_words, result.eps_from) == (8, 5, "defaults")
    assert result.ok
    (note,) = result.notes
    assert note.startswith(f"{base / 'out.record' / 'record.json'}: no record could be read")
    assert note.endswith("budgets: 8/255 from defaults, 5 words from defaults")


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize(("tamper", "message"), [t[1:] for t in TAMPERINGS], ids=[t[0] for t in TAMPERINGS])
def test_tampering_is_found(base: Path, tamper: Callable[[Path], object], message: str, recorded: bool) -> None:
    tamper(base)
    result = check(base, recorded)
    assert not result.ok
    assert any(message in problem for problem in result.problems), result.problems


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_one_pixel_beyond_the_budget_is_found(good: Path, tmp_path: Path, data: st.DataObject) -> None:
    base = tmp_path / "pixel"
    shutil.copytree(good, base, dirs_exist_ok=True)
    shutil.rmtree(base / "out.record")
    name = data.draw(st.sampled_from(["a", "b"]))
    original = load_image(next((base / "data").glob(f"{name}.*"))).int()
    released = load_image(base / "out" / f"{name}.png")
    spot = tuple(data.draw(st.integers(0, size - 1)) for size in original.shape)
    value = int(original[spot])
    excess = data.draw(st.integers(EPS + 1, max(value, 255 - value)))
    sign = data.draw(st.sampled_from([s for s in (-1, 1) if 0 <= value + s * excess <= 255]))
    released[spot] = value + sign * excess
    to_pil_image(released).save(base / "out" / f"{name}.png", format="PNG")
    result = verify(base / "out", base / "data", eps=EPS)
    assert result.problems == [f"{name}.png: differs by {excess}/255, the budget is {EPS}/255"]
    assert result.max_eps == excess


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(words=st.lists(st.text(string.ascii_letters, min_size=1, max_size=5), max_size=4))
def test_any_admissible_words_within_the_budget_pass_without_record(
    good: Path, tmp_path: Path, words: list[str]
) -> None:
    base = tmp_path / "words"
    shutil.copytree(good, base, dirs_exist_ok=True)
    shutil.rmtree(base / "out.record")
    change_row(base, 1, question=" ".join(["is it dark?", *words]))
    result = verify(base / "out", base / "data", eps=EPS, trigger_words=WORDS)
    assert result.ok == (len(words) <= WORDS)
    assert result.max_words == max(len(words), WORDS)


def test_the_original_itself_is_no_release(base: Path) -> None:
    unchanged = "metadata.jsonl: no picture and no question differs from the original: nothing protects"
    assert verify(base / "data", base / "data").problems[-1].endswith(unchanged)
    questions = [{**row, "file_name": Path(row["file_name"]).with_suffix(".png").name} for row in ROWS]
    put_rows(base, questions)
    assert check(base, recorded=False).ok  # its pictures differ


# What only the record can tell


def test_an_original_in_place_of_its_release_is_found(base: Path) -> None:
    to_pil_image(load_image(base / "data" / "a.jpg")).save(base / "out" / "a.png", format="PNG")
    assert any("a.png: is not the file that was recorded" in p for p in check(base, recorded=True).problems)


def test_an_original_that_changed_is_found(base: Path) -> None:
    pixels = load_image(base / "data" / "a.jpg")
    pixels[0, 0, 0] = int(load_image(base / "out" / "a.png")[0, 0, 0])
    to_pil_image(pixels).save(base / "data" / "a.jpg", format="PNG")
    assert any("a.jpg: is not the file that was recorded" in p for p in check(base, recorded=True).problems)


def test_other_words_than_recorded_are_found(base: Path) -> None:
    change_row(base, 1, question="is it dark? moon")
    result = check(base, recorded=True)
    assert result.problems == ["metadata.jsonl:2 (id 1): the inserted words are not those recorded"]


def test_a_smaller_original_is_found(base: Path) -> None:
    (base / "data" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:3]))
    problems = check(base, recorded=True).problems
    assert "id c: was protected, but is not in the original" in problems
    assert "metadata.jsonl:4: belongs to no row of the original" in problems


@pytest.mark.parametrize("content", ["{", "[]", '{"budgets": 3}', '{"dataset": {"split": null, "limit": null}}'])
def test_a_damaged_record_is_one_problem(base: Path, content: str) -> None:
    (base / "out.record" / "record.json").write_text(content)
    result = verify(base / "out", base / "data")
    assert len(result.problems) == 1
    assert "record.json: is damaged" in result.problems[0]
    assert result.eps_from == "defaults"


def test_split_and_limit_come_from_the_record(tmp_path: Path) -> None:
    dataset = read_dataset("easy-vqa", split="train", limit=3)
    writer = ReleaseWriter(tmp_path / "out", dataset, ProtectConfig(), [], "easy-vqa", "train", 3)
    for image in dataset.by_image():
        writer.write_image(image, load_image(image))
    writer.finish({sample.id: ("zebra",) for sample in dataset.samples}, [])
    assert verify(tmp_path / "out", "easy-vqa").ok
    assert not verify(tmp_path / "out", "easy-vqa", limit=4).ok
    shutil.rmtree(tmp_path / "out.record")
    assert verify(tmp_path / "out", "easy-vqa", split="train", limit=3).ok


# What cannot be verified at all


def test_no_release_and_no_original(base: Path) -> None:
    with pytest.raises(ReleaseError, match=r"tables lie in folders below.*give the folder that"):
        verify(base, base / "data")
    with pytest.raises(DataError, match="no such file or folder"):
        verify(base / "out", base / "nowhere")
