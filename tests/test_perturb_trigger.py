"""The trigger search against brute force, and what it may propose."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny
from mmguard.config import ProtectConfig
from mmguard.data.text import is_admissible
from mmguard.lvlm.candidates import Candidates
from mmguard.lvlm.prompt import Example
from mmguard.lvlm.surrogate import Surrogate, load_surrogate
from mmguard.perturb import trigger as hotflip
from mmguard.perturb.budget import to_unit
from mmguard.perturb.objective import TriggerLoss
from mmguard.protection.ensemble import Ensemble


@pytest.fixture(scope="module")
def surrogate(tmp_path_factory: pytest.TempPathFactory) -> Surrogate:
    return load_surrogate(tiny.build("llava", tmp_path_factory.mktemp("llava")), device="cpu")


class Exact:
    """A loss from a function of triggers, with or without bounds."""

    def __init__(self, of: Callable[[hotflip.Trigger], float], gap: Callable[[hotflip.Trigger], float] | None) -> None:
        self.of, self.gap = of, gap
        self.judged: list[hotflip.Trigger] = []

    def __call__(self, triggers: Sequence[hotflip.Trigger]) -> torch.Tensor:
        self.judged += triggers
        return torch.tensor([self.of(t) for t in triggers])

    def bound(self, triggers: Sequence[hotflip.Trigger]) -> torch.Tensor | None:
        return torch.tensor([self.of(t) - self.gap(t) for t in triggers]) if self.gap else None


def test_search_finds_the_best_word_of_each_slot_in_turn() -> None:
    worth = {"red": 3.0, "blue": 1.0, "dog": 2.0, "cat": 5.0}
    exact = Exact(lambda trigger: sum(worth[word] for word in trigger), None)
    assert hotflip.search(("cat", "cat"), [["red", "dog"], ["blue", "red"]], exact) == ("dog", "blue")
    assert exact.judged[:3] == [("cat", "cat"), ("red", "cat"), ("dog", "cat")]


def test_search_never_gets_worse_and_survives_nan() -> None:
    exact = Exact(lambda trigger: 0.0 if trigger == ("a", "b") else float("nan"), None)
    assert hotflip.search(("a", "b"), [["c"], ["d", "e"]], exact) == ("a", "b")


@given(
    losses=st.lists(st.floats(0, 10), min_size=1, max_size=40),
    gaps=st.lists(st.floats(0, 5), min_size=40, max_size=40),
)
def test_bounds_never_change_the_winner(losses: list[float], gaps: list[float]) -> None:
    number = {(str(k),): k for k in range(len(losses))}
    exact = Exact(lambda trigger: losses[number[trigger]], lambda trigger: gaps[number[trigger]])
    winner = hotflip.minimiser(list(number), exact)
    plain = hotflip.minimiser(list(number), Exact(exact.of, None))
    assert losses[number[winner]] == pytest.approx(losses[number[plain]], abs=1e-6)
    assert len(exact.judged) == len(set(exact.judged))


def test_tight_bounds_spare_most_candidates() -> None:
    exact = Exact(lambda trigger: float(trigger[0]), lambda trigger: 0.5)
    assert hotflip.minimiser([(str(k),) for k in range(39, -1, -1)], exact) == ("0",)
    assert exact.judged == [(str(k),) for k in range(10)]


def test_proposals_are_the_least_linear_scores(surrogate: Surrogate) -> None:
    words = surrogate.admissible_tokens().words
    trigger = (words[0], words[1])
    example = Example("what color is it?", "red", trigger=trigger)
    image = torch.rand(3, 40, 40).mul(255).round() / 255
    encoded = surrogate.encode([example], [image])
    with torch.enable_grad():
        forward = surrogate.forward(encoded, surrogate.pixels([image]))
        (gradient,) = torch.autograd.grad(forward.nll.sum(), forward.embeddings)
    (slots,) = hotflip.propose(surrogate, encoded, gradient, [trigger], top_c=5)
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
    loss = TriggerLoss(many, ProtectConfig(variant="text"), None, None)

    expected = list(start)
    for slot in range(2):
        expected[slot] = min(words, key=lambda w: brute((*expected[:slot], w, *expected[slot + 1 :])))
    assert hotflip.search(start, [words, words], loss) == tuple(expected)
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


@pytest.mark.parametrize("variant", ["bph", "crs"])
def test_the_bound_of_the_real_loss_holds_and_keeps_the_winner(variant: str, surrogate: Surrogate) -> None:
    words = surrogate.admissible_tokens().words[:24]
    generator = torch.Generator().manual_seed(0)
    original = torch.randint(0, 256, (3, 40, 40), generator=generator).to(torch.uint8)
    image = to_unit(original)
    example = Example("what color is it?", "red", trigger=(words[0], words[1]))
    ensemble = Ensemble([surrogate], ProtectConfig(variant=variant))  # type: ignore[arg-type]
    (reference,) = ensemble.references([example], [image])
    protected = [to_unit((original.int() + 8).clamp(0, 255).to(torch.uint8))]
    evaluation = ensemble.members[0].objective([example], protected, reference)
    loss = ensemble.members[0].objective.of_trigger(example, protected[0], evaluation, reference, 0)
    candidates = [(word, words[1]) for word in words]
    exact, bound = loss(candidates), loss.bound(candidates)
    assert bound is not None
    assert (exact >= bound - 1e-5).all()
    torch.testing.assert_close(exact[:1], evaluation.loss.detach(), atol=1e-4, rtol=0)
    assert hotflip.minimiser(candidates, loss) == candidates[int(exact.argmin())]
    adversarial = Ensemble([surrogate], ProtectConfig(variant=f"{variant}-max"))  # type: ignore[arg-type]
    unbounded = adversarial.members[0].objective.of_trigger(example, protected[0], evaluation, reference, 0)
    assert unbounded.bound(candidates) is None
