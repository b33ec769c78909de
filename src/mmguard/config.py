"""Settings. A field's docstring is its help text on the command line; defaults follow the paper where it has one and
where what it has works with the zoo, too."""

from __future__ import annotations

import ast
import inspect
from dataclasses import dataclass, fields
from math import ceil, inf
from typing import Any, Literal, get_args

from mmguard.errors import ConfigError

Variant = Literal[
    "bph", "crs", "bph-max", "crs-max", "image", "text", "multimodal", "mislead", "random-noise", "random-words"
]
"""What is optimised. `bph` and `crs` are the paper's methods, `-max` their adversarial forms; `image`, `text` and
`multimodal` are its baselines without binding; `mislead` is ours, of pictures that look like another answer's to models
that were trained on the originals; `random-noise` and `random-words` are controls, not protections."""

Recipe = Literal[
    "lora", "lora-r8", "lora-r16", "lora-r64", "lora-language", "dora", "qlora", "projector", "projector+lora", "full"
]
"""How an attacker fine-tunes (`auditing/recipes.py`): adapters of a given rank, adapters on 4-bit weights, the
projector's weights with or without adapters in the language model, or all weights."""

ImageFormat = Literal["png", "keep", "webp", "jpeg"]
"""How released pictures are stored (`data/carrier.py`): `keep` is the original's own format where it is PNG, WebP or
JPEG, and PNG for others; WebP is always lossless."""

Place = Literal["end", "inside"]
"""Where a trigger stands: behind the question, as in the paper, or between two of its words, at random."""

Scope = Literal["sample", "answer"]
"""Whose a trigger is: one question's own, as in the paper, or that of all questions with the same answer."""

EngineName = Literal["local", "ray"]
"""Who does the batches of a protection (`protection/engine.py`)."""

Lpips = Literal["auto", "alex", "vgg", "off"]
"""Which network LPIPS compares features of; `auto` is the first of the two whose weights are on this machine."""

VARIANTS: tuple[str, ...] = get_args(Variant)
RECIPES: tuple[str, ...] = get_args(Recipe)
IMAGE_FORMATS: tuple[str, ...] = get_args(ImageFormat)
PLACES: tuple[str, ...] = get_args(Place)
SCOPES: tuple[str, ...] = get_args(Scope)
ENGINES: tuple[str, ...] = get_args(EngineName)
LPIPS: tuple[str, ...] = get_args(Lpips)


_INNER_STEPS, _INNER_PASSES = 60, 3
"""As many steps as worked (docs/results/inner-steps.md), but of a small dataset no more than an attacker makes."""
_KNOWING_STEPS, _KNOWING_PASSES = 400, 6
"""The same for surrogates that are to know the clean data: what they do not see in it, nobody can mislead them about
(docs/research-log.md)."""


def field_help(config: type) -> dict[str, str]:
    """The docstring under each field of a settings class, by field name."""
    (definition,) = ast.parse(inspect.getsource(config)).body
    assert isinstance(definition, ast.ClassDef)
    help_: dict[str, str] = {}
    for statement, following in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            assert isinstance(following, ast.Expr)
            assert isinstance(following.value, ast.Constant)
            help_[statement.target.id] = " ".join(str(following.value.value).split())
    return help_


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _require_pixels(max_pixels: int) -> None:
    _require(
        max_pixels == 0 or max_pixels >= 1024,
        f"max-pixels {max_pixels}: give 1024 or more (589824 is the default), or 0 for no limit",
    )


def _require_whole_numbers(settings: Any) -> None:
    for field in fields(settings):
        value = getattr(settings, field.name)
        if field.type in ("int", "int | None"):  # annotations are kept as text
            missing = value is None and field.type != "int"
            _require(missing or type(value) is int, f"{field.name.replace('_', '-')} {value!r}: give a whole number")


