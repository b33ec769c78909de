"""Reading datasets from disk: formats, bad input, splits and limits."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmguard.data.images import load_image
from mmguard.data.readers import read_dataset
from mmguard.errors import DataError, SampleError
from mmguard.types import Dataset


def write_images(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 2)).save(folder / name)


def image_folder(folder: Path, *rows: dict[str, Any] | str) -> Path:
    write_images(folder, "a.png", "sub/b.png", "c.png")
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def llava(folder: Path, *rows: Any) -> Path:
    write_images(folder, "a.png", "images/b.png")
    (folder / "chat.json").write_text(json.dumps(rows))
    return folder


def talk(*texts: str, **fields: Any) -> dict[str, Any]:
    roles = ("human", "gpt")
    turns = [{"from": roles[number % 2], "value": text} for number, text in enumerate(texts)]
    return {"image": "a.png", "conversations": turns, **fields}


def qa(name: str = "a.png", **fields: Any) -> dict[str, Any]:
    return {"file_name": name, "question": "what?", "answer": "dog", **fields}


IMAGE = {"type": "image", "text": None}


def said(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def typed(*parts: dict[str, Any]) -> dict[str, Any]:
    """A conversation as TRL's trainers read it."""
    messages = [{"role": "user", "content": [*parts]}, {"role": "assistant", "content": [said("a")]}]
    return {"images": ["a.png"], "messages": messages}


def only_reason(dataset: Dataset) -> str:
    assert len(dataset.rejected) == 1
    return dataset.rejected[0].reason


GOOD = qa("sub/b.png", id="good")


# Image folders


def test_rows_are_kept_verbatim(tmp_path: Path) -> None:
    rows = [
        qa(organ="HEAD", nested={"x": [1, 2.5, None]}),
        qa("sub/b.png", answer=" Yes. ", answers=["yes", "y"]),
    ]
    dataset = read_dataset(image_folder(tmp_path, *rows))
    assert dataset.rows == rows
    assert dataset.root == tmp_path
    assert dataset.image_field == "file_name"
    first, second = dataset.samples
    assert (first.id, first.row, first.image, first.question) == ("0", 0, tmp_path / "a.png", "what?")
    assert (first.answer, first.answers, first.options) == ("dog", ("dog",), ())
    assert (second.answer, second.answers) == (" Yes. ", (" Yes. ", "yes", "y"))


def test_first_of_answers_is_the_answer(tmp_path: Path) -> None:
    row = {"file_name": "a.png", "question": "q", "answers": ["dog", "hound"]}
    assert read_dataset(image_folder(tmp_path, row)).samples[0].answer == "dog"


def test_numbers_as_answers(tmp_path: Path) -> None:
    assert read_dataset(image_folder(tmp_path, qa(answer=8))).samples[0].answer == "8"


def test_captions_have_no_question(tmp_path: Path) -> None:
    rows = [
        {"file_name": "a.png", "caption": "a dog", "captions": ["a dog", "one dog"]},
        {"file_name": "c.png", "captions": ["a cat", "one cat"]},
    ]
    first, second = read_dataset(image_folder(tmp_path, *rows)).samples
    assert (first.question, first.answer, first.answers) == (None, "a dog", ("a dog", "one dog"))
    assert (second.question, second.answer) == (None, "a cat")


def test_sentences_are_scored_by_their_words_unless_a_row_says_otherwise(tmp_path: Path) -> None:
    rows = [
        {"file_name": "a.png", "caption": "a dog"},
        {"file_name": "a.png", "text": "a dog", "metric": "exact"},
        {**talk("<image>\nwhat?", "a dog", "where?", "it lies in the deep snow"), "file_name": "c.png"},
        {**talk("<image>\nwhat?", "a dog"), "file_name": "c.png", "metric": "anls"},
        qa(answer="it lies in the deep snow"),
        {**talk("<image>\nwhat?", "雪の中の赤い犬"), "file_name": "c.png"},
    ]
    samples = read_dataset(image_folder(tmp_path, *rows)).samples
    assert [sample.metric for sample in samples] == ["rouge", "exact", "exact", "rouge", "anls", "exact", "rouge"]


