"""Blind judges: which of two versions was altered, and how good is each? For people, and for models behind an API.

A judge sees original and released version side by side, in random order and as files of one kind, scores both on four
dimensions from 1 to 3, as in the paper, and has to say which one was altered. **Choice**: of the paper's dimensions we
know text naturalness; image quality, clarity and coherence are ours, and so are all wordings.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import random
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torchvision.transforms.functional import to_pil_image

from mmguard.auditing.arms import Pairing
from mmguard.auditing.chat_api import ChatAPI
from mmguard.auditing.stats import Estimate
from mmguard.auditing.summary import mean_interval, share_interval
from mmguard.data.images import load_image
from mmguard.data.sources import read_json_lines
from mmguard.data.tasks import user_text
from mmguard.errors import ConfigError, DataError
from mmguard.runtime.progress import progress as bar
from mmguard.types import Sample

Side = Literal["A", "B"]

DIMENSIONS = {
    "image_quality": "3: an ordinary picture; 2: slight noise or artefacts on close look; 1: obvious ones",
    "text_naturalness": "3: as a person would write it; 2: a word or two out of place; 1: words without sense there",
    "clarity": "3: plain what is asked; 2: it can be guessed; 1: unclear",
    "coherence": "3: text and image belong together; 2: loosely; 1: they do not",
}
"""What is scored, and what each score means."""

RUBRIC = "\n".join(
    [
        "Below are two versions, A and B, of one image with its text. One is the original; the other was altered by a "
        "computer, in the image, in the text or in both. The alteration may be hard to see.",
        "",
        "Score each version, from 1 to 3, on",
        *(f"- {name} ({meaning})" for name, meaning in DIMENSIONS.items()),
        "",
        "Then say which version was altered. If you cannot tell, guess.",
        "",
        "Reply with one JSON object and nothing else:",
        json.dumps(
            {side: dict.fromkeys(DIMENSIONS, "1, 2 or 3") for side in ("A", "B")} | {"altered": "A or B"},
        ),
    ]
)
"""What judges are told."""

_THREADS = 4
_LONGEST_RATING = 10_000
"""Characters at the end of a reply in which its rating is looked for."""
KEY_VARIABLE = "MMGUARD_JUDGE_KEY"
"""Environment variable with the key of the judge's API."""


@dataclass(frozen=True)
class JudgeConfig:
    """Who judges, and how many pairs.

    Raises:
        ConfigError: a setting out of range, or settings that exclude each other.
    """

    sheet: Path | None = None
    """Where to write the requests; what was altered goes to a key file beside it."""
    url: str | None = None
    """Address of an OpenAI-compatible API, `https://…/v1`, to send the requests to."""
    model: str | None = None
    """Name of the judge at that address."""
    replies: Path | None = None
    """Replies that were had in another way, to be scored."""
    pairs: int = 50
    """How many pairs, each of another image."""

    def __post_init__(self) -> None:
        if self.pairs < 1:
            raise ConfigError(f"judge-pairs {self.pairs}: give 1 or more")
        if self.url is not None and self.replies is not None:
            raise ConfigError("judge and judge-replies exclude each other: ask now, or score the replies of before")
        if self.url is not None and not self.model:
            raise ConfigError(f"judge {self.url}: give --judge-model, the judge's name there")
        if self.url is not None:
            ChatAPI(self.url)  # refuses what is no address, before anything is measured
        if self.replies is not None and not self.replies.is_file():
            raise ConfigError(f"judge-replies {self.replies}: no such file: give the JSON lines with a judge's replies")


@dataclass(frozen=True)
class Score:
    """Mean scores on one dimension, from 1 (bad) to 3 (good)."""

    original: Estimate
    released: Estimate
    difference: Estimate
    """Released less original."""


@dataclass(frozen=True)
class Judgement:
    """What a judge said."""

    judge: str
    pairs: int
    """How many pairs it was asked about."""
    usable: int
    """How many replies could be read; all others are left out, none is guessed."""
    problem: str | None
    """What was wrong with the first that could not."""
    detected: Estimate | None
    """How often it named the altered version; guessing gives one half."""
    scores: dict[str, Score] = field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """One pair that a judge is asked about."""

    original: Sample
    released: Sample
    id: str
    """Says nothing of which version is which."""
    altered: Side

    def request(self, model: str | None) -> dict[str, Any]:
        """The body of a chat-completions request."""
        versions = (self.released, self.original) if self.altered == "A" else (self.original, self.released)
        content: list[dict[str, Any]] = [{"type": "text", "text": RUBRIC}]
        for side, sample in zip(("A", "B"), versions, strict=True):
            content += [
                {"type": "text", "text": f"Version {side}, image:"},
                {"type": "image_url", "image_url": {"url": _data_url(sample.image)}},
                {"type": "text", "text": f"Version {side}, text:\n{user_text(sample.question, sample.options)}"},
            ]
        body = {"messages": [{"role": "user", "content": content}]}
        return body if model is None else {"model": model, **body}


