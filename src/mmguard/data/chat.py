"""Conversations: turns, image tags, and where the owner's words stand in a message.

They are in `conversations` or `messages`, one message a turn, as LLaVA and ShareGPT have them; in `prompt`, and their
end in `completion`, as TRL has them, both messages or both one text; or in `texts`, one pair of `user` and `assistant`
an entry, as the Cauldron and FineVision do. A message's text is one string, or a list of typed parts, as OpenAI and
TRL have it: `[{"type": "image"}, {"type": "text", "text": "what is it?"}]`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
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
    """The field of a row that holds a conversation, or all of it that people say, if it is a chat row."""
    if field := next((name for name in ("conversations", "messages") if row.get(name) is not None), None):
        return field
    both = row.get("prompt"), row.get("completion")
    if all(isinstance(one, list) for one in both):
        return "prompt"
    if all(isinstance(one, str) for one in both) and row.get("question") is None:
        return "prompt"
    pairs = row.get("texts")
    return "texts" if isinstance(pairs, list) and pairs and all(map(_is_pair, pairs)) else None


def turns(row: dict[str, Any]) -> list[Turn]:
    """The question-answer pairs of a chat row, in order. System messages are passed over.

    Raises:
        ValueError: unknown roles, a message without text or with parts that are not understood, turns that do not
            alternate, several images or a video; the message says which and what to do.
    """
    field = messages_field(row)
    messages = _messages(row, field, "user") if field else None
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"`{field}` holds no messages: give a list of human and gpt turns")
    asked = len(messages)
    if field == "prompt":
        messages = messages + _messages(row, "completion", "assistant")
    spoken = [one for number, message in enumerate(messages) for one in _spoken(number, message)]
    if any("<video>" in text for _, _, text in spoken):
        raise ValueError("is about a video: only single images are supported; remove the row")
    tags = sum(text.count(IMAGE_TAG) for _, _, text in spoken)
    if tags + sum(len(_parts(messages[number], "image")) for number, _, _ in spoken) > 1:
        raise ValueError(
            "has several <image> tags or parts: only one image a row is supported; split or remove the row"
        )
    if [role for _, role, _ in spoken] != ["user", "assistant"] * (len(spoken) // 2) or not spoken:
        raise ValueError("human and gpt turns do not alternate, human first and gpt last: correct the row")
    if any(number >= asked for number, _, _ in spoken[::2]):
        raise ValueError("a human turn is in `completion`: move it to `prompt`")
    return [
        Turn(number, _split_tags(text)[1], reply)
        for (number, _, text), (_, _, reply) in zip(spoken[::2], spoken[1::2], strict=True)
    ]


def with_texts(row: dict[str, Any], texts: Sequence[str]) -> list[Any] | str:
    """What a chat row's `messages_field` holds, with other words in the human turns; all around them stays.

    Args:
        row: as for `turns`.
        texts: as many as there are turns.
    """
    field = messages_field(row) or ""
    messages = list(_messages(row, field, "user"))
    for turn, text in zip(turns(row), texts, strict=True):
        messages[turn.message] = _with_words(messages[turn.message], text)
    return messages if isinstance(row[field], list) else str(messages[0]["content"])


def _messages(row: dict[str, Any], field: str, role: str) -> Any:
    """What a field holds; where it is one text, the message that this is."""
    is_text = field in ("prompt", "completion") and isinstance(row[field], str)
    return [{"role": role, "content": row[field]}] if is_text else row[field]


def _with_words(message: dict[str, Any], words: str) -> dict[str, Any]:
    """A message of `turns` with other words in it; image tags and parts around them stay."""
    field, content = _text_field(message), message[_text_field(message)]
    if isinstance(content, str):
        return {**message, field: _between_tags(content, words)}
    parts = [
        {**part, "text": _between_tags(part["text"], words)} if part["type"] == "text" else part for part in content
    ]
    return {**message, field: parts}


def _between_tags(text: str, words: str) -> str:
    before, _, after = _split_tags(text)
    return f"{before}{words}{after}"


def _split_tags(text: str) -> tuple[str, str, str]:
    """A human message as (image tag and white space before, the words, image tag and white space after)."""
    found = _OUTER_TAGS.match(text)
    assert found is not None  # the pattern matches any text
    return found[1], found[2], found[3]


def _text_field(message: dict[str, Any]) -> str:
    """The field that holds a message's text, of a pair the human's: `value` with `from`, `content` with `role`."""
    if _is_pair(message):
        return "user"
    return "value" if "from" in message else "content"


def _is_pair(message: Any) -> bool:
    """Whether an entry is a question and its answer."""
    return isinstance(message, dict) and {"user", "assistant"} <= message.keys()


def _spoken(number: int, message: Any) -> list[tuple[int, str, str]]:
    """What is said in the message of this number: number, role and text; nothing in a system message."""
    if _is_pair(message):
        said = [(number, role, message[role]) for role in ("user", "assistant")]
        if not all(isinstance(text, str) for _, _, text in said):
            raise ValueError(f"entry {number} of `texts` has no text in `user` or `assistant`: fill it in")
        return said
    return [] if _role(number, message) == "system" else [(number, *_role_and_text(number, message))]


def _role(number: int, message: Any) -> str:
    name = message.get("from", message.get("role")) if isinstance(message, dict) else None
    if not isinstance(name, str) or name not in _ROLES:
        raise ValueError(
            f"message {number} has the role {name!r}: use human and gpt, or user and assistant (and system)"
        )
    return _ROLES[name]


def _role_and_text(number: int, message: dict[str, Any]) -> tuple[str, str]:
    text = message.get(_text_field(message))
    if isinstance(text, list):
        text = _text_of_parts(number, message)
    if not isinstance(text, str):
        raise ValueError(f"message {number} has no text in `{_text_field(message)}`: give it as one string")
    return _role(number, message), text


def _text_of_parts(number: int, message: dict[str, Any]) -> Any:
    """The text of a message's one text part; beside it there may be parts that say where an image goes."""
    texts = _parts(message, "text")
    # A path or URL in an image's part would still be the original's in the release.
    named = [part for part in _parts(message, "image") if any(part.get(name) for name in ("image", "path", "url"))]
    known = len(texts) + len(_parts(message, "image")) - len(named)
    if len(texts) != 1 or known < len(message[_text_field(message)]):
        raise ValueError(
            f"message {number} has parts that are not understood: give one of text, and for the image "
            '{"type": "image"}, with its path in a field of the row'
        )
    return texts[0].get("text")


def _parts(message: dict[str, Any], type_: str) -> list[dict[str, Any]]:
    """The parts of a message that are of a type; none where its text is one string."""
    content = message.get(_text_field(message))
    parts = content if isinstance(content, list) else []
    return [part for part in parts if isinstance(part, dict) and part.get("type") == type_]
