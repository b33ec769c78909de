"""Changes of a question that need no language model: noise, and filters for words that do not belong there."""

from __future__ import annotations

import functools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from itertools import pairwise

import torch
from spellchecker import SpellChecker

_UNIT = re.compile(r"(\s*)(\S+)")
_MARKS = ".,;:!?"
_ADDED_MARK = 0.25
"""Chance of a mark behind a word that has none. The rates here are our choice: the paper gives none."""
_SWITCHED_CASE = 0.2
"""Chance of each letter: of five-letter words two in three change, and with them their tokens."""
_REMOVED_SPACE, _ADDED_SPACE = 0.1, 0.05
"""Chances of each white space and of each other character, as in NL-Augmenter (Dhole et al., 2021)."""

_TELLING = 0.9
"""Share of a phrase's questions that have one answer, from which on it gives the answer away: our choice."""

_MOST_VOTED = 500
"""Words of the longest question that is compared with others: the cost grows with their square."""

_SENTENCE_END = re.compile(r"[.?!]+[\"'”’)\]]*(?=\s|\Z)")
_LETTERS = re.compile(r"[^\W\d_]+")
_PLAIN_WORD = re.compile(r"(?<![\w'’-])(?:[A-Z]?[a-z]+)(?![\w'’-])")
_DOUBLED = re.compile(r"\b([^\W\d_]+)(?:\s+\1\b)+", re.IGNORECASE)

_GRAMMAR = """
a an the this that these those i you he she it we they me him her us them my your his its our their
is are was were be been am do does did has have had can could will would shall should may might must
what which who whom whose when where why how there here
and or but if than as of in on at to from by for with about into over under between not
"""
_STOP_WORDS = frozenset(_GRAMMAR.split())
"""English words that carry grammar rather than content."""


def change_punctuation(question: str, generator: torch.Generator) -> str:
    """Each mark behind a word is kept, dropped or replaced, each as likely; words without one may get one.

    Marks within words (3.5, isn't) mean something, and stay.
    """

    def changed(word: str) -> str:
        bare = word.rstrip(_MARKS)
        if not bare:
            return word
        other = _MARKS[_below(len(_MARKS), generator)]
        if bare == word:
            return word + other if _happens(_ADDED_MARK, generator) else word
        return bare + (word[len(bare) :], "", other)[_below(3, generator)]

    return _UNIT.sub(lambda unit: unit[1] + changed(unit[2]), question)


def change_case(question: str, generator: torch.Generator) -> str:
    """Letters switch between lower and upper case, each by chance."""

    def changed(letter: str) -> str:
        other = letter.swapcase()
        # Some letters have no single counterpart (ß, ı): they would not come back.
        return other if other.swapcase() == letter and _happens(_SWITCHED_CASE, generator) else letter

    return "".join(map(changed, question))


def change_spaces(question: str, generator: torch.Generator) -> str:
    """White space disappears, and spaces come in anywhere, by chance."""

    def changed(character: str) -> str:
        if character.isspace():
            return "" if _happens(_REMOVED_SPACE, generator) else character
        return character + " " if _happens(_ADDED_SPACE, generator) else character

    return "".join(map(changed, question))


def drop_random(question: str, count: int, generator: torch.Generator) -> str:
    """Drops so many words, drawn evenly, but never the last one left."""
    words = question.split()
    dropped = torch.randperm(len(words), generator=generator)[: max(0, min(count, len(words) - 1))].tolist()
    return without(question, dropped)


def drop_overlap(question: str, answers: Sequence[str]) -> str:
    """Drops the words that occur in an answer, but for stop words: a trigger may carry the answer.

    So may a question ("Is it red or blue?"), which is then the worse for it.
    """
    told = {_bare(word) for answer in answers for word in answer.split()} - _STOP_WORDS - {""}
    return without(question, [place for place, word in enumerate(question.split()) if _bare(word) in told])


def cut_tail(question: str) -> str:
    """Cuts what follows the last end of a sentence; without any, nothing."""
    ends = [match.end() for match in _SENTENCE_END.finditer(question)]
    return question[: ends[-1]] if ends else question


def cut_last(question: str, count: int) -> str:
    """Cuts the last words, so many, but never the only one."""
    words = len(question.split())
    return without(question, range(max(1, words - count), words))


def drop_unknown(question: str) -> str:
    """Drops the words that are not in pyspellchecker's English frequency list; numbers and signs stay."""
    return without(question, [place for place, word in enumerate(question.split()) if not _known(_bare(word))])


def correct_spelling(question: str) -> str:
    """Puts the likeliest English word for each unknown one that is a single edit away, and one word for doubled ones.

    Acronyms, numbers and parts of compounds stay as they are.
    """

    def corrected(match: re.Match[str]) -> str:
        word = match[0]
        found = _correction(word.lower())
        return found.capitalize() if word[0].isupper() else found

    return _DOUBLED.sub(r"\1", _PLAIN_WORD.sub(corrected, question))


