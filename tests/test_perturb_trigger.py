"""The trigger search against brute force, and what it may propose."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

import tiny
from mmguard.data.text import is_admissible
from mmguard.lvlm.candidates import Candidates
from mmguard.lvlm.loading import load_surrogate
from mmguard.lvlm.prompt import Example
from mmguard.lvlm.surrogate import Surrogate
from mmguard.perturb import trigger as hotflip


@pytest.fixture(scope="module")
def surrogate(tmp_path_factory: pytest.TempPathFactory) -> Surrogate:
    return load_surrogate(tiny.build("llava", tmp_path_factory.mktemp("llava")), device="cpu")


def among(*slots: Sequence[str]) -> Callable[[hotflip.Trigger, int], list[str]]:
    """Proposes the present word and those given for its slot."""
    return lambda trigger, slot: [trigger[slot], *slots[slot]]


def test_search_finds_the_best_word_of_each_slot_in_turn() -> None:
    worth = {"red": 3.0, "blue": 1.0, "dog": 2.0, "cat": 5.0}
    seen: list[list[hotflip.Trigger]] = []

    def exact(candidates: Sequence[hotflip.Trigger]) -> torch.Tensor:
        seen.append(list(candidates))
        return torch.tensor([sum(worth[w] for w in c) for c in candidates])

    assert hotflip.search(("cat", "cat"), among(["red", "dog"], ["blue", "red"]), exact) == ("dog", "blue")
    assert seen[0] == [("cat", "cat"), ("red", "cat"), ("dog", "cat")]


def test_search_never_gets_worse_and_survives_nan() -> None:
    def exact(candidates: Sequence[hotflip.Trigger]) -> torch.Tensor:
        return torch.tensor([0.0] + [float("nan")] * (len(candidates) - 1))

    assert hotflip.search(("a", "b"), among(["c"], ["d", "e"]), exact) == ("a", "b")


def test_proposals_are_the_least_linear_scores(surrogate: Surrogate) -> None:
    words = surrogate.admissible_tokens().words
    trigger = (words[0], words[1])
    example = Example("what color is it?", "red", trigger=trigger)
    image = torch.rand(3, 40, 40).mul(255).round() / 255
    encoded = surrogate.encode([example], [image])
    with torch.enable_grad():
        forward = surrogate.forward(encoded, surrogate.pixels([image]))
        (gradient,) = torch.autograd.grad(forward.nll.sum(), forward.embeddings)
    (found,) = hotflip.scores(surrogate, encoded, gradient, [trigger])
    slots = [hotflip.best(words, one, 5) for one in found]
    positions = encoded.roles.trigger[0].nonzero().flatten()
    vocabulary = surrogate.admissible_tokens()
    for slot, position in zip(slots, positions, strict=True):
        scores = {
            word: float((surrogate.embed(token) - forward.embeddings[0, position].detach()) @ gradient[0, position])
            for token, word in zip(vocabulary.ids, vocabulary.words, strict=True)
        }
        assert len(slot) == 5
        assert max(scores[w] for w in slot) <= min(s for w, s in scores.items() if w not in slot) + 1e-6
        assert all(is_admissible(w) for w in slot)


def test_search_with_the_real_loss_is_coordinate_descent_by_brute_force(surrogate: Surrogate) -> None:
    words = surrogate.admissible_tokens().words[:6]
    image = torch.rand(3, 40, 40).mul(255).round() / 255
    start = (words[0], words[1])

    def brute(trigger: hotflip.Trigger) -> float:
        example = Example("what color is it?", "red", trigger=trigger)
        with torch.no_grad():
            return surrogate.forward(surrogate.encode([example], [image]), surrogate.pixels([image])).nll.item()

    many = Candidates(surrogate, Example("what color is it?", "red", trigger=start), image)

    def exact(candidates: Sequence[hotflip.Trigger]) -> torch.Tensor:
        return many(candidates)[1].nll

    expected = list(start)
    for slot in range(2):
        expected[slot] = min(words, key=lambda w: brute((*expected[:slot], w, *expected[slot + 1 :])))
    assert hotflip.search(start, among(words, words), exact) == tuple(expected)
    assert brute(tuple(expected)) >= min(brute(t) for t in product(words, words)) - 1e-6


def test_random_triggers_are_admissible_and_seeded(surrogate: Surrogate) -> None:
    words = surrogate.admissible_tokens().words
    first = hotflip.random_trigger(words, 5, random.Random(1))
    assert first == hotflip.random_trigger(words, 5, random.Random(1))
    assert first != hotflip.random_trigger(words, 5, random.Random(2))
    assert len(first) == 5
    assert all(is_admissible(w) for w in first)


def test_a_word_of_several_tokens_keeps_later_slots_in_place(surrogate: Surrogate, tmp_path: Path) -> None:
    sizes = [len(surrogate.tokenizer.encode(f" {w}", add_special_tokens=False)) for w in ("zzyzxq", "red")]
    assert sizes[0] > 1
    assert hotflip._first_tokens(surrogate, ("zzyzxq", "red"), sum(sizes)) == [0, sizes[0]]
    assert hotflip._first_tokens(surrogate, ("zzyzxq", "red"), 1) == [0, 0]


def test_slots_are_found_where_a_space_at_the_beginning_is_a_token() -> None:
    """As in tokenizer.json of LLaVA 1.5, whose normaliser puts a space before every text."""
    pieces = [("<unk>", 0.0), *((piece, -1.0) for piece in ("\u2581a", "\u2581red", "\u2581blue", "\u2581"))]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    assert len(fast.encode(" red", add_special_tokens=False)) == 2
    assert len(fast.encode("a red blue red", add_special_tokens=False)) == 4
    surrogate = cast("Surrogate", SimpleNamespace(tokenizer=fast))
    assert hotflip._first_tokens(surrogate, ("red", "blue", "red"), 3) == [0, 1, 2]
