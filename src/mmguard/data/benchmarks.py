"""The paper's six benchmarks as they lie on the Hugging Face hub: columns, splits and official scoring.

Train and test are the official splits where their images differ and their answers are public. Where they are not (one
split only, or the same images on both sides), a fifth of the *images* is the test: a protection changes images, so
that an image on both sides would test nothing.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from mmguard.data.metrics import NUMBER_WORDS
from mmguard.errors import DataError

Row = dict[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """One benchmark: where it lies, and what its rows mean."""

    name: str
    """Its short name."""
    hub_id: str
    train: str
    """The hub's split to train on; `train+test` takes both."""
    test: str
    """The hub's split to test on. If it is the same as `train`, images are dealt out by their hash."""
    understood: Callable[[Row], Row]
    """The fields that our format adds to a row of the hub, or replaces: `question`, `answer`, `metric`…"""
    config: str | None = None
    """Its configuration on the hub."""

    def hub_split(self, split: str) -> str:
        """The hub's split behind `train` and `test`; any other name is the hub's own."""
        return {"train": self.train, "test": self.test}.get(split, split)

    def row(self, row: Row, split: str) -> Row | None:
        """A row of the hub in our format; None if it is not of the split, or has no image (half of ScienceQA).

        Args:
            row: of `hub_split(split)`, with its image's path `…/HASH.SUFFIX` in `file_name`.
            split: `train`, `test` or a split of the hub; it becomes the row's `split`.

        Raises:
            DataError: the row lacks a column of the benchmark.
        """
        if "file_name" not in row:
            return None
        dealt_out = self.train == self.test and split in ("train", "test")
        if dealt_out and _is_test(row["file_name"]) != (split == "test"):
            return None
        try:
            return {**row, **self.understood(row), "split": split}
        except KeyError as error:
            raise DataError(
                f"{self.hub_id}: has no column {error} (any more): save it as a folder with metadata.jsonl"
            ) from error


def find(name: str) -> Benchmark | None:
    """The benchmark of a short name or hub id; letter case does not matter."""
    wanted = name.lower()
    return next((one for one in BENCHMARKS if wanted in (one.name, one.hub_id.lower())), None)


def _is_test(file_name: str) -> bool:
    return int(PurePosixPath(file_name).stem, 16) % 5 == 0


def _realworldqa(row: Row) -> Row:
    """Options stand in the question ("A. Left") where the answer is a letter; other answers are words and numbers."""
    answer = row["answer"].strip()
    if len(answer) == 1 and answer in string.ascii_uppercase:
        return {"answer": answer, "metric": "letter"}
    digits = NUMBER_WORDS.get(answer.lower(), answer)
    words = [word for word, number in NUMBER_WORDS.items() if number == digits]
    return {"answer": answer, "answers": [answer, digits, *words], "metric": "exact"}


def _mmstar(row: Row) -> Row:
    """Options stand in the question: "Options: A: …, B: …"."""
    return {"metric": "letter"}


def _scienceqa(row: Row) -> Row:
    """The answer is the number of a choice; the hint is the passage that a question is about."""
    question = f"{row['hint']}\n{row['question']}" if row["hint"] else row["question"]
    return {"question": question, "options": row["choices"], "answer": string.ascii_uppercase[row["answer"]]}


def _vqa_rad(row: Row) -> Row:
    """Closed (yes/no) and open questions alike are scored by exact match."""
    return {"metric": "exact"}


def _textvqa(row: Row) -> Row:
    """Ten people answered; the target is what most of them said. In the hub's test split they said nothing."""
    given = [answer for answer in row["answers"] or () if answer.strip()]
    return {"answer": Counter(given).most_common(1)[0][0] if given else None, "answers": given, "metric": "vqa"}


def _docvqa(row: Row) -> Row:
    """Every answer in the list is right; the first is the target, as the benchmark advises."""
    return {"metric": "anls"}


_DOCVQA = Benchmark("docvqa", "HuggingFaceM4/DocumentVQA", "train", "validation", _docvqa)

BENCHMARKS = (
    Benchmark("realworldqa", "xai-org/RealworldQA", "test", "test", _realworldqa),
    Benchmark("mmstar", "Lin-Chen/MMStar", "val", "val", _mmstar),
    Benchmark("scienceqa", "derek-thomas/ScienceQA", "train", "test", _scienceqa),
    # Every official test image is also a training image.
    Benchmark("vqa-rad", "flaviagiammarino/vqa-rad", "train+test", "train+test", _vqa_rad),
    # The answers of the test splits of TextVQA and DocVQA are not public.
    Benchmark("textvqa", "lmms-lab/textvqa", "train", "validation", _textvqa),
    _DOCVQA,
    # The same without the training split.
    replace(_DOCVQA, hub_id="lmms-lab/DocVQA", config="DocVQA", train="validation"),
)
"""All that are known; of two with the same short name, the name means the first."""

NAMES = tuple(dict.fromkeys(one.name for one in BENCHMARKS))