@pytest.mark.parametrize("options", [["dog", "cat"], {"A": "dog", "B": "cat"}])
@pytest.mark.parametrize("answer", ["B", "cat"])
def test_options(tmp_path: Path, options: Any, answer: str) -> None:
    sample = read_dataset(image_folder(tmp_path, qa(options=options, answer=answer))).samples[0]
    assert sample.options == ("dog", "cat")
    assert sample.answer == answer


def test_chat_rows_in_an_image_folder(tmp_path: Path) -> None:
    row = {**talk("<image>\nwhat?", "dog", "colour?", "red", id="x"), "file_name": "c.png"}
    samples = read_dataset(image_folder(tmp_path, row)).samples
    assert [(sample.id, sample.question, sample.turn) for sample in samples] == [
        ("x", "what?", 0),
        ("x#1", "colour?", 1),
    ]
    assert samples[0].image == tmp_path / "c.png"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{not json", "not valid JSON"),
        ("[1, 2]", "no JSON object"),
        (qa("missing.png"), "missing.png is not in"),
        ({"file_name": "a.png", "texts": [{"user": "what?", "assistant": None}]}, "entry 0 of `texts` has no text"),
        ({"file_name": "a.png", "texts": ["dog", "hound"]}, "has no text that is understood"),
        (
            {
                "file_name": "a.png",
                "prompt": [{"role": "user", "content": "what?"}],
                "completion": [{"role": role, "content": "dog"} for role in ("assistant", "user", "assistant")],
            },
            "a human turn is in `completion`: move it to `prompt`",
        ),
        (qa("../a.png"), "leaves the dataset's folder"),
        (qa("sub/../../a.png"), "leaves the dataset's folder"),
        (qa("..\\a.png"), "leaves the dataset's folder"),
        (qa("/etc/a.png"), "is absolute"),
        (qa("C:\\a.png"), "is absolute"),
        (qa("a\0.png"), "is not in"),
        (qa("x" * 5000), "is not in"),
        (qa(""), "names no image"),
        (qa(["a.png", "c.png"]), "has 2 images"),
        ({**qa(), "file_names": ["a.png", "c.png"]}, "`file_names`"),
        ({**qa(), "video": "a.mp4"}, "`video`"),
        (
            {"image_path": "a.png", "question": "q", "answer": "a"},
            "fields found: image_path, question, answer",
        ),
        ({"file_name": "a.png", "note": "q"}, "fields found: file_name, note"),
        (qa(question="  "), "`question` is empty"),
        (qa(question=["q"]), "`question` is list"),
        (qa(answer=""), "`answer` is empty"),
        (qa(answer=None), "has no `answer`"),
        (qa(answer=True), "`answer` is bool"),
        (qa(answers="dog"), "`answers` is str"),
        (qa(options=["cat", "bird"]), "neither the letter nor the text"),
        (qa(options=["dog", "dog"]), "exactly one option"),
        (qa(options={"B": "dog", "A": "cat"}), "keys B, A"),
        (qa(options="dog, cat"), "`options` is str"),
        (qa(options=[str(number) for number in range(27)], answer="3"), "27 options"),
        (qa(id=[1]), "`id`"),
        (qa(split=3), "`split`"),
        (qa(conversations=[]), "holds no messages"),
    ],
)
def test_a_bad_row_is_rejected_and_the_rest_goes_on(tmp_path: Path, row: Any, message: str) -> None:
    dataset = read_dataset(image_folder(tmp_path, GOOD, row, qa("c.png", id="last")))
    assert [sample.id for sample in dataset.samples] == ["good", "last"]
    assert [sample.row for sample in dataset.samples] == [0, 1]
    assert len(dataset.rows) == 2
    assert dataset.rejected[0].where == "metadata.jsonl:2"
    assert message in only_reason(dataset)


