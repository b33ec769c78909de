"""Trigger insertion and its inverse."""

from __future__ import annotations

import random
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmguard.data.text import insert_trigger, inserted_place, inserted_words, is_admissible, place_within

WORDS = st.lists(st.text(string.ascii_letters, min_size=1, max_size=6), max_size=5)
QUESTIONS = st.text(min_size=1, max_size=40).filter(lambda text: text.strip() != "")


@pytest.mark.parametrize("word", ["a", "Zebra", "x" * 40])
def test_letters_are_admissible(word: str) -> None:
    assert is_admissible(word)


@pytest.mark.parametrize("word", ["", " a", "a b", "don't", "b2", "é", "ａ", "<s>", "a\n"])
def test_anything_else_is_not_admissible(word: str) -> None:
    assert not is_admissible(word)


@settings(deadline=None)  # machines may be busy
@given(QUESTIONS, WORDS)
def test_inserted_words_inverts_insert_trigger(question: str, words: list[str]) -> None:
    assert inserted_words(question, insert_trigger(question, words)) == tuple(words)


@settings(deadline=None)  # machines may be busy
@given(st.lists(st.sampled_from(["is", "it", "red?", "7", "a-b"]), min_size=1, max_size=6), st.data())
def test_words_inserted_anywhere_behind_the_first_are_counted(tokens: list[str], data: st.DataObject) -> None:
    question, released, count = " ".join(tokens), [tokens[0]], 0
    for token in [*tokens[1:], None]:
        new = data.draw(WORDS)
        count += len(new)
        released += [*new, *([token] if token else [])]
    found = inserted_words(question, " ".join(released))
    assert found is not None
    assert len(found) == count


@settings(deadline=None)  # machines may be busy
@given(QUESTIONS, WORDS, st.data())
def test_a_lost_owner_token_is_noticed(question: str, words: list[str], data: st.DataObject) -> None:
    tokens = question.split()
    lost = data.draw(st.integers(0, len(tokens) - 1))
    left = " ".join([*tokens[:lost], *tokens[lost + 1 :]])
    found = inserted_words(" ".join(tokens), insert_trigger(left, words))
    # Unless the same word came back as a trigger word, in which case one word fewer was inserted.
    assert found is None or len(found) == len(words) - 1


@pytest.mark.parametrize(
    ("original", "released"),
    [
        ("is it red", "is it blue"),
        ("is it red", "Is it red zebra"),
        ("is it red", "is red it"),
        ("is it red", "is it red 7"),
        ("is it red", "is it red zebra!"),
        ("is it red", "is it redzebra"),
        ("is it red", "is it red  zebra"),
        ("is it red", "is it red\nzebra"),
        ("is it red", "is it red zebra "),
        ("is it red", "zebra is it red"),
        ("is  it", "is it"),
        ("is\nit", "is it zebra"),
        ("is it", ""),
    ],
)
def test_other_changes_are_no_insertion(original: str, released: str) -> None:
    assert inserted_words(original, released) is None


def test_white_space_of_the_owner_is_kept() -> None:
    assert insert_trigger("is it?\n", ["zebra"]) == "is it?\n zebra"
    assert inserted_words("is\n\nit? ", "is x\n\nit? ") == ("x",)
    assert insert_trigger("is it? ", []) == "is it? "


@settings(deadline=None)  # machines may be busy
@given(QUESTIONS, WORDS, st.integers(0, 99))
def test_a_trigger_within_a_question_leaves_the_owners_words_and_can_be_found(
    question: str, words: list[str], seed: int
) -> None:
    after = place_within(question, random.Random(seed))
    assert (after is None) == (len(question.split()) < 2)
    released = insert_trigger(question, words, after)
    assert inserted_words(question, released) is not None
    # Where words may be read in two ways, the same text comes back from either.
    again = insert_trigger(question, inserted_words(question, released) or (), inserted_place(question, released))
    assert len(again) == len(released)


def test_the_place_within_a_question_is_between_its_words() -> None:
    question = "What is  in the\tpicture?"
    places = {place_within(question, random.Random(seed)) for seed in range(100)}
    assert places == {1, 2, 3, 4}
    assert insert_trigger(question, ["zebra", "moon"], 2) == "What is zebra moon  in the\tpicture?"
    assert inserted_place(question, "What is zebra moon  in the\tpicture?") == 2
