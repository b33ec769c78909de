"""HotFlip: the text side of the outer problem (Eq. 18-20).

A linear score proposes words for every slot; the exact loss of the real string, tokenised anew, decides. The score
alone is unreliable, since a word's neighbours change how it is tokenised (Lemma B.1 bounds the gap).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import accumulate

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


def propose(
    surrogate: Surrogate, encoded: Encoded, gradient: Tensor, triggers: Sequence[Trigger], top_c: int
) -> list[list[list[str]]]:
    """The words that the gradient expects to lower the loss most, for each slot of each sample (Eq. 19).

    `s_j(v) = (e_v − e_γj)ᵀ ∇ ℓ_prot`; the least scores are kept.

    Args:
        surrogate: whose embeddings and vocabulary.
        encoded: the batch, with its triggers.
        gradient: of the loss with respect to the embedded text, `(B, L, d)`.
        triggers: of each sample.
        top_c: words a slot.

    Returns:
        Words by sample, slot and rank, the most promising first.
    """
    vocabulary = surrogate.admissible_tokens()
    embeddings = surrogate.embed(vocabulary.ids)  # (V, d)
    slots = []
    for row, trigger in enumerate(triggers):
        positions = encoded.roles.trigger[row].nonzero().squeeze(1)
        slots.append(gradient[row, positions[_first_tokens(surrogate, trigger, len(positions))]])
    # One product for all slots of the batch. e_γj is the same for every v: it moves all scores of a slot alike and
    # cannot change their order.
    gradients = torch.cat(slots).float()
    scores = torch.cat([gradients @ part.float().T for part in embeddings.split(_VOCABULARY_PART)], dim=1)
    best = scores.topk(min(top_c, len(vocabulary.words)), dim=1, largest=False).indices
    words = [[vocabulary.words[v] for v in slot] for slot in best.tolist()]
    ends = list(accumulate(len(trigger) for trigger in triggers))
    return [words[end - len(trigger) : end] for trigger, end in zip(triggers, ends, strict=True)]


def _first_tokens(surrogate: Surrogate, trigger: Trigger, count: int) -> list[int]:
    """Which of the `count` trigger tokens begins each word."""
    sizes = [len(surrogate.tokenizer.encode(f" {word}", add_special_tokens=False)) for word in trigger]
    starts = [sum(sizes[:slot]) for slot in range(len(sizes))]
    # Where words were tokenised otherwise in their context, the nearest token is close enough for a proposal.
    return [min(start, count - 1) for start in starts]


def search(
    trigger: Trigger, proposals: Sequence[Sequence[str]], exact: Callable[[Sequence[Trigger]], Tensor]
) -> Trigger:
    """Replaces word after word by the exact minimiser among the proposals and the word that is there (Eq. 20).

    Args:
        trigger: the present one.
        proposals: candidate words of every slot.
        exact: ℓ_prot of each of many triggers, `(C,)`.

    Returns:
        A trigger whose loss is not above that of the present one.
    """
    least = torch.inf  # of the present trigger; not known before the first slot
    for slot, words in enumerate(proposals):
        candidates = dict.fromkeys((*trigger[:slot], word, *trigger[slot + 1 :]) for word in words)
        candidates.pop(trigger, None)
        judged = [trigger, *candidates] if slot == 0 else list(candidates)
        if not judged:
            continue
        losses = exact(judged).nan_to_num(nan=torch.inf)
        best = int(losses.argmin())
        if slot == 0 or losses[best] < least:
            trigger, least = judged[best], float(losses[best])
    return trigger