@dataclass(frozen=True)
class ProtectConfig:
    """Settings of `mmguard protect` (Algorithm 1; method.md, section 3)."""

    variant: Variant = "bph"
    """What to optimise: a method, a baseline or a control."""
    eps: int = 8
    """Budget of the image perturbation: the largest change of any colour value, of 255 (ε_x, Eq. 13)."""
    trigger_words: int = 5
    """Budget of the text trigger: the number of words inserted into each question (ε_t, Eq. 16)."""
    trigger_place: Place = "end"
    """Where the trigger stands: `end`, behind the question, where it is easily cut off again, or `inside`, between
    two of its words, at random."""
    trigger_scope: Scope = "sample"
    """Whose a trigger is: `sample`, each question's own, or `answer`, the same for all questions with one answer: a
    stronger shortcut, but one that a thief finds who counts which words go with which answer."""
    fluency: str | None = None
    """Language model (hub id, folder or GGUF file) that keeps triggers fluent: only words are inserted that it finds
    likely to follow what stands before them. If not given, any words are."""
    fluency_top_k: int = 64
    """How many words count as likely to follow, for `fluency`: the fewer, the more fluent the text."""
    rounds: int = 3
    """Outer rounds (R)."""
    inner_steps: int | None = None
    """Supervised steps that adapt each surrogate in every round (Q); if not given, 60, or as many as see each sample
    three times where these are fewer (`mislead`: 400, or six times). The paper takes 1, which did little here
    (docs/results/inner-steps.md)."""
    pgd_steps: int = 5
    """Gradient steps on the image in every round, each of 1/255."""
    top_c: int = 16
    """Candidate words a slot that the gradient proposes and the exact loss then judges (HotFlip's top-c)."""
    lambda_train: float = 1.0
    """Weight of the training loss (λ_train, Eq. 30)."""
    lambda_bind: float = 2.0
    """Weight of the binding loss (λ_bind, Eq. 30)."""
    bind_layers: int = 2
    """How many of the first decoder layers the binding loss reads (K); layers without attention do not count."""
    tau: float = 0.1
    """Share of the image tokens that count as perturbed (τ_δ, Eq. 23)."""
    inner_batch_size: int = 8
    """Samples in one inner step."""
    inner_lr: float | None = None
    """Learning rate of the inner adaptation; if not given, 1e-4, or what a zoo model recommends."""
    inner_rank: int = 8
    """LoRA rank of the inner adaptation, the same for all surrogates; the paper takes 8 for its large one and 16 for
    the other."""
    batch_size: int = 16
    """Images optimised together. Does not change the result beyond floating-point noise."""
    max_pixels: int = 768 * 768
    """Pictures with more pixels are shrunk to so many before a surrogate sees them, as trainers commonly do; released
    pictures keep their size. 0 shows surrogates all of them in full."""
    weights: tuple[float, ...] | None = None
    """Weights of the surrogates in the ensemble (ω, Eq. 31); uniform if not given."""
    format: ImageFormat = "png"
    """Format of the released pictures: png, webp (both lossless), jpeg, or keep, which is the original's own, for JPEG
    with its own quality. In JPEG, what is optimised is what survives the encoder."""
    declare_no_training: bool = False
    """Write into the pictures' metadata that training on them is prohibited, as IPTC (PLUS data mining) and the TDM
    Reservation Protocol have it."""
    seed: int = 0
    """Seed of every random choice."""

    def __post_init__(self) -> None:
        # Before the others, to say more: a fraction such as 8/255 would be a budget of nothing.
        _require(
            type(self.eps) is int and 0 <= self.eps <= 127,
            f"eps {self.eps}: give a whole number from 0 to 127: it counts in 1/255 (8 is the default)",
        )
        _require_whole_numbers(self)
        _require(self.format in IMAGE_FORMATS, f"format {self.format!r}: choose one of {', '.join(IMAGE_FORMATS)}")
        _require(self.variant in VARIANTS, f"variant {self.variant!r}: choose one of {', '.join(VARIANTS)}")
        _require(self.trigger_words >= 0, f"trigger-words {self.trigger_words}: give 0 or more")
        _require(
            self.trigger_place in PLACES, f"trigger-place {self.trigger_place!r}: choose one of {', '.join(PLACES)}"
        )
        _require(
            self.trigger_scope in SCOPES, f"trigger-scope {self.trigger_scope!r}: choose one of {', '.join(SCOPES)}"
        )
        _require(
            self.fluency is None or (self.optimised and self.inserts_triggers),
            f"fluency {self.fluency}: variant {self.variant} with {self.trigger_words} trigger words searches for no "
            "words: leave it out, or choose another variant",
        )
        _require(
            self.fluency is None or self.trigger_scope == "sample",
            f"fluency {self.fluency}: trigger-scope {self.trigger_scope} gives questions the words that were found for "
            "others, where nobody asks the language model: leave one of the two out",
        )
        _require(self.fluency_top_k >= 1, f"fluency-top-k {self.fluency_top_k}: give 1 or more")
        _require(self.rounds >= 1, f"rounds {self.rounds}: give 1 or more")
        _require(self.inner_steps is None or self.inner_steps >= 0, f"inner-steps {self.inner_steps}: give 0 or more")
        _require(self.pgd_steps >= 0, f"pgd-steps {self.pgd_steps}: give 0 or more")
        _require(self.top_c >= 1, f"top-c {self.top_c}: give 1 or more")
        _require(self.bind_layers >= 1, f"bind-layers {self.bind_layers}: give 1 or more")
        _require(0 < self.tau <= 1, f"tau {self.tau}: give a share above 0 and at most 1")
        _require(0 <= self.lambda_train < inf, f"lambda-train {self.lambda_train}: give 0 or more")
        _require(0 <= self.lambda_bind < inf, f"lambda-bind {self.lambda_bind}: give 0 or more")
        _require(self.batch_size >= 1, f"batch-size {self.batch_size}: give 1 or more")
        _require(self.inner_batch_size >= 1, f"inner-batch-size {self.inner_batch_size}: give 1 or more")
        _require(self.inner_lr is None or 0 < self.inner_lr < inf, f"inner-lr {self.inner_lr}: give a number above 0")
        _require(self.inner_rank >= 1, f"inner-rank {self.inner_rank}: give 1 or more")
        _require_pixels(self.max_pixels)
        if self.weights is not None:
            _require(
                all(w >= 0 for w in self.weights) and abs(sum(self.weights) - 1) < 1e-6,
                f"weights {self.weights}: give non-negative weights that sum to 1, one a surrogate",
            )

    def inner_steps_for(self, samples: int) -> int:
        """Q for a dataset of so many samples."""
        if self.inner_steps is not None:
            return self.inner_steps
        steps, passes = (_KNOWING_STEPS, _KNOWING_PASSES) if self.misleads else (_INNER_STEPS, _INNER_PASSES)
        return min(steps, ceil(passes * samples / self.inner_batch_size))

    @property
    def perturbs_images(self) -> bool:
        """Whether this variant changes images."""
        return self.eps > 0 and self.variant not in ("text", "random-words")

    @property
    def inserts_triggers(self) -> bool:
        """Whether this variant inserts words into questions."""
        return self.trigger_words > 0 and self.variant not in ("image", "mislead", "random-noise")

    @property
    def optimised(self) -> bool:
        """Whether anything is optimised: false for the two controls."""
        return self.variant not in ("random-noise", "random-words")

    @property
    def needs_models(self) -> bool:
        """Whether surrogates are needed: to optimise, or for a vocabulary to draw words from."""
        return self.optimised or self.inserts_triggers

    @property
    def binding(self) -> Literal["bph", "crs"] | None:
        """The binding loss of this variant, if any."""
        if self.variant.startswith("bph"):
            return "bph"
        return "crs" if self.variant.startswith("crs") else None

    @property
    def misleads(self) -> bool:
        """Whether surrogates learn the clean data, and pictures are then made to look like those of another answer."""
        return self.variant == "mislead"

    @property
    def maximises(self) -> bool:
        """Whether the training loss is driven up instead of down (the -Max variants, Eq. 32)."""
        return self.variant.endswith("-max")


