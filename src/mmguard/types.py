"""The nouns of the program: plain frozen data, no behaviour, no heavy imports at run time."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from torch import Tensor

Metric = Literal["exact", "letter", "vqa", "anls", "rouge"]
"""How replies are scored (`data/metrics.py`): normalised exact match, option letter, VQA accuracy over the answers of
several people, ANLS, or ROUGE-L."""

Status = Literal["left out", "unchanged", "protected"]
"""What became of a file, that first which wants attention."""
STATUSES: tuple[Status, ...] = get_args(Status)


@dataclass(frozen=True)
class Sample:
    """One image-text training example `(x, t, y)` of the owner's dataset.

    Several samples may share one image; they then share one perturbation δ but each has its own trigger.
    """

    id: str
    """Unique in its dataset: the row's own `id`, else its number. `@NUMBER` is added where an earlier row has the same,
    and `#turn` for later turns of a chat."""
    row: int
    """Number of the dataset row it came from, from 0."""
    image: Path
    """Absolute path of the image file."""
    question: str | None
    """The text input that the owner controls, without options; None for captions, whose text is the target."""
    answer: str
    """The target, never changed by a protection; empty for a picture without text until a model has captioned it."""
    answers: tuple[str, ...] = ()
    """Every accepted answer, aliases included; never empty (at least `answer`). For `vqa`, one a person."""
    options: tuple[str, ...] = ()
    """The choices of a multiple-choice question, in order A, B, C…; empty for a free answer."""
    turn: int = 0
    """Number of the question-answer pair within its row, from 0: a chat row holds several."""
    split: str | None = None
    metric: Metric = "exact"
    """How a reply is scored; where there are `options`, it is by the option that it names."""


@dataclass(frozen=True)
class Dataset:
    """The owner's dataset as read from disk: rows verbatim, and the samples found in them."""

    root: Path
    """Its folder."""
    rows: list[dict[str, Any]]
    """Every row that was read (after `split` and `limit`), with all its fields as they stand in the file."""
    samples: list[Sample]
    """In row order. `samples[i].row` indexes `rows`."""
    rejected: list[Rejection] = field(default_factory=list)
    """Rows or images that cannot be used, with the reason; their samples are not in `samples`."""
    image_field: str = "file_name"
    """Field of a row that names its image: `file_name` (image folder), `image` (LLaVA/ShareGPT)…"""
    places: list[str] = field(default_factory=list)
    """Where each of `rows` stands: file and line, or whatever counts rows in this format."""
    format: str = "image-folder"
    """Name of its format in `data/formats`."""
    files: tuple[Path, ...] = ()
    """The files that it is made of, images that lie in files of their own aside."""
    unpacked: Path | None = None
    """Where the images were copied to if they lie inside `files`."""
    named: bool = True
    """Whether images have names; if not, their paths are mere numbers."""

    @property
    def image_root(self) -> Path:
        """The folder that image paths in rows are relative to."""
        return self.unpacked or self.root

    def by_image(self) -> dict[Path, list[Sample]]:
        """The samples of each image, in order of first appearance."""
        groups: dict[Path, list[Sample]] = {}
        for sample in self.samples:
            groups.setdefault(sample.image, []).append(sample)
        return groups


@dataclass(frozen=True)
class Rejection:
    """A row or image that was left out, and why."""

    where: str
    reason: str


@dataclass(frozen=True)
class TokenRoles:
    """Which positions of the sequence that the language model sees play which part (method.md, section 2).

    Shape: every field is a bool tensor `(B, L)`.
    """

    image: Tensor
    """Ω_x: image tokens."""
    text: Tensor
    """Ω_t: the owner's text input (question and options), trigger excluded."""
    trigger: Tensor
    """Ω_γ: tokens that overlap the inserted trigger words."""
    answer: Tensor
    """Ω_y: answer tokens, the end-of-turn token included: the positions with a training label."""
