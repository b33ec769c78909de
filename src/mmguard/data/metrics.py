"""How right a reply is: the official metrics of the benchmarks, each a function of a reply and the accepted answers.

Every metric gives a score from 0 to 1. `METRICS` finds it by the name that a row of a dataset gives in `metric`.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from rapidfuzz.distance import Indel, Levenshtein

from mmguard.types import Metric

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d)")
# A point between digits and a sign in front of a number belong to the number.
_PUNCTUATION = re.compile(r"(?!(?<=\d)\.(?=\d))(?!(?<!\S)-(?=\d))[^\w\s]|_")
# Scripts without spaces between words: each sign is one.
_UNSPACED = "\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
_WORDS = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_LEADING_LETTER = re.compile(r"\W*([A-Za-z])\s*[.):]")
_STATED_LETTER = re.compile(r"\b(?:[Aa]nswer|[Oo]ption)\s*(?:[Ii]s|:)?:?\s*\(?([A-Z])\b(?!')")

NUMBER_WORDS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6",
    "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
"""The words that VQA evaluation reads as digits."""

_VQA_SIGNS = r';/[]"{}()=+\_-><@`!'
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    how'd how'll isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've o'clock
    oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd somebody'd've somebody'll someone'd
    someone'd've someone'll something'd something'd've something'll there'd there'd've there're they'd they'd've
    they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what've where'd where've who'd who'd've
    who'll who've why'll why're won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll
    you're you've
"""
_VQA_WORDS = NUMBER_WORDS | {
    word[: mark.start()] + word[mark.end() :]: word for word in _CONTRACTIONS.split() for mark in re.finditer("'", word)
}
"""What VQA evaluation writes for a word: digits, and the apostrophe where one is missing."""


def exact_match(reply: str, answers: Sequence[str]) -> float:
    """1 if the reply equals one of the answers after `normalise`, else 0."""
    return float(normalise(reply) in {normalise(answer) for answer in answers})


def letter_match(reply: str, answers: Sequence[str]) -> float:
    """1 if the reply names the right option, whose letter is the answer, else 0.

    For questions that list their options in their own text.
    """
    letters = string.ascii_uppercase
    return float(named_option(reply, letters) in [letters.find(answer.strip().upper()) for answer in answers])


def vqa_accuracy(reply: str, answers: Sequence[str]) -> float:
    """How many people gave the reply, as TextVQA counts it (Singh et al., 2019, after Antol et al., 2015).

    The mean, over all ways to leave one person out, of min(1, people of the others who gave the reply / 3); replies
    and answers are compared after `vqa_normalise`. Where fewer than four people answered, so that no reply could
    count fully, each of their answers does.

    Args:
        reply: the model's reply.
        answers: one answer a person (the benchmark has ten); the same answer twice counts twice.
    """
    said, given = vqa_normalise(reply), [vqa_normalise(answer) for answer in answers]
    if len(given) < 4:
        return float(said in given)
    count = given.count(said)
    return fmean(min(1.0, (count - (one == said)) / 3) for one in given)


def anls(reply: str, answers: Sequence[str]) -> float:
    """Average normalised Levenshtein similarity of one question (Biten et al., 2019; DocVQA's metric).

    The best over the answers of 1 − distance / length of the longer text, case and white space aside; a similarity
    below 0.5 counts as 0, one of exactly 0.5 counts, as on the benchmark's own server.
    """
    said = _folded(reply)
    return max(Levenshtein.normalized_similarity(said, _folded(answer), score_cutoff=0.5) for answer in answers)


def rouge_l(reply: str, answers: Sequence[str]) -> float:
    """ROUGE-L (Lin, 2004): the F measure of the longest common subsequence of words; the best over the answers.

    For captions and other sentences, which are right in many ways. Words are compared in lower case, without
    punctuation; answers without any word, such as "👍", as wholes.
    """
    said = words(reply)
    # 2 · LCS / (length + length) is what the indel distance leaves of 1.
    return max(
        Indel.normalized_similarity(said, right) if (right := words(answer)) else exact_match(reply, [answer])
        for answer in answers
    )


METRICS: Mapping[Metric, Callable[[str, Sequence[str]], float]] = {
    "exact": exact_match,
    "letter": letter_match,
    "vqa": vqa_accuracy,
    "anls": anls,
    "rouge": rouge_l,
}


def normalise(text: str) -> str:
    """Text as exact match compares it.

    Lower case; articles, punctuation and thousands separators removed, white space collapsed. Numbers stay as
    they are: words are not turned into digits, and a decimal point or a sign is kept.
    """
    lower = unicodedata.normalize("NFKC", text).lower().strip()
    bare = _THOUSANDS.sub("", lower).replace("'", "").replace("\u2019", "")
    bare = " ".join(_PUNCTUATION.sub(" ", bare).split())
    # An answer that is nothing but an article or a sign ("A", "?") is compared as it stands.
    return " ".join(_ARTICLES.sub(" ", bare).split()) or bare or lower


def vqa_normalise(text: str) -> str:
    """Text as the evaluation of TextVQA compares it, with all its peculiarities.

    Lower case, without articles, commas, question marks and full stops (but for decimal points); number words as
    digits, contractions with their apostrophe. Any other sign becomes a space, unless it stands beside a space
    somewhere in the text: then it vanishes everywhere.
    """
    whole = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    whole = bare = re.sub(r"[\n\t]", " ", whole)
    for sign in _VQA_SIGNS:
        bare = bare.replace(sign, "" if f"{sign} " in whole or f" {sign}" in whole else " ")
    words = re.sub(r"\.(?!\d)", "", bare).split()
    return " ".join(_VQA_WORDS.get(word, word) for word in words if word not in ("a", "an", "the"))


def words(text: str) -> list[str]:
    """The words of a text in lower case; of scripts that put no spaces between words, its signs."""
    return _WORDS.findall(unicodedata.normalize("NFKC", text).lower())


def named_option(reply: str, options: Sequence[str]) -> int | None:
    """Which option a reply names, by its letter ("B", "(b)", "B. a dog", "The answer is B") or by its text.

    Args:
        reply: the model's reply.
        options: the options' texts, in order A, B, C…

    Returns:
        The option's number from 0; None if the reply names none.
    """
    bare = reply.strip(string.whitespace + string.punctuation)
    letters = string.ascii_uppercase[: len(options)]
    if len(bare) == 1 and bare.upper() in letters:
        return letters.index(bare.upper())
    texts = [normalise(option) for option in options]
    if texts.count(normalise(reply)) == 1:
        return texts.index(normalise(reply))
    for found in (_LEADING_LETTER.match(reply), _STATED_LETTER.search(reply)):
        if found and found[1].upper() in letters:
            return letters.index(found[1].upper())
    return None


def _folded(text: str) -> str:
    return " ".join(text.lower().split())
