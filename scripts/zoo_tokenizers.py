"""The zoo's two tokenizers and its chat templates.

Most models share a byte-level BPE and speak ChatML, as Qwen's relatives do. Gemma 3 and Mllama have a Unigram
tokenizer whose pieces carry their space in front, and their own turns: so ensembles across tokenizers are real.
"""

from __future__ import annotations

import functools
import random
import string
from collections import Counter
from collections.abc import Sequence
from math import log

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mmguard.zoo import drawings

_CONTENT = (
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}IMAGE{% elif c['type'] == 'text' %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n" + _CONTENT + "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Templates say IMAGE where the model's own placeholder belongs."""
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>"
    "{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n" + _CONTENT + "<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    + _CONTENT
    + "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def byte_level(special: Sequence[str] = (), **named: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 2,560 tokens, and the special tokens of one family.

    Args:
        special: tokens that the family's processor looks up by their text.
        **named: tokens that it asks the tokenizer for by name, such as `image_token`.
    """
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        _corpus(),
        trainers.BpeTrainer(
            vocab_size=2560,
            special_tokens=["<|pad|>", "<|im_start|>", "<|im_end|>", "<image>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return _wrapped(raw, special, named, pad_token="<|pad|>", eos_token="<|im_end|>", bos_token=None)


def unigram(special: Sequence[str], *, bos: str, eos: str, **named: str) -> PreTrainedTokenizerFast:
    """A Unigram tokenizer of about 1,900 pieces, of SentencePiece's kind: spaces belong to the word behind them, digits
    stand alone, and what no piece covers falls back to bytes.

    The pieces are single characters and the corpus's commonest words; their scores are log frequencies. The library's
    own trainer would find another vocabulary on every run.

    Args:
        special: tokens that the family's processor looks up by their text.
        bos: opens a text.
        eos: ends a turn.
        **named: tokens that the processor asks the tokenizer for by name.
    """
    splits = [
        pre_tokenizers.Split(Regex(r"\n|\d|\p{P}"), "isolated"),
        pre_tokenizers.Metaspace(prepend_scheme="never"),
    ]
    words = Counter(dict.fromkeys(("user", "assistant", "model"), 1000))  # a template's roles are one piece each
    pre_tokenizer = pre_tokenizers.Sequence(splits)
    for text, count in Counter(_corpus()).items():
        for word, _ in pre_tokenizer.pre_tokenize_str(text):
            words[word] += count
    common = sorted(words, key=lambda word: (-words[word], word))[:1600]
    characters = sorted({*string.printable, "▁"} - {*string.whitespace, *common})
    total = words.total()
    pieces = [("<unk>", 0.0), *((f"<0x{byte:02X}>", -1e3) for byte in range(256))]
    pieces += [(character, log(1 / total)) for character in characters]
    pieces += [(word, log(words[word] / total)) for word in common]
    raw = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    raw.pre_tokenizer = pre_tokenizer
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return _wrapped(raw, special, named, unk_token="<unk>", pad_token="<pad>", eos_token=eos, bos_token=bos)


def _wrapped(
    raw: Tokenizer, special: Sequence[str], named: dict[str, str], **usual: str | None
) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, model_max_length=2048, **usual, **named)
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken(t, special=True) for t in special]})
    return tokenizer


@functools.cache
def _corpus() -> tuple[str, ...]:
    """The questions, answers and words that the zoo reads, common answers often."""
    rng = random.Random(0)
    corpus: list[str] = []
    for word in drawings.WORDS:
        corpus += [f"x {word}"] * 60 + [word] * 6
    for answer in {
        *drawings.COLORS,
        *drawings.SHAPES,
        *drawings.TEXTURES,
        *drawings.NUMBERS,
        "yes",
        "no",
        "true",
        "false",
    }:
        corpus += [answer] * 200
    for domain in drawings.DOMAINS.values():
        for _ in range(300):
            for q in domain(rng, (96, 96))[1]:
                corpus += [
                    q.text,
                    q.answer,
                    f"\nA. {q.answer}\nB. {q.answer}\nAnswer with the option's letter.",
                ]
    return tuple(corpus)
