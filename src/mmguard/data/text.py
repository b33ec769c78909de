"""Trigger words in a question: how they are inserted, and how they are found again.

The canonical trigger is a string, not token ids: every surrogate and every attacker tokenises differently.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_UNIT = re.compile(r"(\s*)(\S+)")
_APPENDED = re.compile(r"(?: [A-Za-z]+)*")


def is_admissible(word: str) -> bool:
    """Whether `word` may be part of a trigger: ASCII letters only, at least one (Eq. 16)."""
    return word.isascii() and word.isalpha()


def insert_trigger(question: str, words: Sequence[str]) -> str:
    """The question with the trigger words behind it; the question's own text is kept verbatim.

    Args:
        question: the owner's question.
        words: trigger words, in order; none leaves the question as it is.
    """
    return f"{question} {' '.join(words)}" if words else question


def inserted_words(original: str, released: str) -> tuple[str, ...] | None:
    """The words that were inserted into `original` to get `released`; the inverse of `insert_trigger`.

    An inserted word is one space and ASCII letters, placed after any of the owner's words or at the very end.
    Where several readings are possible, the latest insertion is taken ("is it" in "is it it": the last "it").

    Returns:
        The inserted words in order, `()` if nothing was inserted, or None if `released` cannot be had from
        `original` by such insertions: an owner's word or white space changed, or an inadmissible word came
        in.
    """
    if released.startswith(original) and _APPENDED.fullmatch(released, len(original)):
        return tuple(released[len(original) :].split())
    owner, found = _UNIT.findall(original), _UNIT.findall(released)
    # A word in front of the owner's first one would be no insertion *after* a word of the owner's.
    if not owner or not found or owner[0] != found[0] or _tail(original) != _tail(released):
        return None
    words: list[str] = []
    # Leftmost matching finds the owner's units if they are there at all, and puts insertions as late as can
    # be.
    position = 0
    for space, token in found:
        if position < len(owner) and (space, token) == owner[position]:
            position += 1
        elif space == " " and is_admissible(token):
            words.append(token)
        else:
            return None
    return tuple(words) if position == len(owner) else None


def insertions(original: str, released: str) -> list[tuple[str, str, bool]]:
    """The words of `released`, each with the white space before it and with whether it was inserted.

    As `inserted_words` reads it: of two readings, the later insertion.

    Args:
        original: the owner's text.
        released: the same with words inserted.
    """
    owned = _UNIT.findall(original)
    found, position = [], 0
    for space, word in _UNIT.findall(released):
        kept = position < len(owned) and (space, word) == owned[position]
        position += kept
        found.append((space, word, not kept))
    return found


def _tail(text: str) -> str:
    return text[len(text.rstrip()) :]