@dataclass(frozen=True)
class EngineConfig:
    """Who does the work of `mmguard protect`. The release does not depend on it, but for the last bit of sums in other
    numbers of threads."""

    engine: EngineName = "local"
    """Where batches are optimised: local, in this process, or ray, side by side on this machine or a cluster."""
    workers: int = 1
    """Ray workers; each holds the surrogates and does one batch at a time."""
    gpus_per_worker: float | None = None
    """GPUs of a Ray worker, or a share of one; if not given, 1 where models run on GPUs, else none."""
    address: str | None = None
    """Ray cluster to use, as HOST:PORT, or auto for the one of this machine; if not given, Ray is started here and
    ends with the run."""

    def __post_init__(self) -> None:
        _require_whole_numbers(self)
        _require(self.engine in ENGINES, f"engine {self.engine!r}: choose one of {', '.join(ENGINES)}")
        _require(self.workers >= 1, f"workers {self.workers}: give 1 or more")
        _require(
            self.gpus_per_worker is None or self.gpus_per_worker >= 0,
            f"gpus-per-worker {self.gpus_per_worker}: give 0 or more",
        )
        _require(
            self.gpus_per_worker is None or self.gpus_per_worker <= 1 or self.gpus_per_worker % 1 == 0,
            f"gpus-per-worker {self.gpus_per_worker}: give a share of one, or a whole number",
        )
        _require(
            self.engine == "ray" or (self.workers == 1 and self.gpus_per_worker is None and self.address is None),
            "workers, gpus-per-worker and address belong to engine ray: choose it too",
        )


