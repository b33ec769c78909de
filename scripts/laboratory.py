"""Build a larger model for experiments: `python scripts/laboratory.py --out smollava`. It is not shipped.

A LLaVA around a real pretrained language model, SmolLM2-135M unless another that speaks ChatML is named, from the hub
or from a GGUF file (which needs `pip install '.[gguf]'`). Tower and projector are new, and learn to see from the zoo's
drawings: in the first stage alone, in the second together with the language model. The result is a plain Hugging Face
folder for `mmguard protect --surrogate` and `mmguard audit --attacker`. The defaults want a GPU.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as hf_logging

from mmguard.lvlm.language import pretrained
from pretrain_zoo import answer_logits, train, training_batches, write_folder
from zoo_models import Parts, llava_of

VISION = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 8, "num_hidden_layers": 8}
"""The tower: 6.5 M parameters, 64 tokens an image."""


def language_model(name: str, gguf: Path | None) -> Parts:
    """A pretrained language model in float32, and its tokenizer.

    Args:
        name: a hub id or a folder; not read if there is a `gguf`.
        gguf: a GGUF file, of any quantisation that transformers reads.
    """
    source: dict[str, Any] = pretrained(str(gguf or name))
    language = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    if gguf:
        del language.config.quantization_config  # what was read are plain weights
    return language, AutoTokenizer.from_pretrained(**source)


def with_eyes(language: Any, tokenizer: Any) -> Parts:
    """A LLaVA whose decoder is the language model, with a tower and a projector that have learnt nothing."""
    missing = {"<|im_start|>", "<|im_end|>"} - tokenizer.get_vocab().keys()
    if missing:
        raise SystemExit(f"the language model has no {' and no '.join(sorted(missing))}: choose one that speaks ChatML")
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.add_tokens("<image>", special_tokens=True)
    language.resize_token_embeddings(max(len(tokenizer), language.config.vocab_size), mean_resizing=False)
    language.config.eos_token_id, language.config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    model, processor = llava_of(tokenizer, language.config, **VISION)
    model.model.language_model.load_state_dict(language.base_model.state_dict())
    model.lm_head.load_state_dict(language.get_output_embeddings().state_dict())
    return model, processor


@torch.no_grad()
def measure(model: Any, batches: Sequence[dict[str, torch.Tensor]]) -> dict[str, float]:
    """Mean loss of an answer's token, in nats, and the share of them that is the most likely one."""
    model.eval()
    answers = [answer_logits(model, {k: v.to(model.device) for k, v in batch.items()}) for batch in batches]
    logits, labels = (torch.cat(parts) for parts in zip(*answers, strict=True))
    model.train()
    right = (logits.argmax(-1) == labels).float().mean()
    return {"loss": torch.nn.functional.cross_entropy(logits, labels).item(), "accuracy": right.item()}


def build(arguments: argparse.Namespace) -> None:
    """Put the model together, train it in two stages, and save it after each and every 300 steps."""
    hf_logging.set_verbosity_error()
    torch.manual_seed(0)
    model, processor = with_eyes(*language_model(arguments.lm, arguments.gguf))
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    source = arguments.gguf.name if arguments.gguf else arguments.lm
    held_out = list(islice(training_batches(random.Random(10**6), processor, 8), 4))
    batches = training_batches(random.Random(0), processor, arguments.batch_size)
    print(f"{source}: {model.num_parameters() / 1e6:.1f} M parameters", flush=True)
    print(f"    held out: {measure(model, held_out)}", flush=True)

    def checkpoint() -> None:
        reached = measure(model, held_out)
        print(f"    held out: {reached}", flush=True)
        write_folder(model, processor, source, arguments.out, held_out=reached)

    decoder = [*model.model.language_model.parameters(), *model.lm_head.parameters()]
    for learns, steps, lr in (
        (False, arguments.steps, arguments.lr),
        (True, arguments.tune_steps, arguments.tune_lr),
    ):
        for parameter in decoder:
            parameter.requires_grad_(learns)
        train(model, batches, steps, lr, checkpoint)


def main(command: Sequence[str] | None = None) -> None:
    """Read the command line, and build."""
    parser = argparse.ArgumentParser(description=__doc__)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--lm", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="hub id or folder")
    source.add_argument("--gguf", type=Path, help="file to read instead")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; must be new")
    parser.add_argument("--steps", type=int, default=3000, help="with the language model frozen")
    parser.add_argument("--tune-steps", type=int, default=1000, help="with the language model learning too")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--tune-lr", type=float, default=1e-4)
    arguments = parser.parse_args(command)
    if arguments.out.exists():
        parser.error(f"{arguments.out} is there already: name a new folder, or remove it")
    if arguments.steps + arguments.tune_steps < 1:
        parser.error("no steps, no model: give --steps or --tune-steps")
    build(arguments)


if __name__ == "__main__":
    main()
