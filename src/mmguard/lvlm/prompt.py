"""From a question, an answer and the model's own chat template to token ids, labels and token roles.

Nothing here knows a template or a tokenizer. Where the user's text and the answer stand is found by rendering
the template a second time around markers; which tokens they became is read off the offsets of the very string
that the processor tokenised, image placeholders already expanded. Prefix language models (PaliGemma) have no
template: their processor takes the answer apart from the rest, as a suffix.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature

from mmguard.data.tasks import user_text
from mmguard.data.text import insert_trigger, trigger_start
from mmguard.errors import SampleError, SurrogateError
from mmguard.lvlm.pixels import blank, layout
from mmguard.types import TokenRoles

# Private use characters: no dataset and no template has them.
_QUESTION, _USER = "\ue000", "\ue001"
ANSWER = "\ue002"
"""Stands for an answer, to find its place in what a chat template makes of it."""

Span = tuple[int, int]
"""First character and the one after the last."""


@dataclass(frozen=True)
class Example:
    """One training example as the model is to see it."""

    question: str | None
    """The owner's question, without trigger; None for a caption."""
    answer: str
    """The target text."""
    options: tuple[str, ...] = ()
    trigger: tuple[str, ...] = ()
    """The inserted words; always empty for a caption, which has no text input to insert them into."""
    after: int | None = None
    """How many of the question's words stand before the trigger; None if all do."""


@dataclass(frozen=True)
class Encoded:
    """A batch of examples as token ids, padded on the right."""

    inputs: dict[str, Tensor]
    """The text side of the model's inputs: `input_ids (B, L)`, `attention_mask (B, L)` and what else the
    processor adds to each token. Pixels and all that goes with them (grids, sizes) come from
    `Surrogate.pixels`."""
    labels: Tensor
    """`(B, L)`: the token id in Ω_y, -100 elsewhere."""
    roles: TokenRoles

    @property
    def length(self) -> Tensor:
        """Tokens of each sample, padding left out, `(B,)`."""
        return self.inputs["attention_mask"].sum(1)

    def __getitem__(self, rows: slice) -> Encoded:
        """Some of the samples, at the same length."""
        roles = TokenRoles(**{name: value[rows] for name, value in vars(self.roles).items()})
        return Encoded({key: value[rows] for key, value in self.inputs.items()}, self.labels[rows], roles)

    def to(self, device: torch.device) -> Encoded:
        """The same batch on a device."""
        roles = TokenRoles(**{name: value.to(device) for name, value in vars(self.roles).items()})
        return Encoded({key: value.to(device) for key, value in self.inputs.items()}, self.labels.to(device), roles)


