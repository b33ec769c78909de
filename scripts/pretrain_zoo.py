"""Pretrain the zoo: `python scripts/pretrain_zoo.py llava-tiny`, half an hour on two cores; uses a GPU if there is one.

What there is to train stands in `zoo_models.py`; its smaller models take half an hour on one core. Writes a plain
Hugging Face folder to `src/mmguard/zoo/weights/NAME`. Inputs carry up to eight random words and pixel noise of up to
8/255, so that neither hurts a later fine-tuning much by itself (docs/benchmarks.md measures what remains of that).
`--continue` goes on from the weights that are there; that is how noise of full strength came to smolvlm-tiny and
llava-tiny: then `--continue --steps 900 --lr 1e-3`.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoProcessor
from transformers.utils import logging as hf_logging

from mmguard.zoo import drawings
from zoo_models import MODELS

WEIGHTS = Path(__file__).parents[1] / "src" / "mmguard" / "zoo" / "weights"
TURNS = 4
RECOMMENDED = {"lora": {"lr": 3e-3, "epochs": 6}, "full": {"lr": 5e-4, "epochs": 6}}


def draw(rng: random.Random) -> tuple[torch.Tensor, list[drawings.Question]]:
    """One picture, uint8 `(3, H, W)`, with pixel noise most of the time, and up to `TURNS` questions.

    A third of the pictures gets even noise, a third noise of full strength at most values, as protected ones have.
    """
    while True:
        domain = rng.choices(list(drawings.DOMAINS), weights=(8, 3, 2, 2, 2, 1))[0]
        size = rng.choice(((96, 96), (96, 96), (112, 112), (128, 128), (128, 96), (96, 128)))
        image, questions = drawings.DOMAINS[domain](rng, size)
        questions = drawings.pretraining_questions(questions)
        if questions:
            break
    pixels = np.asarray(image, dtype=np.int16)
    if (kind := rng.randrange(3)) > 0:
        amount, generator = rng.randint(1, 8), np.random.default_rng(rng.getrandbits(32))
        noise = generator.integers(-amount, amount + 1, pixels.shape)
        pixels = np.clip(pixels + (noise if kind == 1 else 8 * np.sign(noise)), 0, 255)
    rng.shuffle(questions)
    return torch.from_numpy(pixels.astype(np.uint8)).permute(2, 0, 1).contiguous(), questions[:TURNS]


def with_random_words(rng: random.Random, text: str) -> str:
    """The text with 0 to 8 random words, half of the time at its end and else anywhere."""
    words = text.split(" ")
    extra = [rng.choice(drawings.WORDS) for _ in range(rng.choice((0, 0, 0, 1, 2, 3, 4, 5, 5, 6, 7, 8)))]
    if rng.random() < 0.5:
        return " ".join(words + extra)
    for word in extra:
        words.insert(rng.randint(0, len(words)), word)
    return " ".join(words)


def conversation(rng: random.Random, questions: list[drawings.Question], noisy: bool) -> list[dict[str, Any]]:
    """A chat about one picture: several questions share the cost of the image tokens."""
    messages: list[dict[str, Any]] = []
    for i, q in enumerate(questions):
        text, answer = (with_random_words(rng, q.text) if noisy else q.text), q.answer
        if q.options:
            letters = "ABCDEFGH"[: len(q.options)]
            text += "".join(f"\n{a}. {o}" for a, o in zip(letters, q.options, strict=True))
            text += "\nAnswer with the option's letter."
            answer = letters[q.options.index(q.answer)]
        image = [{"type": "image"}] if i == 0 else []
        messages.append({"role": "user", "content": [*image, {"type": "text", "text": text}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return messages


def collate(processor: Any, images: list[torch.Tensor], chats: list[list[dict[str, Any]]]) -> dict[str, torch.Tensor]:
    """Model inputs with labels on the answers and the end of each assistant turn."""
    texts = [processor.apply_chat_template(chat, tokenize=False) for chat in chats]
    batch = dict(
        processor(text=texts, images=[[i] for i in images], padding=True, padding_side="right", return_tensors="pt")
    )
    opening, end = assistant_turn(processor)
    labels = torch.full_like(batch["input_ids"], -100)
    for row, ids in enumerate(batch["input_ids"].tolist()):
        inside = False
        for k, token in enumerate(ids):
            if token == opening[0]:
                inside, skip = ids[k : k + len(opening)] == opening, k + len(opening) - 1
            elif inside and k > skip:
                labels[row, k] = token
                inside = token != end
    return batch | {"labels": labels}


def assistant_turn(processor: Any) -> tuple[list[int], int]:
    """The tokens that open a turn of the assistant, and the one that ends a turn."""
    chat = [{"role": "user", "content": "?"}]
    asked, opened = (processor.apply_chat_template(chat, add_generation_prompt=prompt) for prompt in (False, True))
    opening = opened.removeprefix(asked)
    return processor.tokenizer(opening, add_special_tokens=False)["input_ids"], processor.tokenizer.eos_token_id


def training_batches(rng: random.Random, processor: Any, size: int) -> Iterator[dict[str, torch.Tensor]]:
    """Endless batches of fresh chats, sorted by length within eight batches so that little is padding."""
    while True:
        pool = [
            (image, conversation(rng, questions, noisy=True))
            for image, questions in (draw(rng) for _ in range(8 * size))
        ]
        pool.sort(key=lambda pair: sum(len(str(message["content"])) for message in pair[1]))
        chunks = [pool[i : i + size] for i in range(0, len(pool), size)]
        rng.shuffle(chunks)
        for chunk in chunks:
            yield collate(processor, [image for image, _ in chunk], [chat for _, chat in chunk])


def answer_logits(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits `(N, V)` and labels `(N,)` of the labelled tokens; logits of the others are never computed."""
    labels = batch["labels"][:, 1:]
    hidden = model.model(**{k: v for k, v in batch.items() if k != "labels"}).last_hidden_state[:, :-1]
    return model.lm_head(hidden[labels != -100]), labels[labels != -100]


