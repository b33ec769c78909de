"""The thief: fine-tunes a vision-language model on stolen data, with the tools that people really use (TRL
and PEFT)."""

from __future__ import annotations

import functools
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import torch
from datasets import Dataset as Table
from PIL import Image
from transformers import BitsAndBytesConfig, PrinterCallback, TrainerCallback
from transformers.utils import logging as hf_logging
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling, SFTTrainer

from mmguard import zoo
from mmguard.auditing import recipes
from mmguard.auditing.arms import ImageStore, Row
from mmguard.auditing.attacks.base import Training
from mmguard.auditing.training import (
    Adversary,
    KeepBest,
    StagedUnfreezing,
    adversarial_features,
    adversarial_pixels,
    projectors,
)
from mmguard.config import AuditConfig, Recipe
from mmguard.errors import SurrogateError
from mmguard.lvlm.loading import load_processor, load_surrogate
from mmguard.lvlm.prompt import ANSWER, asked, conversation
from mmguard.lvlm.surrogate import admissible_words
from mmguard.lvlm.weights import recommended
from mmguard.runtime.memory import is_out_of_memory, release_memory

_EPOCHS = 3.0
_PLAIN = (64, 64)
"""Height and width of an image that there is no reason to refuse."""


@dataclass(frozen=True)
class Attacker:
    """A model, as it is at the moment, with the processor that prepares its input."""

    name: str
    model: Any
    processor: Any

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return self.model.device


def default_attackers() -> list[str]:
    """The names of the attackers that need no download, and of which it is known what random changes cost them."""
    return [f"zoo:{name}" for name in zoo.MEASURED]


def load_attacker(
    name: str,
    device: str = "auto",
    dtype: torch.dtype | None = None,
    quantization_config: BitsAndBytesConfig | None = None,
) -> Attacker:
    """Loads an untouched attacker.

    Args:
        name: a hub id, a local folder, or `zoo:NAME`.
        device: `auto`, `cpu`, `cuda`, …
        dtype: of the weights; if not given, float32 on the CPU and bfloat16 on a GPU.
        quantization_config: hold the weights of linear layers in 4 or 8 bits.

    Raises:
        SurrogateError: the model cannot be loaded.
    """
    with _quiet():
        loaded = load_surrogate(name, device=device, dtype=dtype, quantization_config=quantization_config)
        # A thief has no use for our attention tap, and should not depend on it.
        loaded.model.set_attn_implementation("sdpa")
    if quantization_config is not None:
        # On a CPU bitsandbytes answers by a kernel that takes rows of 64, 128… numbers only; without it, by any.
        for module in loaded.model.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
    return Attacker(name, loaded.model, loaded.processor)


@functools.cache  # walks over all tokens
def vocabulary(name: str) -> tuple[str, ...]:
    """Words that are one token for a model (Eq. 16).

    Args:
        name: as for `load_attacker`; no weights are loaded.

    Raises:
        SurrogateError: the model's processor cannot be loaded.
    """
    with _quiet():
        tokenizer = load_processor(name).tokenizer
    return tuple(admissible_words(tokenizer, len(tokenizer)).values())


def refusals(name: str, sizes: Collection[tuple[int, int]]) -> dict[tuple[int, int], str]:
    """Which images a model does not take for their shape.

    Args:
        name: as for `load_attacker`; no weights are loaded.
        sizes: (H, W) in pixels.

    Returns:
        Why, by size. None of a model that cannot be loaded or takes no image at all: its runs will say so.
    """

    def take(size: tuple[int, int]) -> None:
        blank = Image.new("RGB", (size[1], size[0]))
        processor(images=[[blank]], text=[prompt], return_tensors="pt", add_special_tokens=False)

    found: dict[tuple[int, int], str] = {}
    with _quiet():
        # Each processor has exceptions of its own for what it cannot do.
        try:
            processor = load_processor(name)
            prompt = render(processor, "x", "x")[0]
            take(_PLAIN)
        except Exception:
            return {}
        for size in sizes:
            try:
                take(size)
            except Exception as error:
                found[size] = f"{name} takes no image of {size[1]} x {size[0]} pixels ({error})"
    return found


