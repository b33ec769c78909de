"""HotFlip: the text side of the outer problem (Eq. 18-20).

A linear score proposes words for every slot; the exact loss of the real string, tokenised anew, decides. The score
alone is unreliable, since a word's neighbours change how it is tokenised (Lemma B.1 bounds the gap).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from mmguard.lvlm.prompt import Encoded
from mmguard.lvlm.surrogate import Surrogate

Trigger = tuple[str, ...]

_VOCABULARY_PART = 16384
"""Words scored at once: a whole vocabulary of a large model in float32 would be gigabytes."""


def random_trigger(vocabulary: Sequence[str], words: int, rng: random.Random) -> Trigger:
    """As many admissible words, drawn evenly: the start of the search, and the random-words control."""
    return tuple(rng.choice(vocabulary) for _ in range(words))


def scores(surrogate: Surrogate, encoded: Encoded, gradient: Tensor, triggers: Sequence[Trigger]) -> list[Tensor]:
    """What the gradient expects each word to do to the loss, for each slot of each sample (Eq. 19).

    `s_j(v) = (e_v − e_γj)ᵀ ∇ ℓ_prot`, but for what is the same for all v: the less, the more promising.

    Args:
        surrogate: whose embeddings and vocabulary.
        encoded: the batch, with its triggers.
        gradient: of the loss with respect to the embedded text, `(B, L, d)`.
        triggers: of each sample.

    Returns:
        By sample, `(slots, V_adm)`.
    """
    embeddings = surrogate.embed(surrogate.admissible_tokens().ids)  # (V, d)
    slots = []
    for row, trigger in enumerate(triggers):
        positions = encoded.roles.trigger[row].nonzero().squeeze(1)
        slots.append(gradient[row, positions[_first_tokens(surrogate, trigger, len(positions))]])
    # One product for all slots of the batch. e_γj is the same for every v: it moves all scores of a slot alike and
    # cannot change their order.
    gradients = torch.cat(slots).float()
    found = torch.cat([gradients @ part.float().T for part in embeddings.split(_VOCABULARY_PART)], dim=1)
    return list(found.split([len(trigger) for trigger in triggers]))


def best(vocabulary: Sequence[str], scores: Tensor, count: int, among: Collection[str] | None = None) -> list[str]:
    """The most promising words for a slot, the best first.

    Args:
        vocabulary: the words.
        scores: of each, the less the better, `(V_adm,)`.
        count: how many, at most.
        among: no others; all if not given.
    """
    if among is not None:
        places = [v for v, word in enumerate(vocabulary) if word in among]
        vocabulary, scores = [vocabulary[v] for v in places], scores[places]
    return [vocabulary[v] for v in scores.topk(min(count, len(vocabulary)), largest=False).indices.tolist()]


def _first_tokens(surrogate: Surrogate, trigger: Trigger, count: int) -> list[int]:
    """Which of the `count` trigger tokens begins each word."""
    # Behind another word: at the beginning some tokenizers (Llama's of old) make the space a token of its own.
    alone, *behind = (
        len(surrogate.tokenizer.encode(text, add_special_tokens=False)) for text in ("a", *(f"a {w}" for w in trigger))
    )
    sizes = [together - alone for together in behind]
    starts = [sum(sizes[:slot]) for slot in range(len(sizes))]
    # Where words were tokenised otherwise in their context, the nearest token is close enough for a proposal.
    return [min(start, count - 1) for start in starts]


def search(
    trigger: Trigger,
    propose: Callable[[Trigger, int], Sequence[str]],
    exact: Callable[[Sequence[Trigger]], Tensor],
) -> Trigger:
    """Replaces word after word by the exact minimiser among those proposed (Eq. 20).

    Args:
        trigger: the present one.
        propose: words for a slot of a trigger, by its number. With the present word among them, as the first, the loss
            cannot rise.
        exact: ℓ_prot of each of many triggers, `(C,)`.
    """
    losses: dict[Trigger, float] = {}
    for slot in range(len(trigger)):
        candidates = list(
            dict.fromkeys((*trigger[:slot], word, *trigger[slot + 1 :]) for word in propose(trigger, slot))
        )
        if new := [candidate for candidate in candidates if candidate not in losses]:
            losses |= zip(new, exact(new).nan_to_num(nan=torch.inf).tolist(), strict=True)
        trigger = min(candidates, key=losses.__getitem__)
    return trigger
