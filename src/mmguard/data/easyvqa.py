"""The easy-VQA dataset: 64 x 64 pictures of one coloured shape, inside the `easy_vqa` package.

No download, and small enough for experiments on a CPU.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import easy_vqa

from mmguard.data.sources import Source
from mmguard.errors import DataError
from mmguard.types import Rejection

_SEED = "easy-vqa-0"


def is_name(source: str) -> bool:
    """Whether a dataset source names easy-VQA."""
    return source.split(":")[0] == "easy-vqa"


def read_easy_vqa(name: str) -> tuple[Source, int | None]:
    """Reads `easy-vqa[:train|test][:what|all-what|yes-no][:N]`.

    The package asks 8-10 questions of every picture, most of them yes/no. Two are kept: one "what…" question
    and one yes/no question. Which ones is drawn from a hash of the picture's number: first the kind of answer
    (colour or shape; yes or no), then the question, so that answers stay as balanced as the package allows. A
    picture (about one in twenty) that is asked no "what…" question keeps its yes/no question alone. `what` and
    `yes-no` keep the one kind only, `all-what` every "what…" question of a picture (two or three: more test
    questions from as many pictures). Pictures come in an order drawn from a hash too, so that the first N are an
    unbiased subset, and a subset of the first N + 1.

    Returns:
        The rows (`file_name`, `question`, `answer`, `split`), and N if given.

    Raises:
        DataError: the name has other parts than a split and a number.
    """
    split, kind, limit = _parse(name)
    pictures: list[tuple[str, list[dict[str, Any]]]] = []
    for part in (split,) if split else ("train", "test"):
        pictures += _pictures(part, every=kind == "all-what")
    pictures.sort()
    rows: list[tuple[str, dict[str, Any] | Rejection]] = [
        (row["file_name"], row)
        for _, picture in pictures
        for row in picture
        if kind is None or (kind == "yes-no") == (row["answer"] in ("yes", "no"))
    ]
    root = (Path(easy_vqa.__file__).parent / "data").resolve()
    return Source("easy-vqa", root, "file_name", rows), limit


def _parse(name: str) -> tuple[str | None, str | None, int | None]:
    parts = name.split(":")[1:]
    split = parts.pop(0) if parts and parts[0] in ("train", "test") else None
    kind = parts.pop(0) if parts and parts[0] in ("what", "all-what", "yes-no") else None
    limit = int(parts.pop(0)) if parts and parts[0].isdecimal() and int(parts[0]) > 0 else None
    if parts:
        raise DataError(
            f"{name}: write easy-vqa, easy-vqa:train or easy-vqa:test, :what, :all-what or :yes-no for one kind of "
            "question, and :N for the first N images"
        )
    return split, kind, limit


def _pictures(split: str, every: bool) -> list[tuple[str, list[dict[str, Any]]]]:
    read = easy_vqa.get_train_questions if split == "train" else easy_vqa.get_test_questions
    asked: dict[int, list[tuple[str, str]]] = {}
    for question, answer, picture in zip(*read(), strict=True):
        asked.setdefault(picture, []).append((question, answer))
    pictures = []
    for picture, pairs in asked.items():
        key = f"{split}:{picture}"
        what = [pair for pair in pairs if pair[0].startswith("what")]
        yes_no = [pair for pair in pairs if pair[1] in ("yes", "no")]
        kept = what if every else _pick(what, ("circle", "triangle", "rectangle"), f"{key}:what")
        kept = [*kept, *_pick(yes_no, ("yes",), f"{key}:yes")]
        rows = [
            {
                "file_name": f"{split}/images/{picture}.png",
                "question": question,
                "answer": answer,
                "split": split,
            }
            for question, answer in kept
        ]
        pictures.append((_draw(f"{key}:order"), rows))
    return pictures


def _pick(pairs: Sequence[tuple[str, str]], kind: Sequence[str], key: str) -> list[tuple[str, str]]:
    """One pair at most: a coin decides whether its answer is of the given kind, if both kinds are there."""
    of_kind = [pair for pair in pairs if pair[1] in kind]
    other = [pair for pair in pairs if pair[1] not in kind]
    heads = int(_draw(f"{key}:coin"), 16) % 2 == 0
    group = (of_kind or other) if heads else (other or of_kind)
    return [min(group, key=lambda pair: _draw(f"{key}:{pair[0]}"))] if group else []


def _draw(key: str) -> str:
    return hashlib.sha256(f"{_SEED}:{key}".encode()).hexdigest()