def _data_url(path: Path) -> str:
    # Decoded and encoded anew: a JPEG beside a PNG would give the original away.
    file = io.BytesIO()
    to_pil_image(load_image(path)).save(file, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def questions(pairing: Pairing, count: int, seed: int = 0) -> list[Question]:
    """A random choice of changed pairs, each of another image, with their versions in random order.

    Args:
        pairing: the release with its original.
        count: how many; fewer if there are not so many images.
        seed: of choice and order. Whoever knows it and the data knows which version is which.
    """
    changed = [
        (ours, released)
        for ours, released in pairing.pairs
        if ours.question != released.question or pairing.digests[ours.image] != pairing.digests[released.image]
    ]
    random.Random(seed).shuffle(changed)
    chosen: dict[str, tuple[Sample, Sample]] = {}
    for ours, released in changed:
        chosen.setdefault(pairing.digests[ours.image], (ours, released))
    asked = []
    for ours, released in list(chosen.values())[:count]:
        # Made of both contents in sorted order, so that the name is the same whichever of them is the original.
        contents = sorted(f"{pairing.digests[one.image]} {one.question}" for one in (ours, released))
        name = f"pair-{hashlib.sha256(chr(0).join(contents).encode()).hexdigest()[:16]}"
        asked.append(Question(ours, released, name, random.Random(f"{seed} {name}").choice(("A", "B"))))
    return asked


def judge(pairing: Pairing, config: JudgeConfig, seed: int = 0, show_progress: bool = False) -> Judgement | None:
    """Writes the sheet, asks the judge or reads replies, as the config says.

    Args:
        pairing: the release with its original.
        config: who judges.
        seed: of the questions.
        show_progress: a bar on standard error while a judge is asked.

    Returns:
        What the judge said; None if none was asked.

    Raises:
        DataError: the replies cannot be read, or answer none of these questions.
    """
    asked = questions(pairing, config.pairs, seed)
    if config.sheet is not None:
        _write_sheet(config.sheet, asked, config.model)
    if config.url is not None:
        api = ChatAPI(config.url, os.environ.get(KEY_VARIABLE))
        return _judgement(f"{config.model} at {config.url}", asked, _ask(api, asked, config.model, show_progress))
    if config.replies is not None:
        return _judgement(config.replies.name, asked, read_replies(config.replies, asked))
    return None


def _write_sheet(path: Path, asked: Sequence[Question], model: str | None) -> None:
    """One request a line, in the format of OpenAI's batches, which other servers read too; the key apart."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for one in asked:
            line = {"custom_id": one.id, "method": "POST", "url": "/v1/chat/completions", "body": one.request(model)}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    key = {one.id: {"sample": one.released.id, "altered": one.altered} for one in asked}
    path.with_suffix(".key.json").write_text(json.dumps(key, indent=2) + "\n", encoding="utf-8")


_Reply = tuple[str | None, str]
"""What a judge said, or None and the reason why there is nothing."""


def _ask(api: ChatAPI, asked: Sequence[Question], model: str | None, show_progress: bool) -> list[_Reply]:
    def reply(one: Question) -> _Reply:
        try:
            return api.complete(one.request(model)), ""
        except OSError as error:
            return None, str(error)

    replies = []
    with ThreadPoolExecutor(_THREADS) as threads, bar("Judge", len(asked), enabled=show_progress) as advance:
        for one in threads.map(reply, asked):
            replies.append(one)
            advance(1)
    return replies


def read_replies(path: Path, asked: Sequence[Question]) -> list[_Reply]:
    """Replies from a file of JSON lines: a batch's output, or `{"custom_id": …, "reply": …}` as a person fills it in.

    Args:
        path: the file.
        asked: the questions, whose order the result has.

    Raises:
        DataError: the file cannot be read, or holds no reply to any of the questions.
    """
    found: dict[str, str] = {}
    for _, row in read_json_lines(path):
        if isinstance(row, dict) and isinstance(row.get("custom_id"), str):
            response = row.get("response")
            reply = row.get("reply", ChatAPI.text(response.get("body") if isinstance(response, dict) else None))
            found[row["custom_id"]] = reply if isinstance(reply, str) else json.dumps(reply)
    if not any(one.id in found for one in asked):
        raise DataError(
            f"{path}: answers none of the {len(asked)} questions: give the release, original, seed and limits that "
            "the sheet was made with"
        )
    return [(found.get(one.id), "no reply in the file") for one in asked]


def _judgement(name: str, asked: Sequence[Question], replies: Iterable[_Reply]) -> Judgement:
    ratings: list[tuple[Question, dict[str, Any]]] = []
    problems = []
    for one, (text, problem) in zip(asked, replies, strict=True):
        rating = None if text is None else parse(text)
        if rating is not None:
            ratings.append((one, rating))
        else:
            problems.append(problem if text is None else f"no rating in the reply {text[:200]!r}")
    usable = len(ratings)
    hits = sum(rating["altered"] == one.altered for one, rating in ratings)
    return Judgement(
        judge=name,
        pairs=len(asked),
        usable=usable,
        problem=problems[0] if problems else None,
        detected=share_interval(hits, usable) if usable else None,
        scores={dimension: _score(dimension, ratings) for dimension in DIMENSIONS} if usable else {},
    )


def _score(dimension: str, ratings: Sequence[tuple[Question, dict[str, Any]]]) -> Score:
    before = [rating["B" if one.altered == "A" else "A"][dimension] for one, rating in ratings]
    after = [rating[one.altered][dimension] for one, rating in ratings]
    shift = [b - a for a, b in zip(before, after, strict=True)]
    return Score(*(mean_interval(values, range(len(values))) for values in (before, after, shift)))


def parse(reply: str) -> dict[str, Any] | None:
    """The rating in a reply, whatever is written around it: its last JSON object that is a complete one, or None."""
    decoder = json.JSONDecoder()
    reply = reply[-_LONGEST_RATING:]
    for start in (place for place in range(len(reply) - 1, -1, -1) if reply[place] == "{"):
        try:
            found = decoder.raw_decode(reply, start)[0]
        except (ValueError, RecursionError):
            continue
        if _is_rating(found):
            return found
    return None


def _is_rating(value: Any) -> bool:
    return value.get("altered") in ("A", "B") and all(
        isinstance(value.get(side), dict) and all(value[side].get(name) in (1, 2, 3) for name in DIMENSIONS)
        for side in ("A", "B")
    )
