"""Laboratory tasks: what the zoo's drawings show and its pretraining never said, as datasets of any size.

No download, and small enough for experiments on a CPU. A zoo model fails at them until it is fine-tuned.
"""

from __future__ import annotations

import functools
import json
import random
import re
from importlib.resources import files
from pathlib import Path

from mmguard.data.cache import cached
from mmguard.errors import DataError
from mmguard.runtime.provenance import digest, versions
from mmguard.zoo.drawings import TASKS, task_sample

_SIZE = (96, 96)
_DEFAULT = 500


def is_name(source: str) -> bool:
    """Whether a dataset source names a laboratory task."""
    return source.split(":")[0] == "drawings"


def drawings_folder(name: str, part: str) -> Path:
    """Draws `drawings:DOMAIN[:train|test][:N]` once, into an image folder in the datasets cache.

    Every picture comes from a random generator of its own, seeded by domain, split and number: the pictures of
    train and test differ, and the first N are the same whatever N is. Other code of the drawings, or other
    versions of what they are drawn with, have another folder.

    Args:
        name: the name; N is 500 if not given.
        part: the split to draw if the name has none.

    Returns:
        The folder, with `metadata.jsonl` (`file_name`, `question`, `answer`, `split`, and `options` where they are).

    Raises:
        DataError: the name has other parts, there is no such domain, or the folder cannot be written.
    """
    domain, split, count = _parse(name, part)
    return cached(f"drawings/{_version()}/{domain}-{split}-{count}", lambda folder: _draw(folder, domain, split, count))


def _parse(name: str, part: str) -> tuple[str, str, int]:
    found = re.fullmatch(rf"drawings:({'|'.join(TASKS)})(?::(train|test))?(?::0*([1-9][0-9]*))?", name)
    if found is None:
        raise DataError(
            f"{name}: write drawings:DOMAIN, where DOMAIN is one of {', '.join(TASKS)}; then :train or :test for the "
            "split, and :N for the first N images"
        )
    domain, split, count = found.groups()
    return domain, split or part, int(count or _DEFAULT)


@functools.cache
def _version() -> str:
    """Hash of all that decides what the pictures look like."""
    code = [*files("mmguard.zoo.drawings").iterdir(), files("mmguard.zoo") / "words.txt", Path(__file__)]
    texts = {file.name: file.read_text(encoding="utf-8") for file in code if file.is_file()}
    return digest([texts, versions("numpy", "pillow")])[:16]


def _draw(folder: Path, domain: str, split: str, count: int) -> None:
    (folder / "images").mkdir()
    with (folder / "metadata.jsonl").open("w", encoding="utf-8") as metadata:
        for number in range(count):
            image, question = task_sample(random.Random(f"{domain}:{split}:{number}"), domain, _SIZE)
            file_name = f"images/{number:04d}.png"
            image.save(folder / file_name)
            options = {"options": question.options} if question.options else {}
            row = {"file_name": file_name, "question": question.text, **options, "answer": question.answer}
            metadata.write(json.dumps({**row, "split": split}) + "\n")
