"""The texts of a release: its public dataset card, and the warning beside its private record.

The card says what the data is and how to load it. It says nothing of how or that the data was altered: that
would tell a thief what to undo.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import metadata_load
from yaml import YAMLError

from mmguard.data.formats.base import Format

WARNING_TEXT = """\
DO NOT PUBLISH THIS FOLDER.

It records how the released images and questions differ from the originals: which words were inserted, with
which settings, and the hashes of the original files. Whoever has it can undo much of the protection.
Keep it: `mmguard verify` reads it. Publish only the folder beside it.
"""

_LICENSE = "no-training"
"""What the card of a release calls its license, by which it is known."""

_CARD = """\
---
license: other
license_name: {license}
task_categories:
- {task}
size_categories:
- {size}
{configs}---

# Image-text dataset

{images} images, {samples} samples, with the fields {fields}.
{loading}

## Terms

This data is not licensed for training, fine-tuning or distilling machine-learning models.
"""

_CONFIGS = """\
configs:
- config_name: default
  data_files:
"""

_DATA_FILES = """\
  - split: "{split}"
    path: "{pattern}"
"""

_LOADING = """
```python
from datasets import load_dataset

dataset = load_dataset("path/to/this/folder"{split})
```
"""

_SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
)


def dataset_card(
    rows: Sequence[dict[str, Any]], images: int, samples: int, captions: bool, format_: Format, files: Sequence[Path]
) -> str:
    """The README of a release, with the YAML header that the Hugging Face hub reads.

    Args:
        rows: the released rows.
        images: number of released images.
        samples: number of samples in the rows.
        captions: whether the rows are captions instead of questions and answers.
        format_: of the release.
        files: the released data files.
    """
    patterns = _patterns(rows, format_, files)
    split = "train" if "train" in patterns else next(iter(patterns), None)
    return _CARD.format(
        license=_LICENSE,
        task="image-to-text" if captions else "visual-question-answering",
        size=next((name for bound, name in _SIZES if samples < bound), "n>10M"),
        configs="".join([_CONFIGS, *(_DATA_FILES.format(split=s, pattern=p) for s, p in patterns.items())])
        if patterns
        else "",
        loading=_LOADING.format(split=f', split="{split}"' if split else "") if format_.loads else "",
        images=images,
        samples=samples,
        fields=", ".join(f"`{field}`" for field in _fields(rows, format_, files)),
    )


def configurations(card: Path) -> list[str]:
    """The names of the configurations that a dataset's card lists in its YAML header; none if it cannot be read."""
    header = _header(card)
    listed = [header.get("configs"), header.get("dataset_info")]  # one `dataset_info` may stand without a list
    parts = [part for many in listed for part in (many if isinstance(many, list) else [many])]
    named = [part["config_name"] for part in parts if isinstance(part, dict) and "config_name" in part]
    return list(dict.fromkeys(map(str, named)))


def is_dataset_card(card: Path) -> bool:
    """Whether a README begins as `dataset_card` has it."""
    return bool(_header(card).get("license_name") == _LICENSE)


def _header(card: Path) -> dict[str, Any]:
    """The YAML that a card begins with; empty if it cannot be read."""
    try:
        return metadata_load(card) or {}
    except (OSError, ValueError, YAMLError):
        return {}


def _fields(rows: Sequence[dict[str, Any]], format_: Format, files: Sequence[Path]) -> dict[str, None]:
    """What a reader finds in every sample, in order."""
    found = map(format_.columns, files) if format_.columns else rows
    return dict.fromkeys(field for one in found for field in one)


def _patterns(rows: Sequence[dict[str, Any]], format_: Format, files: Sequence[Path]) -> dict[str, str]:
    """Which files `load_dataset` reads for each split; none where it does best by itself."""
    if format_.loads is None:
        return {}
    named = dict.fromkeys(format_.split(file) for file in files)
    if None not in named:
        return {split: f"**/{split}[-.]*" for split in named if split}
    splits = {row.get("split") for row in rows}
    only = splits.pop() if len(splits) == 1 else None
    if isinstance(only, str) and only.isidentifier():
        return {only: format_.loads}
    # Shards keep their names, by which it finds the splits of the originals.
    return {} if format_.contains else {"train": format_.loads}
