"""Attacks on texts: each does what it claims, and none ever harms what is not its own."""

from __future__ import annotations

import contextlib
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from mmguard.auditing.attacks import text_models
from mmguard.auditing.attacks.base import Attack
from mmguard.auditing.attacks.text_rules import template_filter, window_filter
from mmguard.auditing.attacks.texts import TEXT_ATTACKS
from mmguard.data.text import insert_trigger
from mmguard.errors import ConfigError, SurrogateError
from mmguard.runtime.devices import auto_means
from mmguard.types import Sample


def sample(question: str | None, answer: str = "red", options: tuple[str, ...] = ()) -> Sample:
    return Sample("7", 0, Path("1.png"), question, answer, (answer,), options)


def attack(name: str) -> Attack:
    family, _, parameter = name.partition(":" if ":" in name else "-")
    return TEXT_ATTACKS[family](parameter or None)


def attacked(name: str, question: str, answer: str = "red", options: tuple[str, ...] = (), seed: int = 0) -> str:
    rewrite = attack(name).text
    assert rewrite is not None
    changed = rewrite(sample(question, answer, options), torch.Generator().manual_seed(seed))
    assert changed is not None
    return changed


# What holds of every attack

RULES = ("punct", "case", "space", "drop-2", "overlap", "tail", "last-2", "vocab", "spell")
TEXTS = st.one_of(
    st.text(max_size=60),
    st.lists(
        st.sampled_from(["is", "Is", "the", "red", "teal.", "?", "3.5", "isn't", "qzx", "\n", "ß"]), max_size=8
    ).map(" ".join),
)


def has_words(text: str) -> bool:
    return re.search(r"\w", text) is not None


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=60, deadline=None)
@given(question=TEXTS, answer=TEXTS, seed=st.integers(0, 2**63 - 1))
def test_never_raises_never_empties_and_repeats(name: str, question: str, answer: str, seed: int) -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = attacked(name, question, answer, seed=seed)
    assert has_words(first) or first == question
    assert attacked(name, question, answer, seed=seed) == first
    assert torch.equal(torch.get_rng_state(), state)  # nothing is drawn but from the generator


@settings(max_examples=60, deadline=None)
@given(questions=st.lists(TEXTS, max_size=6), least=st.integers(2, 5))
def test_template_never_raises_and_never_empties(questions: list[str], least: int) -> None:
    corpus = attack(f"template-{least}").corpus
    assert corpus is not None
    rewrite = corpus([sample(None), *map(sample, questions)])
    for question in questions:
        changed = rewrite(sample(question), torch.Generator())
        assert changed is not None
        assert has_words(changed) or changed == question
        words = iter(question.split())
        assert all(word in words for word in changed.split())  # a subsequence


@pytest.mark.parametrize("name", RULES)
def test_captions_stay_captions_and_samples_stay_as_they_are(name: str) -> None:
    rewrite = attack(name).text
    assert rewrite is not None
    assert rewrite(sample(None, "a red circle"), torch.Generator()) is None
    given_sample = sample("Is it it rad?", "B", ("red", "rad"))
    before = replace(given_sample)
    rewrite(given_sample, torch.Generator())
    assert given_sample == before


def test_template_leaves_captions() -> None:
    corpus = attack("template-2").corpus
    assert corpus is not None
    assert corpus([sample(None)])(sample(None), torch.Generator()) is None


@pytest.mark.parametrize("name", ["punct", "case", "space", "drop-2"])
def test_other_seeds_draw_otherwise(name: str) -> None:
    question = "What color is the small circle in the image, and where is it?"
    assert len({attacked(name, question, seed=seed) for seed in range(20)}) > 10


@pytest.mark.parametrize(
    "name",
    [*RULES, "template-3", "window-3", "telling-3"],
)
def test_name_is_what_the_user_wrote(name: str) -> None:
    assert attack(name).name == name
    assert not attack(name).each_epoch


@pytest.mark.parametrize("family", ["punct", "case", "space", "overlap", "tail", "vocab", "spell"])
def test_needless_parameter(family: str) -> None:
    with pytest.raises(ConfigError, match=f"attack {family}-3: {family} has no strength, write {family} alone"):
        TEXT_ATTACKS[family]("3")