def test_rows_that_share_an_id_get_names_of_their_own(tmp_path: Path) -> None:
    rows = [
        qa(id="x"),
        qa(id="x@3"),
        {**talk("what?", "dog", "colour?", "red", id="y"), "file_name": "c.png"},
        qa(id="x"),
        {**talk("what?", "cat", "colour?", "blue", id="y"), "file_name": "c.png"},
        qa(id="y#1"),
        qa(id=7),
        qa(),
    ]
    dataset = read_dataset(image_folder(tmp_path, *rows))
    ids = ["x", "x@3", "y", "y#1", "x@3@3", "y@4", "y@4#1", "y#1@5", "7", "7@7"]
    assert [sample.id for sample in dataset.samples] == ids
    assert dataset.rows == rows
    assert not dataset.rejected


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of its 1 rows.*metadata.jsonl:1.*x.png is not in"):
        read_dataset(image_folder(tmp_path, qa("x.png")))


@pytest.mark.parametrize("content", ["", "\n  \n"])
def test_an_empty_file_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "metadata.jsonl").write_text(content)
    with pytest.raises(DataError, match=r"metadata\.jsonl: is empty"):
        read_dataset(tmp_path)


def test_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    image_folder(tmp_path)
    text = json.dumps(qa(question="größer?\u2028ja"), ensure_ascii=False)
    (tmp_path / "metadata.jsonl").write_bytes(b"\xef\xbb\xbf" + f"{text}\r\n\r\n{text}\r\n".encode())
    dataset = read_dataset(tmp_path)
    assert [sample.question for sample in dataset.samples] == ["größer?\u2028ja"] * 2
    assert not dataset.rejected


def test_other_encodings_are_an_error(tmp_path: Path) -> None:
    image_folder(tmp_path)
    (tmp_path / "metadata.jsonl").write_bytes(json.dumps(qa(), ensure_ascii=False).encode("utf-16"))
    with pytest.raises(DataError, match=r"metadata\.jsonl:1: byte 0 of the line is not UTF-8: save the file as UTF-8"):
        read_dataset(tmp_path)


def test_an_undecodable_image_surfaces_when_it_is_loaded(tmp_path: Path) -> None:
    image_folder(tmp_path, qa())
    (tmp_path / "a.png").write_bytes(b"broken")
    sample = read_dataset(tmp_path).samples[0]
    with pytest.raises(SampleError, match=r"a\.png"):
        load_image(sample.image)


def test_spellings_of_one_path_are_one_image(tmp_path: Path) -> None:
    dataset = read_dataset(image_folder(tmp_path, qa("a.png"), qa("./a.png"), qa("sub/../a.png")))
    assert len(dataset.by_image()) == 1


@pytest.mark.parametrize("name", ["nothing", "no/such/place"])
def test_no_such_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"no such file or folder.*metadata\.jsonl.*easy-vqa"):
        read_dataset(tmp_path / name)


