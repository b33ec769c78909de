"""The texts of a release: its public dataset card, and the warning beside its private record.

The card says what the data is and how to load it. It says nothing of how or that the data was altered: that
would tell a thief what to undo.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmguard.data.formats.base import Format

WARNING_TEXT = """\
DO NOT PUBLISH THIS FOLDER.

It records how the released images and questions differ from the originals: which words were inserted, with
which settings, and the hashes of the original files. Whoever has it can undo much of the protection.
Keep it: `mmguard verify` reads it. Publish only the folder beside it.
"""

_CARD = """\
---
license: other
license_name: no-training
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
  - split: {split}
    path: "{loads}"
"""

_LOADING = """
```python
from datasets import load_dataset

dataset = load_dataset("path/to/this/folder", split="{split}")
```
"""

_SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
)


def dataset_card(rows: Sequence[dict[str, Any]], images: int, samples: int, captions: bool, format_: Format) -> str:
    """The README of a release, with the YAML header that the Hugging Face hub reads.

    Args:
        rows: the released rows.
        images: number of released images.
        samples: number of samples in the rows.
        captions: whether the rows are captions instead of questions and answers.
        format_: of the release.
    """
    splits = {row.get("split") for row in rows}
    only = splits.pop() if len(splits) == 1 else None
    split = only if isinstance(only, str) and only.isidentifier() else "train"
    return _CARD.format(
        task="image-to-text" if captions else "visual-question-answering",
        size=next((name for bound, name in _SIZES if samples < bound), "n>10M"),
        configs=_CONFIGS.format(split=split, loads=format_.loads) if format_.loads else "",
        loading=_LOADING.format(split=split) if format_.loads else "",
        images=images,
        samples=samples,
        fields=", ".join(f"`{field}`" for field in dict.fromkeys(field for row in rows for field in row)),
    )