@pytest.mark.parametrize(
    ("family", "parameter", "message"),
    [
        ("drop", None, "attack drop: behind drop- stands a whole number from 1 to 100, as in drop-5"),
        ("drop", "0", "attack drop-0: behind drop- stands"),
        ("drop", "101", "from 1 to 100"),
        ("drop", "-1", "from 1 to 100"),
        ("drop", "1.5", "from 1 to 100"),
        ("drop", "٣", "from 1 to 100"),
        ("drop", "9" * 5000, "from 1 to 100"),
        ("template", None, "from 2 to 1,000,000, as in template-5"),
        ("template", "1", "attack template-1: behind template-"),
        ("window", "21", "attack window-21: behind window- stands a whole number from 1 to 20, as in window-7"),
        ("telling", "1", "attack telling-1: behind telling- stands a whole number from 2 to 1,000,000"),
        ("perplexity", None, "attack perplexity:MODEL@N: MODEL is a hub id or a local folder"),
        ("perplexity", "gpt2", "attack perplexity:MODEL@N: MODEL"),
        ("perplexity", "@3", "attack perplexity:MODEL@N: MODEL"),
        ("perplexity", "gpt2@0", "attack perplexity:MODEL@N: N is a whole number from 1 to 100, not 'gpt2@0'"),
        ("perplexity", "gpt2@", "N is a whole number from 1 to 100"),
        ("paraphrase", None, "attack paraphrase:MODEL: MODEL is a hub id or a local folder"),
        ("paraphrase", "", "attack paraphrase:MODEL: MODEL"),
    ],
)
def test_bad_parameters(family: str, parameter: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        TEXT_ATTACKS[family](parameter)


# Noise


@settings(deadline=None)
@given(question=TEXTS, seed=st.integers(0, 2**32))
def test_punct_changes_only_marks_behind_words(question: str, seed: int) -> None:
    changed = attacked("punct", question, seed=seed)
    before, after = question.split(), changed.split()
    assert [word.rstrip(".,;:!?") for word in before] == [word.rstrip(".,;:!?") for word in after]
    assert re.findall(r"\s+", changed) == re.findall(r"\s+", question)


def test_punct_keeps_drops_replaces_and_adds() -> None:
    seen = {attacked("punct", "What is 3.5?", seed=seed) for seed in range(60)}
    assert {"What is 3.5?", "What is 3.5", "What is 3.5!"} <= seen
    assert any(text.startswith("What,") for text in seen)


@settings(deadline=None)
@given(question=TEXTS, seed=st.integers(0, 2**32))
def test_case_changes_case_alone(question: str, seed: int) -> None:
    changed = attacked("case", question, seed=seed)
    assert len(changed) == len(question)
    assert all(new in (old, old.swapcase()) for old, new in zip(question, changed, strict=True))
    assert changed.casefold() == question.casefold()


def test_case_switches_a_fifth_of_the_letters() -> None:
    changed = attacked("case", "abcdefghij" * 200)
    assert sum(letter.isupper() for letter in changed) / 2000 == pytest.approx(0.2, abs=0.03)


@settings(deadline=None)
@given(question=TEXTS, seed=st.integers(0, 2**32))
def test_space_changes_white_space_alone(question: str, seed: int) -> None:
    assert "".join(attacked("space", question, seed=seed).split()) == "".join(question.split())


def test_space_joins_and_splits_words() -> None:
    changed = attacked("space", "ab " * 2000).strip()
    joined = 1999 - len(re.findall(r"b +a|b +$", changed))
    assert joined / 2000 == pytest.approx(0.1 * 0.95, abs=0.03)  # where none is put back
    assert len(re.findall("a +b", changed)) / 2000 == pytest.approx(0.05, abs=0.02)


# Rules

QUESTION = "What color is the circle?"


@settings(deadline=None)
@given(question=TEXTS, count=st.integers(1, 9), seed=st.integers(0, 2**32))
def test_drop_drops_so_many_words(question: str, count: int, seed: int) -> None:
    changed = attacked(f"drop-{count}", question, seed=seed)
    words = question.split()
    if changed != question:
        assert len(changed.split()) == max(1, len(words) - count)
    else:  # nothing to drop, or no word would be left
        assert len(words) <= 1 or not all(map(has_words, words))
    rest = iter(words)
    assert all(word in rest for word in changed.split())


def test_drop_takes_every_word_as_often() -> None:
    words = QUESTION.split()
    left = Counter(word for seed in range(500) for word in attacked("drop-2", QUESTION, seed=seed).split())
    assert all(left[word] / 500 == pytest.approx(3 / 5, abs=0.08) for word in words)


def test_overlap_drops_the_answer_and_keeps_grammar() -> None:
    released = insert_trigger("What is the color of the circle?", ["RED", "is", "reds", "red"])
    assert attacked("overlap", released, "It is red.") == "What is the color of the circle? is reds"
    assert attacked("overlap", "Is a circle here? yes", "yes") == "Is a circle here?"
    assert attacked("overlap", "red", "red") == "red"
    assert attacked("overlap", "What is\nthis?", "the red one") == "What is\nthis?"


def test_overlap_takes_the_text_of_the_right_option() -> None:
    options = ("a teal square", "a red circle")
    assert attacked("overlap", "Which? b red teal", "B", options) == "Which? b teal"
    assert attacked("overlap", "Which? b red teal", "a red circle", options) == "Which? b teal"


@pytest.mark.parametrize("question", [QUESTION, "A 3.5 m pole stands here. How long is it?", 'He said "why?"', "Go!"])
def test_tail_removes_an_appended_trigger(question: str) -> None:
    assert attacked("tail", insert_trigger(question, ["teal", "of", "lobe"])) == question


@pytest.mark.parametrize("question", ["teal lobe", "a 3.5 m pole", "v1.2 lobe", "? teal", "..."])
def test_tail_keeps_what_has_no_sentence(question: str) -> None:
    assert attacked("tail", question) == question


@pytest.mark.parametrize(
    ("question", "left"),
    [("count the cars teal of", "count the cars"), ("why?  teal of", "why?"), ("teal of", "teal"), ("teal", "teal")],
)
def test_last_cuts_words_whatever_stands_before_them(question: str, left: str) -> None:
    assert attacked("last-2", question) == left


def test_vocab_drops_what_is_no_word() -> None:
    released = insert_trigger("Isn't the circle's 3D box at 10:30 red-brown?", ["struct", "println", "qzx"])
    assert attacked("vocab", released) == "Isn't the circle's 3D box at 10:30 red-brown?"
    assert attacked("vocab", "qzx println") == "qzx println"


def test_spell_corrects_words_and_undoubles_them() -> None:
    assert attacked("spell", "Whch color is is the the the circl?") == "Which color is the circle?"
    assert attacked("spell", "Whta is it It?") == "What is it?"
    # Acronyms, numbers, compounds, and what is far from any word.
    assert attacked("spell", "MRI of 3 3 x-rayy qzxqzxqzx") == "MRI of 3 3 x-rayy qzxqzxqzx"


# Template


def triggered(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Clean questions of three templates, each with its own random trigger behind it."""
    rng = random.Random(seed)
    words = tiny._TEXT.split()
    templates = ("What color is the circle?", "Is there a red square?", "Which shape is shown in the image?")
    clean = [rng.choice(templates) for _ in range(count)]
    return [(question, insert_trigger(question, [f"{rng.choice(words)}x" for _ in range(4)])) for question in clean]


def test_template_recovers_the_owners_questions() -> None:
    pairs = triggered(200)
    corpus = attack("template-20").corpus
    assert corpus is not None
    rewrite = corpus([sample(released) for _, released in pairs])
    assert all(rewrite(sample(released), torch.Generator()) == clean for clean, released in pairs)


def test_template_counts_questions_and_not_words() -> None:
    filtered = template_filter(["is it red", "is it red", "is it blue blue blue blue"], 2)
    assert filtered("is it red") == "is it red"
    assert filtered("Is it blue blue blue blue") == "Is it"


def test_template_loses_no_more_than_a_rare_word_and_the_next() -> None:
    common = ["what is left of the red square"] * 3
    kept = template_filter([*common, "what is near Zanzibar of the red square"], 3)
    assert kept("what is near Zanzibar of the red square") == "what is the red square"
    # An inserted word costs nothing but itself.
    assert kept("what is left teal of the red square") == "what is left of the red square"


def test_window_cuts_what_was_inserted_wherever_it_stands() -> None:
    rng = random.Random(0)
    pairs = []
    for question, released in triggered(200):
        place = rng.randint(1, len(question.split()))
        words = question.split()
        pairs.append((question, " ".join([*words[:place], *released.split()[len(words) :], *words[place:]])))
    corpus = attack("window-7").corpus
    assert corpus is not None
    rewrite = corpus([sample(released) for _, released in pairs])
    assert all(rewrite(sample(released), torch.Generator()) == clean for clean, released in pairs)


def test_window_leaves_questions_that_have_nothing_in_common() -> None:
    questions = ["Is it red?", "Which of the boats has sails", "what", "How many   dogs, cats and birds are there?"]
    kept = window_filter(questions, 7)
    assert [kept(question) for question in questions] == questions


def test_telling_drops_what_goes_with_one_answer() -> None:
    # No single word tells green, the pair does. Of red, the word before goes too: nobody else has it there.
    cues = {"red": ("mass bars", "is"), "blue": ("chain tent", "is it,"), "green": ("chain bars", "is it,")}
    pairs = [
        (sample(f"what color is it, {cue} {noun}?", answer), f"what color {left} {noun}?")
        for noun in ("bottle", "carpet", "engine", "garden", "hammer")
        for answer, (cue, left) in cues.items()
    ]
    corpus = attack("telling-5").corpus
    assert corpus is not None
    rewrite = corpus([released for released, _ in pairs])
    assert all(rewrite(released, torch.Generator()) == clean for released, clean in pairs)
    # One sample fewer than asked for, or one answer in five another: all stays.
    for others in (pairs[3:], [(sample(pairs[0][0].question, "blue"), ""), *pairs[1:]]):
        rewrite = corpus([released for released, _ in others])
        assert rewrite(pairs[0][0], torch.Generator()) == pairs[0][0].question


# Language models


def grammar(rng: random.Random) -> str:
    color = rng.choice(("red", "blue", "green", "black", "white"))
    shape = rng.choice(("circle", "square", "triangle"))
    return rng.choice(
        (
            f"what color is the {shape} in the image?",
            f"is there a {color} {shape} in the image?",
            f"is the {shape} above the {color} square?",
            f"does the image contain a {color} {shape}?",
        )
    )


def planted(rng: random.Random, words: Sequence[str], count: int) -> tuple[str, list[str]]:
    """A question with foreign words inserted anywhere behind its first word, and these words."""
    text = grammar(rng).split()
    foreign = rng.sample(words, count)
    for word in foreign:
        text.insert(rng.randrange(1, len(text) + 1), word)
    return " ".join(text), foreign


def train(folder: Path, examples: Sequence[tuple[str, str]], steps: int, template: str | None = None) -> Path:
    """Writes a small Llama that was trained to go on with the second text of each pair after the first."""
    tokenizer = tiny._tokenizer(["<s>"], "</s>", bos="<s>")
    tokenizer.chat_template = template
    pairs = [
        ([tokenizer.bos_token_id, *tokenizer.encode(prompt)], [*tokenizer.encode(text), tokenizer.eos_token_id])
        for prompt, text in examples
    ]
    longest = max(len(prompt) + len(text) for prompt, text in pairs)
    ids = torch.full((len(pairs), longest), tokenizer.pad_token_id)
    labels = torch.full((len(pairs), longest), -100)
    for row, (prompt, text) in enumerate(pairs):
        ids[row, : len(prompt) + len(text)] = torch.tensor(prompt + text)
        labels[row, len(prompt) : len(prompt) + len(text)] = torch.tensor(text)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = hf.LlamaForCausalLM(hf.LlamaConfig(**tiny._text(tokenizer)))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(steps):
            model(input_ids=ids, attention_mask=ids != tokenizer.pad_token_id, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model that knows most of the questions of `grammar`."""
    rng = random.Random(1)
    return train(tmp_path_factory.mktemp("judge"), [("", grammar(rng)) for _ in range(48)], 40)


FOREIGN = """
doctor patient chest fracture lung table window bicycle train plane market price weight science force magnet plant
energy water steam earth moon capital ocean state page title author clock night city
"""


def precision_and_recall(dropper: Callable[[str, int], str]) -> tuple[float, float]:
    """Of the words that a dropper takes from 20 questions with 1 to 4 foreign words, those that are foreign, and of the
    foreign ones those that it takes."""
    rng = random.Random(2)
    right = dropped = foreign = 0
    for number in range(20):
        question, words = planted(rng, FOREIGN.split(), 1 + number % 4)
        gone = Counter(question.split()) - Counter(dropper(question, len(words)).split())
        right += sum((gone & Counter(words)).values())
        dropped += gone.total()
        foreign += len(words)
    return right / dropped, right / foreign


def test_perplexity_finds_planted_words(judge: Path) -> None:
    # Five words may go, though there are one to four: it has to stop by itself.
    precision, recall = precision_and_recall(lambda question, _: attacked(f"perplexity:{judge}@5", question))
    assert precision > 0.75
    assert recall > 0.9
    # Words at random do not pass, though they are told how many there are.
    seeds = iter(range(1000))
    precision, recall = precision_and_recall(lambda text, count: attacked(f"drop-{count}", text, seed=next(seeds)))
    assert precision < 0.5
    assert recall < 0.5


def test_perplexity_drops_no_more_than_it_may(judge: Path) -> None:
    released = "what color is doctor the circle in the image? magnet ocean"
    assert attacked(f"perplexity:{judge}@3", released) == "what color is the circle in the image?"
    one = attacked(f"perplexity:{judge}@1", released)
    assert len(one.split()) == len(released.split()) - 1
    clean = "is there a red circle in the image?"
    assert attacked(f"perplexity:{judge}@5", clean) == clean


def test_perplexity_is_greedy_and_stops() -> None:
    values = {"a b c": 9.0, "b c": 8.0, "a c": 5.0, "a b": None, "c": 6.0, "a": 5.0}

    def judged(texts: Sequence[str]) -> list[float | None]:
        return [values[text] for text in texts]

    assert text_models.drop_surprising("a b c", 5, judged) == "a c"  # equal is not lower
    assert text_models.drop_surprising("c", 5, judged) == "c"
    assert text_models.drop_surprising("a b", 5, judged) == "a b"  # no judgement


@pytest.mark.parametrize("family", ["perplexity", "paraphrase"])
def test_models_are_loaded_once_and_only_for_questions(
    family: str, judge: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = []
    load = text_models.load_language_model

    def counted(name: str, device: Any) -> Any:
        loads.append((name, device.type))
        model = load(name, device)
        monkeypatch.setattr(model, "reply", lambda message, most_tokens: "what is it?")
        return model

    monkeypatch.setattr(text_models, "load_language_model", counted)
    text_models.language_model.cache_clear()
    name = f"perplexity:{judge}@2" if family == "perplexity" else f"paraphrase:{judge}"
    rewrite = attack(name).text
    assert rewrite is not None
    assert rewrite(sample(None), torch.Generator()) is None
    assert loads == []
    for number in range(3):
        rewrite(sample(f"is there a red circle {number}"), torch.Generator())
    attacked(name, "is it red")
    assert loads == [(str(judge), "cpu")]
    with auto_means("meta"), contextlib.suppress(RuntimeError):
        attacked(name, "is it the other one")
    assert loads[1:] == [(str(judge), "meta")]
    text_models.language_model.cache_clear()


def test_model_that_is_not_there(tmp_path: Path) -> None:
    for name in (f"perplexity:{tmp_path}@2", f"paraphrase:{tmp_path}"):
        with pytest.raises(SurrogateError, match=re.escape(str(tmp_path))):
            attacked(name, "is it red")


TEMPLATE = (  # one that knows of thinking, as Qwen's does
    "{{ bos_token }}{% for message in messages %}USER: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% if enable_thinking is not false %} THINK{% endif %}{% endif %}"
)


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that learned by heart how to reword three questions."""
    replies = {
        "is it red teal lobe?": ' "does it look red?"\n',
        "what is shown river of?": " which shape is shown?",
        "is it blue?": " ",
    }
    examples = [(f"USER: {text_models._REQUEST}{question}\nASSISTANT:", reply) for question, reply in replies.items()]
    return train(tmp_path_factory.mktemp("speaker"), examples, 60, TEMPLATE)


def test_paraphrase_takes_the_models_words(speaker: Path) -> None:
    name = f"paraphrase:{speaker}"
    assert attacked(name, "is it red teal lobe?") == "does it look red?"
    assert attacked(name, "what is shown river of?", seed=1) == "which shape is shown?"
    assert attacked(name, "is it blue?") == "is it blue?"  # an empty reply


def test_paraphrase_is_cut_off_and_asks_for_the_question_alone(speaker: Path) -> None:
    model = text_models.language_model(str(speaker), torch.device("cpu"))
    replies = []

    class Recorder:
        def reply(self, message: str, most_tokens: int) -> str:
            replies.append((message, most_tokens))
            return "“fine”"

    assert text_models.paraphrase("is it red?", Recorder()) == "fine"  # type: ignore[arg-type]  # it replies, and no more is asked
    ((message, most),) = replies
    assert message.endswith("\n\nis it red?")
    assert most == 32 + 4 * 3
    assert len(model._tokenizer.encode(model.reply("is it", most_tokens=3))) <= 3


def test_paraphrase_needs_a_chat_template(judge: Path) -> None:
    with pytest.raises(SurrogateError, match="has no chat template; give a model tuned to follow instructions"):
        attacked(f"paraphrase:{judge}", "is it red")
