"""How far a released text is from its original: edits, BLEU and perplexity, beside random words in the same places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from huggingface_hub import try_to_load_from_cache
from rapidfuzz.distance import Levenshtein
from torchmetrics.functional.text import bleu_score

from mmguard.auditing.arms import random_words
from mmguard.lvlm.language import LanguageModel

_USUAL = "openai-community/gpt2"
"""The language model that perplexities are usually given for; taken where none is named and it is at hand."""
_BLEU_WORDS = 4


@dataclass(frozen=True)
class TextChange:
    """What a release did to one text. Words are what white space separates."""

    sample: str
    """Id of the released sample."""
    words_inserted: int
    share_inserted: float
    """Inserted words, of all words of the released text."""
    word_edits: int
    """Levenshtein distance in words."""
    character_edits: int
    """Levenshtein distance in characters."""
    perplexity_before: float | None = None
    """None here and below: no language model, or the text is longer than it takes, or a single token."""
    perplexity: float | None = None
    perplexity_control: float | None = None
    """With random words in the places of the inserted ones."""


def usual_language_model() -> str | None:
    """The name of GPT-2 if its files are on this machine."""
    cached = try_to_load_from_cache(_USUAL, "model.safetensors")
    return _USUAL if isinstance(cached, str) else None


def text_changes(
    texts: Sequence[tuple[str, str, str]], model: LanguageModel | None = None, seed: int = 0
) -> list[TextChange]:
    """Measures the texts of a release.

    Args:
        texts: id, original and released text of each sample.
        model: for perplexities.
        seed: of the random words: text k draws with seed + k.
    """
    changes = []
    perplexity: dict[str, float | None] = {}
    controls: list[str | None] = [None] * len(texts)
    if model is not None:
        if model.words:
            controls = [random_words(old, new, model.words, seed + k) for k, (_, old, new) in enumerate(texts)]
        wanted = [text for _, old, new in texts for text in (old, new)] + [
            text for text in controls if text is not None
        ]
        distinct = list(dict.fromkeys(wanted))  # datasets ask the same question of many images
        perplexity = dict(zip(distinct, model.perplexities(distinct), strict=True))
    for (name, old, new), control in zip(texts, controls, strict=True):
        before, after = old.split(), new.split()
        changes.append(
            TextChange(
                sample=name,
                words_inserted=len(after) - len(before),
                share_inserted=(len(after) - len(before)) / len(after),
                word_edits=Levenshtein.distance(before, after),
                character_edits=Levenshtein.distance(old, new),
                perplexity_before=perplexity.get(old),
                perplexity=perplexity.get(new),
                perplexity_control=None if control is None else perplexity[control],
            )
        )
    return changes


def bleu(texts: Sequence[tuple[str, str]]) -> float | None:
    """BLEU-4 of all released texts together against their originals, from 0 to 1.

    Of the whole corpus, since a single short question has no four words in a row.

    Args:
        texts: original and released text of each sample.

    Returns:
        None if no original has four words.
    """
    if all(len(old.split()) < _BLEU_WORDS for old, _ in texts):
        return None
    return float(bleu_score([new for _, new in texts], [[old] for old, _ in texts]))
