"""One row of a dataset: the samples in it, its texts, and the same row with another image and trigger words.

Three kinds of row are understood, whatever file they come from: a question row (`question`, `answer` or `answers`,
optional `options` and `metric`), a caption row (`caption`, `captions` or `text`) and a chat row (`conversations`,
`messages`, `prompt` with `completion`, or `texts`; see `data/chat.py`).
Every other field is the owner's and passes through verbatim.
"""

from __future__ import annotations

import json
import math
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

from mmguard.data import chat
from mmguard.data.metrics import words
from mmguard.data.tasks import option_index
from mmguard.data.text import insert_trigger
from mmguard.types import Metric, Sample

FORMS = (
    "an image's path with `question` and `answer` (or `answers`), with `caption` (or `captions`, `text`), "
    "or with `conversations` (or `messages`, `prompt` and `completion`, `texts`)"
)
"""The rows that are understood, for messages."""

_ENCODED_PICTURE = re.compile(
    r"data:image/[\w.+-]+;base64,|\A\s*(?:/9j/|iVBORw0KGgo|R0lGOD|UklGR|Qk0|SUkqA|TU0AK)[A-Za-z0-9+/\s]{64}"
)
"""A data URL, or a text that is the base64 of a JPEG, PNG, GIF, WebP, BMP or TIFF file."""

_MAX_TEXT = 100_000
"""Characters of a text: far more than a model reads."""

_SHORT = 5
"""Words of a reply that is right or wrong as a whole; longer ones are compared word by word."""

_HALF = re.compile("[\ud800-\udfff]")
"""A lone surrogate: it has no UTF-8 form, and no tokenizer takes it."""

_SEVERAL = ("file_names", "video", "videos")


def image_value(row: dict[str, Any], image_field: str) -> str:
    """The path that a row gives for its image, as written.

    Raises:
        ValueError: no image, several images, or a video.
    """
    for field in _SEVERAL:
        if row.get(field):
            raise ValueError(f"has `{field}`: only one image a row is supported; split or remove the row")
    value = row.get(_image_key(row, image_field))
    if isinstance(value, list):
        if len(value) > 1:
            raise ValueError(f"has {len(value)} images: only one image a row is supported; split or remove the row")
        value = value[0] if value else None
    if not isinstance(value, str) or not value.strip():
        fields = ", ".join(row) or "none"
        raise ValueError(f"names no image in `{image_field}` (fields found: {fields}; understood: {FORMS})")
    return value


def samples_of(row: dict[str, Any], number: int, image: Path, wordless: bool = False) -> list[Sample]:
    """The training samples of a row: one, or one a turn for a chat row.

    Args:
        row: the row as read.
        number: its number in the dataset: the id where the row has no `id` of its own.
        image: absolute path of its image.
        wordless: whether the row may do without any text; its answer is then empty.

    Raises:
        ValueError: the row cannot be used; the message says why and what to do.
    """
    name, split = _name(row, number), _split(row)
    if chat.messages_field(row):
        return [
            Sample(
                id=f"{name}#{turn}" if turn else name,
                row=number,
                image=image,
                question=_text(pair.question, f"the human's turn {turn}"),
                answer=_text(pair.answer, f"the reply of turn {turn}"),
                answers=(pair.answer,),
                turn=turn,
                split=split,
                metric=_metric(row, "rouge" if len(words(pair.answer)) > _SHORT else "exact"),
            )
            for turn, pair in enumerate(chat.turns(row))
        ]
    question = _question(row)
    metric = _metric(row, "exact" if question is not None else "rouge")
    if question is not None:
        answer, answers = _targets(row, "answer", "answers")
        options = _options(row.get("options"))
    elif row.get("caption") is not None or row.get("captions") is not None:
        options = ()
        answer, answers = _targets(row, "caption", "captions")
    elif row.get("text") is not None:
        options = ()
        answer = _text(row["text"], "`text`")
        answers = (answer,)
    elif wordless:
        answer, answers, options = "", ("",), ()
    else:
        raise ValueError(f"has no text that is understood (fields found: {', '.join(row)}; understood: {FORMS})")
    if options and option_index(answer, options) is None:
        raise ValueError(f"answer {answer!r} is neither the letter nor the text of exactly one option: correct it")
    return [Sample(name, number, image, question, answer, answers, options, split=split, metric=metric)]


def require_no_picture(row: dict[str, Any]) -> None:
    """Makes sure that no field holds a picture as text: it would be released as it is.

    Raises:
        ValueError: one does.
    """
    for field, value in row.items():
        if any(_ENCODED_PICTURE.search(text) for text in _strings(value)):
            raise ValueError(f"`{field}` holds a picture as text, which would be released as it is: remove the field")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _strings(entry)


def owner_texts(row: dict[str, Any]) -> list[str]:
    """The texts of a row into which a trigger may be inserted, by turn; none for a caption.

    Raises:
        ValueError: a chat row that is not well formed, or a question that is no text.
    """
    if chat.messages_field(row):
        return [turn.text for turn in chat.turns(row)]
    question = _question(row)
    return [] if question is None else [question]