def schedule(name: str, recipe: Recipe, config: AuditConfig) -> tuple[float, float]:
    """Learning rate and epochs: the config's, else what the model's `mmguard.json` recommends, else our own.

    A recommendation for `lora` is taken for all recipes without one but `full`.

    Raises:
        ConfigError: the model's `mmguard.json` cannot be read.
    """
    plan, advised = recipes.PLANS[recipe], recommended(name)
    advice = advised.get(recipe, {} if plan.everything else advised.get("lora", {}))
    return (
        config.lr if config.lr is not None else advice.get("lr", plan.lr),
        config.epochs if config.epochs is not None else advice.get("epochs", _EPOCHS),
    )


def fine_tune(
    model_name: str,
    rows: Sequence[Row],
    recipe: Recipe,
    config: AuditConfig,
    seed: int,
    *,
    device: str = "auto",
    store: ImageStore | None = None,
    on_step: Callable[[int, int, float], None] | None = None,
    training: Training = Training(),
    validate: Callable[[Attacker], float] | None = None,
) -> Attacker:
    """Fine-tunes a fresh copy of a model by supervised learning of the targets (Eq. 12).

    Where memory is not enough for a step, training begins anew with steps computed in halves, quarters…

    Args:
        model_name: as for `load_attacker`.
        rows: training data.
        recipe: which weights learn (`recipes.PLANS`).
        config: LoRA rank, learning rate, epochs, batch size, warm-up; the rate then falls as a cosine.
        seed: of the adapter, of dropout and of the order of the rows. On a CPU the result depends on nothing
            else.
        device: as for `load_attacker`.
        store: images kept in memory, shared between runs.
        on_step: called after every training step with its number from 1, the number of all, and its loss.
        training: what the attacker does differently, to be rid of a protection.
        validate: how good an attacker is, the higher the better; for `training.keep_best` only.

    Returns:
        The fine-tuned model, ready to answer; LoRA weights are merged into it where it holds 32-bit weights.

    Raises:
        ConfigError: the recipe needs a package or a device that is not there, or has too few weights to stage.
        SurrogateError: the model cannot be loaded or has no chat template, or it is not known where its projector is.
        ValueError: there are no rows, or the best weights are to be kept and nothing validates them.
    """
    if not rows:
        raise ValueError("no rows to train on")
    if training.keep_best and validate is None:
        raise ValueError("keep_best: give validate, too")
    recipes.require(recipe)
    store = store if store is not None else ImageStore()
    lr, epochs = schedule(model_name, recipe, config)
    # Steps of full fine-tuning are smaller than what 16-bit weights can tell apart.
    dtype = torch.float32 if recipes.PLANS[recipe].everything else None

    def trained(at_once: int) -> Attacker:
        """The fine-tuned model, made with `at_once` samples in memory, a divisor of the batch size."""
        attacker = load_attacker(model_name, device, dtype, recipes.quantisation(recipe))
        model = attacker.model
        adapters = recipes.adapters(recipe, config, model, model_name)
        with _quiet(), tempfile.TemporaryDirectory(prefix="mmguard-") as scratch:
            trainer = _Trainer(
                model,
                _arguments(scratch, config, lr * training.lr, epochs * training.epochs, seed, at_once, attacker.device),
                data_collator=_collator(attacker.processor, bounds=training.pixels is not None),
                train_dataset=_table(_unread(rows), attacker.processor, store),
                processing_class=attacker.processor,
                peft_config=adapters,
                callbacks=[_OnStep(on_step)] if on_step else None,
            )
            # The mean over a whole step's tokens, also of models that say they cannot: TRL computes the loss itself.
            trainer.model_accepts_loss_kwargs |= at_once < config.batch_size
            trainer.remove_callback(PrinterCallback)  # it prints the losses to standard output
            _change_training(trainer, training, attacker, validate)
            with recipes.learning(recipe, model, model_name):
                trainer.train()
            made: Any = trainer.model
        if adapters and model.dtype == torch.float32 and not recipes.PLANS[recipe].four_bit:
            made = made.merge_and_unload()
        made.eval()
        return replace(attacker, model=made)

    at_once = config.batch_size
    while True:
        try:
            return trained(at_once)
        except (RuntimeError, MemoryError) as error:
            if at_once == 1 or not is_out_of_memory(error):
                raise
        at_once = at_once // 2 if at_once % 2 == 0 else 1
        release_memory()