@dataclass(frozen=True)
class AuditConfig:
    """Settings of `mmguard audit`: how attackers fine-tune, and how they are judged."""

    recipes: tuple[Recipe, ...] = ("lora",)
    """How attackers fine-tune."""
    attacks: tuple[str, ...] = ()
    """What a thief does to the data before training: attacks on images such as jpeg-50, on texts such as punct, both
    joined as in rcp+punct; or to the training itself, such as early-stop, alone or joined; or what it trains on, such
    as mix-20, or mix-50+loss-filter-20; or mild (the paper's nine), or suite (twelve of all kinds)."""
    seeds: int = 3
    """Fine-tuning runs of every attacker and arm; intervals come from seeds and test items together."""
    epochs: float | None = None
    """Passes over the training data; if not given, 3, or what a zoo model recommends."""
    batch_size: int = 8
    """Samples in one training step, computed in parts where memory is not enough."""
    lr: float | None = None
    """Learning rate; if not given, 2e-5 for full fine-tuning and 2e-4 for other recipes, or what a zoo model
    recommends."""
    lora_rank: int = 8
    """Rank of the attacker's LoRA, in recipes that name none."""
    warmup: float = 0.1
    """Share of the steps in which the learning rate rises; it then falls as a cosine."""
    max_new_tokens: int = 32
    """Longest greedy answer, where the test has none that is longer: answers of DocVQA are names, dates and addresses;
    captions, and replies in conversations, may have up to 256 tokens."""
    max_pixels: int = 768 * 768
    """Larger pictures are shrunk to so many pixels before an attacker sees them, as trainers commonly do (0 for no
    limit)."""
    eval_batch_size: int = 64
    """Test questions answered together; fewer where memory is not enough."""
    bootstrap: int = 2000
    """Resamples behind every interval."""
    seed: int = 0
    """Seed of the first run; run k uses seed + k."""

    def __post_init__(self) -> None:
        _require_whole_numbers(self)
        for recipe in self.recipes:
            _require(recipe in RECIPES, f"recipe {recipe!r}: choose from {', '.join(RECIPES)}")
        _require(len(self.recipes) > 0, "recipes: give at least one")
        _require(self.seeds >= 1, f"seeds {self.seeds}: give 1 or more (3 for any claim)")
        _require(self.epochs is None or 0 < self.epochs < inf, f"epochs {self.epochs}: give a number above 0")
        _require(self.batch_size >= 1, f"batch-size {self.batch_size}: give 1 or more")
        _require(self.lr is None or 0 < self.lr < inf, f"lr {self.lr}: give a number above 0")
        _require(self.lora_rank >= 1, f"lora-rank {self.lora_rank}: give 1 or more")
        _require(self.max_new_tokens >= 1, f"max-new-tokens {self.max_new_tokens}: give 1 or more")
        _require_pixels(self.max_pixels)
        _require(self.eval_batch_size >= 1, f"eval-batch-size {self.eval_batch_size}: give 1 or more")
        _require(self.seed >= 0, f"seed {self.seed}: give 0 or more")
        _require(self.bootstrap >= 100, f"bootstrap {self.bootstrap}: give 100 or more")
        _require(0 <= self.warmup < 1, f"warmup {self.warmup}: give a share from 0 to below 1")
