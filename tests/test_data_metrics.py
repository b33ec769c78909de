"""The metrics: examples computed by hand, and what holds for any text."""

from __future__ import annotations

from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmguard.data.metrics import (
    METRICS,
    anls,
    exact_match,
    letter_match,
    named_option,
    normalise,
    rouge_l,
    vqa_accuracy,
    vqa_normalise,
)

WORDS = st.text("ab1 2.,'-!\n") | st.sampled_from(["the cat", "two", "2", "dont", "don't", "Coca-Cola", "3.5", "A", ""])


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("the Dog.", "dog"),
        ("  March 2 1951", "March 2, 1951"),
        ("2485", "2,485"),
        ("0.24", ".0.24"),
        ("garbage bin", "garbage_bin"),
        ("x ray", "X-ray"),
        ("its", "it's"),
        ("A", "a"),
        ("?", "?"),
    ],
)
def test_exact_matches(reply: str, answer: str) -> None:
    assert exact_match(reply, ["something else", answer]) == 1


@pytest.mark.parametrize(
    ("reply", "answer"),
    [("24", "0.24"), ("024", "0.24"), ("-5", "5"), ("two", "2"), ("", "dog"), ("?", "!"), ("dogs", "dog")],
)
def test_no_exact_match(reply: str, answer: str) -> None:
    assert exact_match(reply, [answer]) == 0


@pytest.mark.parametrize("reply", ["C", "c", "(C)", "C.", "C: the red one", "c) red", "The answer is C", "Option C"])
def test_letters(reply: str) -> None:
    assert letter_match(reply, ["C"]) == letter_match(reply, [" c "]) == 1
    assert letter_match(reply, ["D"]) == 0


@pytest.mark.parametrize("reply", ["", "?", "red", "Cats and dogs", "an A or a C"])
def test_no_letter(reply: str) -> None:
    assert [letter_match(reply, [letter]) for letter in "ABCD"] == [0, 0, 0, 0]


def test_an_answer_that_is_no_letter_is_never_named() -> None:
    assert letter_match("", [""]) == letter_match("yes", ["yes"]) == letter_match("7", ["7"]) == 0


@pytest.mark.parametrize(
    ("people", "expected"),
    # Leaving out one of m people who agree leaves m - 1: (m · min(1, (m - 1)/3) + (10 - m) · min(1, m/3)) / 10.
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)],
)
def test_vqa_accuracy_by_hand(people: int, expected: float) -> None:
    answers = ["Coca-Cola!"] * people + [f"other {number}" for number in range(10 - people)]
    assert vqa_accuracy("coca cola", answers) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Coca-Cola", "coca cola"),
        ("what is 1,000?", "what is 1000"),
        ("U.S.A.", "usa"),
        ("3.50", "3.50"),
        ("three and none", "3 and 0"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("joe's", "joe 's"),
        ("mid-air - left", "midair left"),  # a sign beside a space takes all of its kind with it
        ("line\nbreak", "line break"),
        ("a", ""),
    ],
)
def test_vqa_normalisation(text: str, expected: str) -> None:
    assert vqa_normalise(text) == expected


@pytest.mark.parametrize(
    ("reply", "answers", "expected"),
    [
        ("March 2, 1951", ["march 2,  1951 "], 1.0),
        ("03/17/98", ["03/17/99"], 1 - 1 / 8),
        ("kitten", ["sitting"], 1 - 3 / 7),
        ("kitten", ["sitting", "mitten"], 1 - 1 / 6),
        ("ab", ["ac"], 0.5),  # exactly at the threshold: counts
        ("abc", ["axy"], 0.0),  # a third is below it
        ("", ["dog"], 0.0),
        ("dog", ["a dog"], 1 - 2 / 5),  # articles are words here
    ],
)
def test_anls_by_hand(reply: str, answers: list[str], expected: float) -> None:
    assert anls(reply, answers) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("reply", "answers", "expected"),
    [
        ("A dog, in the snow.", ["a dog in the snow"], 1.0),
        ("a dog runs", ["a dog in the snow"], 2 * 2 / 8),
        ("snow in", ["in snow"], 2 * 1 / 4),  # in order
        ("a cat", ["two birds", "a cat sleeps"], 2 * 2 / 5),  # the best
        ("赤い犬", ["赤い猫"], 2 * 2 / 6),
        ("", ["a dog"], 0.0),
        ("", ["👍"], 0.0),
        ("👍", ["👍"], 1.0),
    ],
)
def test_rouge_by_hand(reply: str, answers: list[str], expected: float) -> None:
    assert rouge_l(reply, answers) == pytest.approx(expected)


@pytest.mark.parametrize("people", [1, 3])
def test_vqa_accuracy_of_few_people(people: int) -> None:
    answers = ["Red."] * (people - 1) + ["two"]
    assert vqa_accuracy("2", answers) == 1
    assert vqa_accuracy("blue", answers) == 0


@given(st.sampled_from(list(METRICS)), WORDS, st.lists(WORDS, min_size=1, max_size=10))
def test_scores_are_shares_and_the_order_of_answers_is_none(name, reply, answers) -> None:
    score = METRICS[name](reply, answers)
    assert 0 <= score <= 1
    assert score == pytest.approx(METRICS[name](reply, answers[::-1]))


@given(WORDS, st.lists(WORDS, max_size=5))
def test_an_answer_is_right(answer, others) -> None:
    assert exact_match(answer, [*others, answer]) == 1
    assert anls(answer, [*others, answer]) == 1
    assert rouge_l(answer, [*others, answer]) == pytest.approx(1)
    assert vqa_accuracy(answer, [answer] * 10) == 1
    assert all(letter_match(letter, [letter]) == 1 for letter in "AZ")


@given(WORDS, WORDS)
def test_symmetry(one, other) -> None:
    assert exact_match(one, [other]) == exact_match(other, [one])
    assert anls(one, [other]) == anls(other, [one])
    assert vqa_accuracy(one, [other] * 10) == vqa_accuracy(other, [one] * 10)
    assert normalise(one) == normalise(one.upper())


@given(WORDS, st.lists(WORDS, min_size=10, max_size=10))
def test_vqa_accuracy_is_the_mean_over_all_nines(reply, answers) -> None:
    nines = (answers[:left] + answers[left + 1 :] for left in range(10))
    said = vqa_normalise(reply)
    scores = [min(1, [vqa_normalise(one) for one in nine].count(said) / 3) for nine in nines]
    assert vqa_accuracy(reply, answers) == pytest.approx(fmean(scores))


@given(WORDS, st.lists(WORDS, min_size=1, max_size=10), WORDS)
def test_another_answer_never_hurts_where_all_are_right(reply, answers, more) -> None:
    assert exact_match(reply, [*answers, more]) >= exact_match(reply, answers)
    assert anls(reply, [*answers, more]) >= anls(reply, answers)


def test_a_letter_goes_before_a_text_and_a_text_before_a_letter_in_it() -> None:
    assert named_option("a", ("dog", "cat", "a")) == 0
    assert named_option("A. Smith", ("B. Jones", "A. Smith")) == 1
    assert named_option("D", ("dog", "cat")) is None
