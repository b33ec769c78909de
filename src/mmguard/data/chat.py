"""LLaVA/ShareGPT conversations: turns, image tags, and where the owner's words stand in a message."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

IMAGE_TAG = "<image>"
_OUTER_TAGS = re.compile(r"\A((?:\s|<image>)*)(.*?)((?:\s|<image>)*)\Z", re.DOTALL)
_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


@dataclass(frozen=True)
class Turn:
    """One question-answer pair of a conversation."""

    message: int
    """Number of the human message in the conversation."""
    text: str
    """What the human says, without an image tag (or white space) before and after it."""
    answer: str
    """What the assistant replies, verbatim."""

    @property
    def question(self) -> str:
        """The human's words, without the image tag wherever it stands."""
        return self.text.replace(IMAGE_TAG, "")


def messages_field(row: dict[str, Any]) -> str | None:
    """The field of a row that holds a conversation, if it is a chat row."""
    return next((name for name in ("conversations", "messages") if row.get(name) is not None), None)


def turns(row: dict[str, Any]) -> list[Turn]:
    """The question-answer pairs of a chat row, in order. System messages are passed over.

    Raises:
        ValueError: unknown roles, a message without text, turns that do not alternate, several images or a
        video;
            the message says which and what to do.
    """
    field = messages_field(row)
    messages = row[field] if field else None
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"`{field}` holds no messages: give a list of human and gpt turns")
    spoken = [
        (number, *_role_and_text(number, message))
        for number, message in enumerate(messages)
        if _role(number, message) != "system"
    ]
    if any("<video>" in text for _, _, text in spoken):
        raise ValueError("is about a video: only single images are supported; remove the row")
    if sum(text.count(IMAGE_TAG) for _, _, text in spoken) > 1:
        raise ValueError("has several <image> tags: only one image a row is supported; split or remove the row")
    if [role for _, role, _ in spoken] != ["user", "assistant"] * (len(spoken) // 2) or not spoken:
        raise ValueError("human and gpt turns do not alternate, human first and gpt last: correct the row")
    return [
        Turn(number, split_tags(text)[1], reply)
        for (number, _, text), (_, _, reply) in zip(spoken[::2], spoken[1::2], strict=True)
    ]


def split_tags(text: str) -> tuple[str, str, str]:
    """A human message as (image tag and white space before, the words, image tag and white space after)."""
    found = _OUTER_TAGS.match(text)
    assert found is not None  # the pattern matches any text
    return found[1], found[2], found[3]


def text_field(message: dict[str, Any]) -> str:
    """The field of a message that holds its text: `value`, or `content` beside `role`."""
    return "value" if "from" in message else "content"


def _role(number: int, message: Any) -> str:
    name = message.get("from", message.get("role")) if isinstance(message, dict) else None
    if not isinstance(name, str) or name not in _ROLES:
        raise ValueError(
            f"message {number} has the role {name!r}: use human and gpt, or user and assistant (and system)"
        )
    return _ROLES[name]


def _role_and_text(number: int, message: dict[str, Any]) -> tuple[str, str]:
    text = message.get(text_field(message))
    if not isinstance(text, str):
        raise ValueError(f"message {number} has no text in `{text_field(message)}`: give it as one string")
    return _role(number, message), text