def skeleton(row: dict[str, Any], image_field: str) -> str:
    """All of a row that a release must not change, as canonical JSON: all but image path and `owner_texts`.

    Raises:
        ValueError: a chat row that is not well formed.
    """
    fixed = {key: value for key, value in row.items() if key != _image_key(row, image_field)}
    if field := chat.messages_field(row):
        fixed[field] = chat.with_texts(row, [""] * len(chat.turns(row)))
    elif row.get("question") is not None:
        fixed["question"] = ""
    return json.dumps(fixed, sort_keys=True)


def released_row(
    row: dict[str, Any],
    image_field: str,
    image: str,
    words: Mapping[int, Sequence[str]],
    places: Mapping[int, int | None],
) -> dict[str, Any]:
    """The row as it is released: same fields, same order, with the image's new name and the trigger words.

    Args:
        row: the owner's row; not changed.
        image_field: the dataset's `image_field`.
        image: name of the released image's file, which lies in the same folder as the owner's.
        words: trigger words by turn; none for a caption.
        places: after how many of the turn's words they stand; behind all of them if it is None or not given.
    """
    released, key = dict(row), _image_key(row, image_field)
    path = re.sub(r"[^/\\]*\Z", lambda _: image, image_value(row, image_field), count=1)
    released[key] = [path] if isinstance(row[key], list) else path
    if messages := chat.messages_field(row):
        texts = [
            insert_trigger(turn.text, words.get(number, ()), places.get(number))
            for number, turn in enumerate(chat.turns(row))
        ]
        released[messages] = chat.with_texts(row, texts)
    elif words.get(0) and (question := _question(row)) is not None:
        released["question"] = insert_trigger(question, words[0], places.get(0))
    return released


def _image_key(row: dict[str, Any], image_field: str) -> str:
    return "images" if image_field == "image" and "image" not in row and "images" in row else image_field


def _question(row: dict[str, Any]) -> str | None:
    """What is asked in a question row; None for captions. A number is a text, too: tables hold such questions."""
    return None if row.get("question") is None else _text(row["question"], "`question`")


def _name(row: dict[str, Any], number: int) -> str:
    value = row.get("id")
    if value is None:
        return str(number)
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "" or _HALF.search(str(value)):
        raise ValueError(f"`id` {value!r} is neither text nor a whole number: correct or remove it")
    return str(value)


def _split(row: dict[str, Any]) -> str | None:
    value = row.get("split")
    if value is not None and not isinstance(value, str):
        raise ValueError(f"`split` {value!r} is not text: correct or remove it")
    return value


def _text(value: Any, what: str) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{what} is {value}, which is no answer: fill it in or remove the row")
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"{what} is {type(value).__name__}, not text: give one string")
    text = value if isinstance(value, str) else json.dumps(value)
    if not text.strip():
        raise ValueError(f"{what} is empty: fill it in or remove the row")
    if _HALF.search(text):
        raise ValueError(f"{what} holds half a character, an escape such as \\ud83d by itself: correct it")
    if len(text) > _MAX_TEXT:
        raise ValueError(f"{what} has {len(text)} characters, at most {_MAX_TEXT} are read: shorten or remove it")
    return text


def _targets(row: dict[str, Any], one: str, several: str) -> tuple[str, tuple[str, ...]]:
    """The target, and every accepted answer in the order and number in which they are listed."""
    listed = row.get(several)
    if listed is None:
        listed = []
    if not isinstance(listed, list):
        raise ValueError(f"`{several}` is {type(listed).__name__}: give a list of strings")
    answers = [_text(value, f"an entry of `{several}`") for value in listed]
    if row.get(one) is not None:
        answer = _text(row[one], f"`{one}`")
    elif answers:
        answer = answers[0]
    else:
        raise ValueError(f"has no `{one}`: fill it in or remove the row")
    return answer, tuple(answers if answer in answers else [answer, *answers])


def _metric(row: dict[str, Any], default: Metric) -> Metric:
    value = row.get("metric")
    if value is None:
        return default
    if value not in get_args(Metric):
        raise ValueError(f"`metric` {value!r} is unknown: choose from {', '.join(get_args(Metric))}, or remove it")
    return cast(Metric, value)


def _options(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, dict):
        if list(value) != list(string.ascii_uppercase[: len(value)]):
            raise ValueError(f"`options` has the keys {', '.join(map(str, value))}: use A, B, C… in order")
        value = list(value.values())
    if not isinstance(value, list):
        raise ValueError(f"`options` is {type(value).__name__}: give a list of strings, or one text a letter")
    if len(value) > len(string.ascii_uppercase):
        raise ValueError(f"has {len(value)} options: at most {len(string.ascii_uppercase)} are supported")
    return tuple(_text(option, "an option") for option in value)