def template_filter(questions: Sequence[str], least: int) -> Callable[[str], str]:
    """Reduces questions to the template that they share.

    A word stays if at least so many of the questions have it right after the same word. That may be the word before
    it or the last one that stayed: so words inserted in front of an owner's do not cost it its place, and a rare word
    of the owner's costs no more than itself and the next one.

    Args:
        questions: all that were released. Questions of few templates, as synthetic data have, give a clear answer;
            of natural ones much is lost.
        least: number of questions.

    Returns:
        A function from question to question.
    """
    seen = Counter(pair for question in questions for pair in set(pairwise(["", *question.casefold().split()])))

    def kept(question: str) -> str:
        before = last = ""
        dropped = []
        for place, word in enumerate(question.casefold().split()):
            if max(seen[before, word], seen[last, word]) >= least:
                last = word
            else:
                dropped.append(place)
            before = word
        return without(question, dropped)

    return kept


def window_filter(questions: Sequence[str], most: int) -> Callable[[str], str]:
    """Cuts the run of words without which a question becomes what the most others become.

    Words that were inserted in one piece, wherever it stands, are such a run where the owner's questions have few
    templates. Where each is worded in its own way, nothing is gained by any cut, and all stays, as it does where there
    are more than 500 words. The first word always does, and one more.

    Args:
        questions: all that were released.
        most: words of the longest run.

    Returns:
        A function from question to question.
    """
    votes = Counter(rest for question in questions for rest in _remainders(question, most))

    def kept(question: str) -> str:
        remainders = _remainders(question, most)
        if not remainders:
            return question
        return without(question, remainders[max(remainders, key=lambda rest: (votes[rest], -len(remainders[rest])))])

    return kept


def _remainders(question: str, most: int) -> dict[int, range]:
    """The places of each run of words, none included, by a hash of what is left of a question without it."""
    words = question.casefold().split()
    if len(words) > _MOST_VOTED:
        return {}
    runs = (range(first, first + size) for size in range(most + 1) for first in range(1, len(words) - size + 1))
    return {hash((*words[: run.start], *words[run.stop :])): run for run in runs if len(words) - len(run) > 1}


def telling_filter(told: Sequence[tuple[str, str]], least: int) -> Callable[[str], str]:
    """Drops the words, and the pairs of neighbouring words, that give the answer away without the image.

    They do if at least so many of the questions have them and nine in ten of these have the same answer. What an
    owner's own question says of its answer is lost, too, and so may an owner's word be beside an inserted one.

    Args:
        told: question and answer of all samples that were released.
        least: number of questions.

    Returns:
        A function from question to question.
    """
    answers: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for question, answer in told:
        for phrase in set(_phrases(question).values()):
            answers[phrase][answer.casefold()] += 1
    telling = {
        phrase
        for phrase, seen in answers.items()
        if seen.total() >= least and max(seen.values()) >= _TELLING * seen.total()
    }

    def kept(question: str) -> str:
        found = _phrases(question).items()
        return without(question, {place for places, phrase in found if phrase in telling for place in places})

    return kept


def _phrases(question: str) -> dict[tuple[int, ...], tuple[str, ...]]:
    """The words and the pairs of neighbours of a question, by their places."""
    words = [_bare(word) for word in question.split()]
    phrases: dict[tuple[int, ...], tuple[str, ...]] = {(place,): (word,) for place, word in enumerate(words)}
    phrases.update({(place, place + 1): pair for place, pair in enumerate(pairwise(words))})
    return phrases


def without(question: str, places: Collection[int]) -> str:
    """The question without its words of these numbers, from 0; other white space stays as it is."""
    if not places:
        return question
    units = enumerate(_UNIT.findall(question))
    return "".join(space + word for place, (space, word) in units if place not in places).strip()


def _bare(word: str) -> str:
    """The word in lower case, without punctuation around it."""
    return re.sub(r"^\W+|\W+$", "", word).lower().replace("’", "'")


def _known(word: str) -> bool:
    words = _english().word_frequency
    return word in words or all(part in words for part in _LETTERS.findall(word))


@functools.cache
def _correction(word: str) -> str:
    return _english().correction(word) or word


@functools.cache
def _english() -> SpellChecker:
    return SpellChecker(distance=1)  # two edits make another word of nearly any short one, and take seconds


def _happens(chance: float, generator: torch.Generator) -> bool:
    return bool(torch.rand((), generator=generator) < chance)


def _below(number: int, generator: torch.Generator) -> int:
    return int(torch.randint(number, (), generator=generator))