def _unread(rows: Sequence[Row]) -> list[Row]:
    """Copies for one training, since rows count how often they were read; those that are there several times count
    together."""
    fresh = {id(row): replace(row) for row in rows}
    return [fresh[id(row)] for row in rows]


def _change_training(
    trainer: _Trainer, training: Training, attacker: Attacker, validate: Callable[[Attacker], float] | None
) -> None:
    """Has the trainer do what the attacker does differently."""
    model = attacker.model
    if training.staged:
        trainer.add_callback(StagedUnfreezing(model, attacker.name))
    if training.keep_best and validate is not None:
        half = model.dtype != torch.float32

        def look(now: Any) -> float:
            # What learns is 32-bit meanwhile, and does not take what 16-bit weights put out but under autocast.
            with torch.autocast(attacker.device.type, torch.bfloat16, enabled=half):
                return validate(replace(attacker, model=now))

        trainer.add_callback(KeepBest(look))
    if training.pixels is not None:
        trainer.adversary = adversarial_pixels(training.pixels)
    if training.features is not None:
        trainer.adversary = adversarial_features(training.features, projectors(model, attacker.name))


def render(processor: Any, text: str, target: str) -> tuple[str, str]:
    """The prompt and the completion of one exchange, by the model's own chat template.

    The completion is the answer with the token that ends the turn, and no more: some templates open it with an empty
    thought (which is the prompt's), some go on with a line break (which nobody needs to learn), others (LLaVA 1.5)
    never end the turn (and the model would never stop).

    Args:
        processor: of the model.
        text: the user's turn; the image comes before it.
        target: the assistant's turn.

    Raises:
        SurrogateError: the processor has no chat template that shows the answer.
    """
    try:
        prompt = processor.apply_chat_template([asked(text)], tokenize=False, add_generation_prompt=True)
        both = conversation(processor, text, ANSWER)
    except ValueError as error:
        raise SurrogateError(
            f"{type(processor).__name__}: no chat template ({error}); choose an instruct model"
        ) from error
    # As TRL does: some templates open the answer otherwise in a finished exchange than in one to be answered.
    prompt = "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt, both, strict=False)))
    before, shown, after = both[len(prompt) :].partition(ANSWER)
    if not shown:
        raise SurrogateError(f"{type(processor).__name__}: its chat template does not show the assistant's answer")
    # What a template opens every answer with, such as an empty thought, is no part of it: neither learned nor scored.
    opening = before.rstrip()
    said, rest = before.removeprefix(opening) + target.strip(), after.lstrip()
    ends = sorted(processor.tokenizer.all_special_tokens, key=len, reverse=True)
    end = next((token for token in ends if rest.startswith(token)), processor.tokenizer.eos_token or "")
    begin = _begin(processor.tokenizer)
    return begin * (not prompt.startswith(begin)) + prompt + opening, said + end


def examples(attacker: Attacker, rows: Sequence[Row], store: ImageStore) -> Iterator[dict[str, torch.Tensor]]:
    """What training gives to the model, labels included, one row at a time."""
    table, collate = _table(rows, attacker.processor, store), _collator(attacker.processor)
    for number in range(len(rows)):
        yield {
            key: value.to(attacker.device, attacker.model.dtype if value.is_floating_point() else None)
            for key, value in collate([table[number]]).items()
        }


def _begin(tokenizer: Any) -> str:
    """The token that this tokenizer puts before any text, or nothing.

    TRL switches that off, since most templates write the token themselves; LLaVA 1.5's does not.
    """
    ids = tokenizer("x")["input_ids"]
    return str(tokenizer.bos_token) if ids and ids[0] == tokenizer.bos_token_id else ""