def asked(user: str) -> dict[str, Any]:
    """The user's turn of a chat: image and text."""
    return {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": user}]}


def conversation(processor: Any, user: str, answer: str) -> str:
    """One exchange by the model's own chat template, image placeholder not yet expanded.

    The assistant's turn is given in parts, as the user's, or as plain text to templates that would print a list as
    Python does (GLM-4.1V's).

    Args:
        processor: a Hugging Face multimodal processor.
        user: text of the user's turn.
        answer: the assistant's turn.

    Raises:
        ValueError: there is no chat template.
    """

    def rendered(content: Any) -> str:
        turns = [asked(user), {"role": "assistant", "content": content}]
        text: str = processor.apply_chat_template(turns, tokenize=False)
        return text

    def parts(text: str) -> list[dict[str, str]]:
        return [{"type": "text", "text": text}]

    return rendered(parts(answer) if ANSWER in rendered(parts(ANSWER)) else answer)


def takes_suffix(processor: Any) -> bool:
    """Whether a processor wants the answer apart, since the model attends both ways in all that stands before it."""
    return "suffix" in inspect.signature(processor.__call__).parameters


def control_tokens(tokenizer: Any, image_token: int) -> dict[int, str]:
    """The tokens that texts must not contain, by id: special ones, and the placeholder of the image.

    Not all that were added to the vocabulary are: Gemma adds line breaks and HTML tags, PaliGemma places in the image.
    """
    added = tokenizer.added_tokens_decoder.items()
    return {id_: str(token) for id_, token in added if token.special or id_ == image_token}


def encode(
    processor: Any, image_token: int, examples: Sequence[Example], sizes: Sequence[tuple[int, int]]
) -> tuple[Encoded, frozenset[str]]:
    """Token ids, labels and roles of a batch.

    Args:
        processor: a Hugging Face multimodal processor; it is not changed.
        image_token: id of the placeholder that image features replace.
        examples: the batch.
        sizes: `(H, W)` of the image of each example: how many image tokens it becomes depends on nothing
            else.

    Returns:
        The batch, and the names of the model's inputs that come from the image.

    Raises:
        SurrogateError: the chat template changes the text or moves it where it cannot be found.
        SampleError: a text contains one of the model's control tokens.
    """
    done = _process(processor, image_token, examples, sizes)
    return _encoded(processor, image_token, done), done.from_image


class Reworded:
    """One example under many triggers, as the trigger search needs it.

    The processor renders and tokenises the example once. A fast tokenizer splits the text at control tokens before
    anything else, so what stands before the last of them is the same tokens under every trigger, and only what stands
    behind it is tokenised again: the question and the answer, and not a thousand image placeholders. Whether this
    holds for a model is tried on the example itself; where it does not, every batch goes through the processor.

    Args:
        processor: a Hugging Face multimodal processor; it is not changed.
        image_token: id of the placeholder that image features replace.
        example: with its present trigger.
        size: `(H, W)` of its image.
    """

    def __init__(self, processor: Any, image_token: int, example: Example, size: tuple[int, int]) -> None:
        self._processor, self._image_token, self._size = processor, image_token, size
        self._example = example
        done = _process(processor, image_token, [example], [size])
        self.base = _encoded(processor, image_token, done)
        (self._text,), (self._spans,) = done.texts, done.spans
        chars = _characters(done.offsets[0], done.output["attention_mask"][0])
        self._control = done.control
        before = (chars[:, 1] > chars[:, 0]) & (chars[:, 1] <= self._spans.trigger[0])
        cuts = (torch.isin(done.output["input_ids"][0], self._control) & before).nonzero()
        self._head = int(cuts[-1]) + 1 if len(cuts) else 0
        self._cut = int(chars[self._head - 1, 1])
        self._short = self._head > 0 and self._splits()

    def encode(self, triggers: Sequence[Sequence[str]]) -> Encoded:
        """The example with each of the triggers: what `encode` gives for the batch, to the last number.

        Args:
            triggers: none of them empty.
        """
        if not self._short:
            examples = [replace(self._example, trigger=tuple(trigger)) for trigger in triggers]
            return encode(self._processor, self._image_token, examples, [self._size] * len(examples))[0]
        return self._encode_tails(triggers)

    def _splits(self) -> bool:
        base, head = self.base, self._head
        if any(value.ndim != 2 for value in base.inputs.values()) or base.roles.image[0, head:].any():
            return False
        if not all((v[0, head:] == v[0, -1]).all() for k, v in base.inputs.items() if k != "input_ids"):
            return False
        again = self._encode_tails([self._example.trigger])
        pairs = [(again.labels, base.labels), (again.inputs["input_ids"], base.inputs["input_ids"])]
        pairs += [(getattr(again.roles, name), role) for name, role in vars(base.roles).items()]
        return all(torch.equal(ours, theirs) for ours, theirs in pairs)

    def _encode_tails(self, triggers: Sequence[Sequence[str]]) -> Encoded:
        tokenizer = self._processor.tokenizer
        start, end = self._spans.trigger
        inserted = [insert_trigger("", words) for words in triggers]
        spans = [self._spans.grown(len(text) - (end - start)).moved(-self._cut) for text in inserted]
        tails = [self._text[self._cut : start] + text + self._text[end:] for text in inserted]
        output = tokenizer(tails, add_special_tokens=False, padding=True, padding_side="right", return_tensors="pt")
        ids, mask = output["input_ids"], output["attention_mask"]
        image = torch.zeros_like(ids, dtype=torch.bool)
        tail = _roles(self._control, ids, image, mask, [encoding.offsets for encoding in output.encodings], spans)

        def joined(base: Tensor, tail: Tensor) -> Tensor:
            return torch.cat([base[:1, : self._head].expand(len(triggers), -1), tail.to(base.dtype)], 1)

        roles = {name: joined(role, getattr(tail, name)) for name, role in vars(self.base.roles).items()}
        inputs = {}
        for name, value in self.base.inputs.items():
            # What a processor adds to tokens (their type) is one number all along the tail, and 0 in padding.
            inputs[name] = joined(value, ids if name == "input_ids" else mask * value[0, -1])
        return Encoded(inputs, inputs["input_ids"].masked_fill(~roles["answer"], -100), TokenRoles(**roles))


@dataclass(frozen=True)
class _Spans:
    """Where in a rendered conversation the texts stand."""

    user: Span
    trigger: Span
    """What was inserted, the space before it included; empty where nothing was."""
    answer: Span

    def grown(self, by: int) -> _Spans:
        """With so many characters more in the trigger."""
        (user, end), (start, stop), (first, last) = self.user, self.trigger, self.answer
        return _Spans((user, end + by), (start, stop + by), (first + by, last + by))

    def moved(self, by: int) -> _Spans:
        """In a text that begins so many characters earlier."""
        return _Spans(*((start + by, end + by) for start, end in (self.user, self.trigger, self.answer)))

    def shifted(self, text: str, expanded: str) -> _Spans:
        """Where they stand once the processor has expanded the image placeholder."""
        return _Spans(*(_shift(text, expanded, span) for span in (self.user, self.trigger, self.answer)))


@dataclass(frozen=True)
class _Processed:
    """What the processor made of a batch, and what it told its tokenizer."""

    output: Any
    texts: list[str]
    """What was tokenised, image placeholders expanded."""
    offsets: list[list[Span]]
    """The characters of `texts` that each token covers."""
    spans: list[_Spans]
    """In `texts`."""
    from_image: frozenset[str]
    control: Tensor
    """Ids of the control tokens."""


def _process(
    processor: Any, image_token: int, examples: Sequence[Example], sizes: Sequence[tuple[int, int]]
) -> _Processed:
    # Once for all rows: tokenizers build the list anew whenever they are asked, and some have thousands to list.
    control = control_tokens(processor.tokenizer, image_token)
    drafts = _drafts(processor, control.values(), examples)
    spy = copy.copy(processor)
    spy.tokenizer, spy.image_processor = (
        _Tokenizer(processor.tokenizer),
        _Layout(processor.image_processor, sizes),
    )
    bos = processor.tokenizer.bos_token
    texts = {"text": [draft.text for draft in drafts]}
    if takes_suffix(processor):
        texts = {
            "text": [draft.text[: draft.spans.user[1]] for draft in drafts],
            "suffix": [draft.text[slice(*draft.spans.answer)] for draft in drafts],
        }
    output = spy(
        **texts,
        images=[[blank(size)] for size in sizes],
        padding=True,
        padding_side="right",
        return_tensors="pt",
        # The rule of `apply_chat_template(tokenize=True)`, by which attackers' training tools tokenise.
        add_special_tokens=not (bos and drafts[0].text.startswith(bos)),
    )
    tokenised = spy.tokenizer.texts
    spans = [draft.spans.shifted(draft.text, text) for draft, text in zip(drafts, tokenised, strict=True)]
    from_image = frozenset(spy.image_processor.names & set(output))
    return _Processed(output, tokenised, spy.tokenizer.offsets, spans, from_image, torch.tensor(list(control)))


def _render(processor: Any, user: str, answer: str) -> str:
    """One turn of a chat as the processor is to see it, image placeholder not yet expanded."""
    if takes_suffix(processor):
        # What it adds by itself is written out here, so that question and answer are found in what it tokenises.
        return f"{processor.image_token}{user}\n{answer}{processor.tokenizer.eos_token}"
    return conversation(processor, user, answer)


def _encoded(processor: Any, image_token: int, done: _Processed) -> Encoded:
    ids: Tensor = done.output["input_ids"]
    image = ids == image_token
    if not image.any(1).all():
        raise SurrogateError(
            f"{type(processor).__name__} puts no image token (id {image_token}) into the text: "
            "its chat template or its image token is not that of the model"
        )
    roles = _roles(done.control, ids, image, done.output["attention_mask"], done.offsets, done.spans)
    apart = {*done.from_image, "labels"}
    inputs = {k: v for k, v in done.output.items() if k not in apart and isinstance(v, Tensor)}
    return Encoded(inputs, ids.masked_fill(~roles.answer, -100), roles)


def _roles(
    control: Tensor, ids: Tensor, image: Tensor, mask: Tensor, offsets: Sequence[list[Span]], spans: Sequence[_Spans]
) -> TokenRoles:
    """Which tokens the texts became, by the characters that each token covers."""
    trigger, text, answer = (torch.zeros_like(image) for _ in range(3))
    for row, (covered, span) in enumerate(zip(offsets, spans, strict=True)):
        chars = _characters(covered, mask[row])
        trigger[row] = _overlap(chars, span.trigger)
        text[row] = _overlap(chars, span.user) & ~trigger[row] & ~image[row]
        answer[row] = _overlap(chars, span.answer) | _end_of_turn(control, ids[row], chars, span.answer)
    return TokenRoles(image=image, text=text, trigger=trigger, answer=answer)


def _drafts(processor: Any, control: Collection[str], examples: Sequence[Example]) -> list[_Draft]:
    """The rendered conversations; examples that differ in their words alone, as in the trigger search, once for all."""
    frame = _render(processor, _USER, ANSWER)
    rendered: dict[tuple[Example, bool], _Draft] = {}
    drafts = []
    for example in examples:
        key = replace(example, trigger=()), bool(example.trigger)
        if key not in rendered:
            rendered[key] = _Draft.render(processor, frame, control, example)
        drafts.append(rendered[key].with_trigger(example.trigger))
    return drafts


@dataclass(frozen=True)
class _Draft:
    """A rendered conversation, image placeholders not yet expanded."""

    text: str
    spans: _Spans

    def with_trigger(self, words: Sequence[str]) -> _Draft:
        """The same conversation with other admissible words in the place of its trigger."""
        if not words:
            return self
        start, end = self.spans.trigger
        inserted = insert_trigger("", words)
        grown = self.spans.grown(len(inserted) - (end - start))
        return _Draft(self.text[:start] + inserted + self.text[end:], grown)

    @classmethod
    def render(cls, processor: Any, frame: str, control: Collection[str], example: Example) -> _Draft:
        user, words = _user_turn(example)
        for token in control:
            if token in user or token in example.answer:
                raise SampleError(
                    repr(example.question),
                    f"the text contains {token!r}, a control token of the model: take it out",
                )
        text = _render(processor, user, example.answer)
        head, _, rest = frame.partition(_USER)
        middle, _, tail = rest.partition(ANSWER)
        # Templates may strip texts; which way this one does is what makes the pieces add up to its output.
        for kept_user in _strippings(user):
            for kept_answer in _strippings(example.answer):
                if text == head + kept_user + middle + kept_answer + tail:
                    start = len(head)
                    end = start + len(kept_user)
                    shift = start - user.index(kept_user)
                    first = end + len(middle)
                    trigger = (words[0] + shift, words[1] + shift)
                    return cls(text, _Spans((start, end), trigger, (first, first + len(kept_answer))))
        raise SurrogateError(
            f"the chat template of {type(processor).__name__} changes the text it is given, so that question "
            "and answer cannot be found in its output: use a model whose template inserts texts as they are"
        )


def _user_turn(example: Example) -> tuple[str, Span]:
    """The user's text, and where in it the inserted text stands: the words, and the space before each of
    them."""
    if example.question is None:
        if example.trigger:
            raise SampleError("caption", "has no text input of the owner's to insert a trigger into: give no trigger")
        return user_text(None, example.options), (0, 0)
    released = insert_trigger(example.question, example.trigger, example.after)
    user = user_text(released, example.options)
    if not example.trigger:
        return user, (0, 0)
    start = user_text(_QUESTION, example.options).index(_QUESTION) + trigger_start(example.question, example.after)
    return user, (start, start + len(released) - len(example.question))


def _strippings(text: str) -> list[str]:
    return list(dict.fromkeys([text, text.strip(), text.rstrip(), text.lstrip()]))


def _shift(text: str, expanded: str, span: Span) -> Span:
    """Where `span` of the rendered text stands once the processor has expanded the image placeholder."""
    start, end = span
    from_end = len(text) - start
    if expanded.endswith(text[start:]):  # the image stands before it
        return len(expanded) - from_end, len(expanded) - (len(text) - end)
    if expanded.startswith(text[:end]):  # the image stands behind it
        return span
    raise SurrogateError("the processor changes the text around the image: question and answer cannot be found in it")


def _characters(offsets: Sequence[Span], attention_mask: Tensor) -> Tensor:
    """First and last character (plus one) of every token, `(L, 2)`; (-1, -1) for padding and added control
    tokens."""
    chars = torch.from_numpy(np.array(offsets))
    # Byte-level tokenizers may report a lone space as empty, at the place behind it.
    empty = (chars[:, 0] == chars[:, 1]) & (chars[:, 0] > 0)
    chars[empty, 0] -= 1
    return chars.masked_fill(attention_mask[:, None] == 0, -1)


def _overlap(chars: Tensor, span: Span) -> Tensor:
    inside = (chars[:, 0] < span[1]) & (chars[:, 1] > span[0])
    return inside if span[0] < span[1] else torch.zeros_like(inside)


def _end_of_turn(control: Tensor, ids: Tensor, chars: Tensor, answer: Span) -> Tensor:
    """The control token that begins where the answer ends, if there is one."""
    return torch.isin(ids, control) & (chars[:, 0] == answer[1]) & (chars[:, 1] > answer[1])


class _Tokenizer:
    """The processor's tokenizer, with a note of what it was handed and which characters each token covers."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.texts: list[str] = []
        self.offsets: list[list[Span]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, text: Any, **kwargs: Any) -> Any:
        output = self._tokenizer(text, **kwargs)
        self.texts = [text] if isinstance(text, str) else list(text)
        self.offsets = [encoding.offsets for encoding in output.encodings]
        for row, suffix in enumerate(kwargs.get("text_pair") or ()):
            behind = [len(self.texts[row]) * (part == 1) for part in output.encodings[row].sequence_ids]
            self.offsets[row] = [(a + by, b + by) for (a, b), by in zip(self.offsets[row], behind, strict=True)]
            self.texts[row] += suffix
        return output


class _Layout:
    """The processor's image processor, which reads sizes only: text needs no pixels."""

    def __init__(self, image_processor: Any, sizes: Sequence[tuple[int, int]]) -> None:
        self._image_processor = image_processor
        self._sizes = sizes
        self.names: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._image_processor, name)

    def __call__(self, images: Any, **kwargs: Any) -> BatchFeature:
        output = layout(self._image_processor, self._sizes, **kwargs)
        self.names = set(output)
        return BatchFeature(output)
