"""Trigger words in a question: how they are inserted, and how they are found again.

The canonical trigger is a string, not token ids: every surrogate and every attacker tokenises differently.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

_UNIT = re.compile(r"(\s*)(\S+)")
_APPENDED = re.compile(r"(?: [A-Za-z]+)*")


def is_admissible(word: str) -> bool:
    """Whether `word` may be part of a trigger: ASCII letters only, at least one (Eq. 16)."""
    return word.isascii() and word.isalpha()


def insert_trigger(question: str, words: Sequence[str], after: int | None = None) -> str:
    """The question with the trigger words in it, in one piece; the question's own text is kept verbatim.

    Args:
        question: the owner's question.
        words: trigger words, in order; none leaves the question as it is.
        after: how many of the owner's words stand before them, at least one; None if all do.
    """
    if not words:
        return question
    end = len(question) if after is None else trigger_start(question, after)
    return f"{question[:end]} {' '.join(words)}{question[end:]}"


def trigger_start(question: str, after: int | None) -> int:
    """Where in the question `insert_trigger` inserts: the first character behind so many words, or its length."""
    if after is None:
        return len(question)
    return [unit.end() for unit in _UNIT.finditer(question)][after - 1]


def place_within(question: str, rng: random.Random) -> int | None:
    """A random place between two of the owner's words, as `after` of `insert_trigger`; None if there is none.

    A place that is the same in all questions could be cut out of all of them.
    """
    words = len(_UNIT.findall(question))
    return rng.randrange(1, words) if words > 1 else None


def inserted_place(original: str, released: str) -> int | None:
    """After how many of the owner's words the inserted ones begin; None if they stand at the end, or none do.

    As `inserted_words` reads it, which does not find them elsewhere than at the end if they may also stand there.
    """
    units = insertions(original, released)
    first = next((number for number, (*_, inserted) in enumerate(units) if inserted), None)
    return None if first in (None, len(_UNIT.findall(original))) else first


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