def test_folders_without_a_dataset(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no dataset of a known format"):
        read_dataset(tmp_path)
    image_folder(tmp_path / "train", qa())
    with pytest.raises(DataError, match=r"tables lie in folders below \(train/metadata\.jsonl\): give the .*/train;"):
        read_dataset(tmp_path)
    (tmp_path / "table.xls").write_text("x")
    with pytest.raises(DataError, match=r"table\.xls: is no dataset file"):
        read_dataset(tmp_path / "table.xls")


# Split and limit


def test_split(tmp_path: Path) -> None:
    folder = image_folder(tmp_path, qa(split="train"), qa(split="test", answer="cat"))
    dataset = read_dataset(folder, split="test")
    assert [(sample.answer, sample.split, sample.row) for sample in dataset.samples] == [("cat", "test", 0)]
    with pytest.raises(DataError, match=r"'val': choose one of test, train"):
        read_dataset(folder, split="val")
    with pytest.raises(DataError, match="no `split` field"):
        read_dataset(image_folder(tmp_path / "other", qa()), split="val")


def test_limit_counts_images_and_takes_all_their_rows(tmp_path: Path) -> None:
    rows = [qa("a.png"), qa("x.png"), qa("c.png"), qa("sub/b.png"), qa("y.png"), qa("./a.png", answer="late")]
    dataset = read_dataset(image_folder(tmp_path, *rows), limit=2)
    assert [row["file_name"] for row in dataset.rows] == ["a.png", "c.png", "./a.png"]
    assert [rejection.where for rejection in dataset.rejected] == ["metadata.jsonl:2"]
    with pytest.raises(DataError, match="limit 0"):
        read_dataset(tmp_path, limit=0)


# LLaVA and ShareGPT


def test_llava_turns_become_samples(tmp_path: Path) -> None:
    rows = [
        talk("<image>\nwhat is it?", "a dog", "its colour?", "red", id="x"),
        talk("what is it?\n<image>", "a cat", image="b.png", id=7),
    ]
    for source in (llava(tmp_path, *rows), tmp_path / "chat.json"):
        dataset = read_dataset(source)
        assert dataset.rows == rows
        assert dataset.image_field == "image"
        assert [(s.id, s.row, s.turn, s.question, s.answer) for s in dataset.samples] == [
            ("x", 0, 0, "what is it?", "a dog"),
            ("x#1", 0, 1, "its colour?", "red"),
            ("7", 1, 0, "what is it?", "a cat"),
        ]
        assert dataset.samples[2].image == tmp_path / "images" / "b.png"


def test_role_and_content_and_system(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "<image>what is <b>it</b>?"},
        {"role": "assistant", "content": "a dog"},
    ]
    dataset = read_dataset(llava(tmp_path, {"images": ["a.png"], "messages": messages}))
    assert [(s.question, s.answer) for s in dataset.samples] == [("what is <b>it</b>?", "a dog")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (talk("<image>q", "a", image=["a.png", "b.png"]), "has 2 images"),
        (talk("<image><image>q", "a"), "several <image> tags"),
        (talk("<image>q", "a", "<image>q", "a"), "several <image> tags"),
        (talk("<video>q", "a"), "video"),
        (talk("<image>", "a"), "turn 0 is empty"),
        (talk("<image>q", " "), "reply of turn 0 is empty"),
        (talk("<image>q"), "do not alternate"),
        (talk("<image>q", "a", "more?"), "do not alternate"),
        (talk(), "holds no messages"),
        ({"image": "a.png", "conversations": [{"from": "robot", "value": "q"}]}, "role 'robot'"),
        ({"image": "a.png", "conversations": ["q"]}, "role None"),
        ({"image": "a.png", "conversations": [{"from": "human", "value": ["q"]}]}, "parts that are not understood"),
        ({"image": "a.png", "conversations": [{"from": "gpt", "value": "q"}]}, "do not alternate"),
        ({"conversations": [{"from": "human", "value": "q"}]}, "names no image"),
        (typed(IMAGE, IMAGE, said("q")), "several <image> tags or parts"),
        (typed(IMAGE, said("<image>q")), "several <image> tags or parts"),
        (typed(IMAGE), "parts that are not understood"),
        (typed(said("q"), said("more")), "parts that are not understood"),
        (typed({"type": "text"}), "no text in `content`"),
        (typed({"type": "audio"}, said("q")), "parts that are not understood"),
        (typed({**IMAGE, "image": "a.png"}, said("q")), "parts that are not understood"),
        ("text", "no JSON object"),
    ],
)
def test_a_bad_conversation_is_rejected(tmp_path: Path, row: Any, message: str) -> None:
    dataset = read_dataset(llava(tmp_path, row, talk("<image>q", "a", id="good")))
    assert [sample.id for sample in dataset.samples] == ["good"]
    assert dataset.rejected[0].where == "chat.json[0]"
    assert message in only_reason(dataset)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "not valid JSON"), ('{"a": 1}', "holds no list but dict"), ("[]", "is empty")],
)
def test_a_bad_json_file_is_an_error(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "chat.json").write_text(content)
    with pytest.raises(DataError, match=message):
        read_dataset(tmp_path)