def answer_loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Cross entropy on the labelled tokens."""
    return torch.nn.functional.cross_entropy(*answer_logits(model, batch))


@torch.no_grad()
def evaluate(model: Any, processor: Any, images: int = 240) -> dict[str, float]:
    """Teacher-forced accuracy a domain on fresh pictures: each token of an answer must be the most likely one."""
    rng = random.Random(10**6)
    result: dict[str, float] = {}
    model.eval()
    for name, domain in drawings.DOMAINS.items():
        right = total = 0
        for _ in range(images // 6 // 20):
            drawn = [domain(rng, (96, 96)) for _ in range(20)]
            pairs = [(i, q) for i, qs in drawn for q in drawings.pretraining_questions(qs)[:4]]
            pixels = [torch.from_numpy(np.asarray(i).copy()).permute(2, 0, 1) for i, _ in pairs]
            batch = collate(processor, pixels, [conversation(rng, [q], noisy=False) for _, q in pairs])
            batch = {k: v.to(model.device) for k, v in batch.items()}
            labels = batch.pop("labels")[:, 1:]
            hit = (model(**batch).logits[:, :-1].argmax(-1) == labels) | (labels == -100)
            right += int(hit.all(1).sum())
            total += len(pairs)
        result[name] = right / total
    model.train()
    return result


def optimizers(model: torch.nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings, convolutions, norms and biases that learn."""
    matrices, rest = [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        inner = parameter.ndim == 2 and "embed" not in name and "lm_head" not in name
        (matrices if inner else rest).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train(
    model: Any, batches: Iterator[dict[str, torch.Tensor]], steps: int, lr: float, checkpoint: Callable[[], None]
) -> None:
    """Train whatever of a model requires gradients; `checkpoint` is called every 300 steps and after the last."""
    model.train()
    optimisers = optimizers(model, lr)
    warmup, started, smooth = max(1, steps // 25), time.time(), 0.0
    for step in range(steps):
        scale = min(1.0, (step + 1) / warmup) * min(1.0, (steps - step) / (0.6 * steps))
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = lr * scale
        loss = answer_loss(model, {k: v.to(model.device) for k, v in next(batches).items()})
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        smooth = loss.item() if step == 0 else 0.98 * smooth + 0.02 * loss.item()
        if step % 50 == 0:
            print(f"step {step:5d} loss {smooth:.3f} {time.time() - started:6.0f} s", flush=True)
        if step % 300 == 299 or step == steps - 1:
            checkpoint()


def pretrain(name: str, steps: int, batch_size: int, lr: float, out: Path, go_on: bool) -> None:
    """Train one model, from random weights or from those that are there, and save it in float16."""
    hf_logging.set_verbosity_error()
    torch.manual_seed(0)
    rng = random.Random(1 if go_on else 0)
    model, processor = MODELS[name]()
    if go_on:
        load_weights(model, processor, out / name)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{name}: {model.num_parameters() / 1e6:.2f} M parameters, {len(processor.tokenizer)} tokens", flush=True)

    def checkpoint() -> None:
        accuracy = evaluate(model, processor)
        print("   ", {k: round(v, 3) for k, v in accuracy.items()}, flush=True)
        save(model, processor, name, accuracy, out / name)

    train(model, training_batches(rng, processor, batch_size), steps, lr, checkpoint)


def load_weights(model: torch.nn.Module, processor: Any, folder: Path) -> None:
    """Take the weights that are there."""
    if AutoProcessor.from_pretrained(folder).tokenizer.get_vocab() != processor.tokenizer.get_vocab():
        raise SystemExit(f"{folder}: was trained on other words than the drawings have now; train it anew")
    model.load_state_dict(type(model).from_pretrained(folder).state_dict())


def save(model: Any, processor: Any, name: str, accuracy: dict[str, float], folder: Path) -> None:
    """A model of the zoo, its card with what pretraining reached and what fine-tuning it is best done with."""
    write_folder(model, processor, name, folder, recommended=RECOMMENDED, pretraining_accuracy=accuracy)


def write_folder(model: Any, processor: Any, name: str, folder: Path, **card: Any) -> None:
    """A plain Hugging Face folder, in place of what is there: float16 safetensors, processor, and a card."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    # A half-precision copy: casting a state dict instead would part the tied embeddings and store them twice.
    copy.deepcopy(model).to(torch.float16).save_pretrained(folder)
    processor.save_pretrained(folder)
    card = {"name": name, "family": model.config.model_type, "parameters": model.num_parameters()} | card
    (folder / "mmguard.json").write_text(json.dumps(card, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="+", choices=MODELS)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--continue", dest="go_on", action="store_true", help="start from the weights that are there")
    arguments = parser.parse_args()
    for model_name in arguments.name:
        pretrain(model_name, arguments.steps, arguments.batch_size, arguments.lr, arguments.out, arguments.go_on)