class _Trainer(SFTTrainer):
    """TRL's trainer, without what an audit does not need."""

    adversary: Adversary | None = None
    """What makes every batch harder."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """TRL's, on what the adversary makes of the batch."""
        if self.adversary is None:
            return super().compute_loss(model, inputs, *args, **kwargs)
        with self.adversary(model, inputs) as harder:
            return super().compute_loss(model, harder, *args, **kwargs)

    def _send_telemetry(self) -> None:
        """Nothing leaves the machine."""

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: it walks over all parameters in every step."""
        return 0


class _Collator(DataCollatorForVisionLanguageModeling):
    """TRL's collator, for Mllama too: there a mask says which tokens see the image."""

    image_token: int | None = None
    """What stands for the image in `input_ids`."""
    bounds = False
    """Whether batches also have what the processor makes of a black and a white image, as `black` and `white`.

    Families lay pixels out and scale them in ways of their own, and no adversary needs to know them then.
    """

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(examples)
        if (mask := batch.get("cross_attention_mask")) is not None:
            # TRL puts prompts of all lengths to the left and completions behind them, and leaves the mask as it was.
            seeing = (batch["input_ids"] == self.image_token).cumsum(dim=1) > 0
            batch["cross_attention_mask"] = mask[:, -1:] * seeing[:, :, None, None]
        for name in ("black", "white") if self.bounds else ():
            plain = [
                one | {"images": [Image.new("RGB", image.size, name) for image in one["images"]]} for one in examples
            ]
            batch[name] = super().torch_call(plain)["pixel_values"]
        return batch


def _collator(processor: Any, bounds: bool = False) -> _Collator:
    pieces: Any = _Pieces(processor)
    collator = _Collator(processor=pieces, completion_only_loss=True)
    collator.image_token, collator.bounds = getattr(processor, "image_token_id", None), bounds
    return collator


class _OnStep(TrainerCallback):
    def __init__(self, on_step: Callable[[int, int, float], None]) -> None:
        self._on_step = on_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in logs:  # and not the summary at the end
            self._on_step(state.global_step, state.max_steps, logs["loss"])


def _table(rows: Sequence[Row], processor: Any, store: ImageStore) -> Table:
    """A table of row numbers that becomes prompts, completions and images only when read.

    TRL wants a `datasets.Dataset`; holding the images in it would encode each as PNG and decode it in every
    step.
    """
    exchanges = [render(processor, row.text, row.target) for row in rows]

    def read(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        numbers = batch["number"]
        return {
            "images": [[rows[n].load(store)] for n in numbers],
            "prompt": [exchanges[n][0] for n in numbers],
            "completion": [exchanges[n][1] for n in numbers],
        }

    return Table.from_dict({"number": list(range(len(rows)))}).with_transform(read)


def _arguments(
    folder: str, config: AuditConfig, lr: float, epochs: float, seed: int, at_once: int, device: torch.device
) -> SFTConfig:
    cpu = device.type == "cpu"
    arguments = SFTConfig(
        output_dir=folder,
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=config.batch_size // at_once,
        num_train_epochs=epochs,
        learning_rate=lr,
        lr_scheduler_type="cosine",
        warmup_steps=config.warmup,  # below 1 it is a share of all steps
        seed=seed,
        use_cpu=cpu,
        bf16=device.type == "cuda" and torch.cuda.is_bf16_supported(),
        gradient_checkpointing=not cpu,  # memory is what a GPU lacks, and time what a CPU lacks
        max_length=None,  # cutting a long prompt would cut image tokens
        remove_unused_columns=False,
        dataloader_pin_memory=not cpu,
        save_strategy="no",
        logging_steps=1,  # for `_OnStep`
        logging_nan_inf_filter=False,  # which would call a loss that is no number 0
        report_to="none",
        disable_tqdm=True,
    )
    if not cpu:
        arguments._n_gpu = 1  # with several GPUs in sight TRL refuses to start; the model lies on one
    return arguments


class _Pieces:
    """A processor that treats a completion as what it is, the rest of a text.

    Mllama's begins every text with the token that begins texts, completions too.
    """

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        if processor.tokenizer.pad_token is None:
            processor.tokenizer.pad_token = processor.tokenizer.eos_token

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> Any:
        if images is not None:
            return self._processor(images=images, text=text, **kwargs)
        output = self._processor(text=text, **kwargs)
        begin = self._processor.tokenizer.bos_token_id
        if begin is not None and (output["input_ids"][:, 0] == begin).all():
            output = {key: value[:, 1:] for key, value in output.items()}
        return output


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the progress bars and advice of the libraries: an audit makes dozens of runs."""
    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()