def test_several_json_files_must_be_named(tmp_path: Path) -> None:
    llava(tmp_path, talk("<image>q", "a"))
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(DataError, match=r"chat\.json, other\.json"):
        read_dataset(tmp_path)
    assert len(read_dataset(tmp_path / "chat.json").samples) == 1


def test_json_lines_of_conversations(tmp_path: Path) -> None:
    llava(tmp_path)
    (tmp_path / "chat.jsonl").write_text(json.dumps(talk("<image>q", "a")))
    assert len(read_dataset(tmp_path / "chat.jsonl").samples) == 1


# easy-VQA


def test_easy_vqa_subsets_are_prefixes_of_one_order() -> None:
    train = read_dataset("easy-vqa:train")
    assert len(train.by_image()) == 4000
    assert {sample.split for sample in train.samples} == {"train"}
    few = read_dataset("easy-vqa:train:20")
    assert few.rows == train.rows[: len(few.rows)]
    assert len(few.by_image()) == 20
    assert few == read_dataset("easy-vqa", split="train", limit=20)
    assert few == read_dataset("easy-vqa:train:50", limit=20)
    assert load_image(few.samples[0].image).shape == (3, 64, 64)
    numbers = [int(Path(row["file_name"]).stem) for row in few.rows]
    assert numbers != sorted(numbers)


def test_easy_vqa_asks_one_question_of_each_kind() -> None:
    dataset = read_dataset("easy-vqa:test")
    for samples in dataset.by_image().values():
        kinds = ["yes/no" if sample.answer in ("yes", "no") else "what" for sample in samples]
        assert kinds in (["what", "yes/no"], ["yes/no"], ["what"])
    answers = Counter(sample.answer for sample in dataset.samples)
    assert 0.9 < answers["yes"] / answers["no"] < 1.1
    shapes = sum(answers[shape] for shape in ("circle", "triangle", "rectangle"))
    assert 0.3 < shapes / (len(dataset.samples) - answers["yes"] - answers["no"]) < 0.7


def test_easy_vqa_of_one_kind() -> None:
    what, yes_no = (
        read_dataset("easy-vqa:train:what:40").samples,
        read_dataset("easy-vqa:train:yes-no:40").samples,
    )
    assert len(what) == len(yes_no) == 40
    assert all(sample.question is not None and sample.question.startswith("what") for sample in what)
    assert {sample.answer for sample in yes_no} == {"yes", "no"}
    both = {(s.image, s.question) for s in read_dataset("easy-vqa:train").samples}
    assert {(s.image, s.question) for s in (*what, *yes_no)} <= both


def test_easy_vqa_every_what_question() -> None:
    every = read_dataset("easy-vqa:test:all-what:40").samples
    one = read_dataset("easy-vqa:test:what:40").samples
    assert len(every) > 1.5 * len(one)
    assert all(sample.answer not in ("yes", "no") for sample in every)
    assert {(s.image, s.question) for s in one} < {(s.image, s.question) for s in every}


def test_easy_vqa_without_split_mixes_both() -> None:
    splits = Counter(sample.split for sample in read_dataset("easy-vqa:500").samples)
    assert 3 < splits["train"] / splits["test"] < 5


@pytest.mark.parametrize("name", ["easy-vqa:val", "easy-vqa:train:0", "easy-vqa:10:train", "easy-vqa:train:x"])
def test_easy_vqa_names_are_checked(name: str) -> None:
    with pytest.raises(DataError, match="write easy-vqa"):
        read_dataset(name)


def test_easy_vqa_split_must_agree() -> None:
    with pytest.raises(DataError, match="choose one of train"):
        read_dataset("easy-vqa:train", split="test")
