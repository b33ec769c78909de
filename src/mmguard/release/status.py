"""What became of every file of a dataset: the table that the owner looks at when a run is over."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from io import StringIO
from typing import Any

from mmguard.release import layout
from mmguard.types import Dataset, Sample, Status


@dataclass(frozen=True)
class FileStatus:
    """One image of the dataset, or one row that never came to an image."""

    file: str
    """Path within the dataset; for a row, where it stands."""
    status: Status
    """`unchanged` is released as it was: neither pixels nor questions differ."""
    samples: int
    """Samples of this image that are released, or that were left out."""
    change: int = 0
    """The largest change of any colour value, of 255."""
    words: int = 0
    """Words inserted into its questions, all together."""
    reason: str = ""
    """Why it was left out."""


def statuses(dataset: Dataset, record: Mapping[str, Any]) -> list[FileStatus]:
    """Every image in the dataset's order, then rows that could not be used.

    Args:
        dataset: what was protected.
        record: of its release: `images`, `samples` and `left_out` as `ReleaseWriter` has them.
    """
    changes = {entry["original"]: entry["eps"] for entry in record["images"]}
    words = {entry["id"]: len(entry["words"]) for entry in record["samples"]}
    reasons = {name: entry["reason"] for entry in record["left_out"] for name in entry["samples"]}
    known: set[str] = set()
    found = []
    for image, samples in dataset.by_image().items():
        file = layout.relative(image, dataset).as_posix()
        known |= {file, str(image)}
        found += _of_image(file, changes.get(file), samples, words, reasons)
    rows = [entry for entry in record["left_out"] if not entry["samples"] and entry["where"] not in known]
    return found + [FileStatus(entry["where"], "left out", 0, reason=entry["reason"]) for entry in rows]


def _of_image(
    file: str, change: int | None, samples: Sequence[Sample], words: Mapping[str, int], reasons: Mapping[str, str]
) -> list[FileStatus]:
    """One entry, or two if some of the image's samples were released and some left out."""
    released = [words[sample.id] for sample in samples if sample.id in words]
    lost = [reasons[sample.id] for sample in samples if sample.id in reasons]
    found = []
    if change is not None:
        status: Status = "protected" if change or any(released) else "unchanged"
        found.append(FileStatus(file, status, len(released), change, sum(released)))
    if lost:
        found.append(FileStatus(file, "left out", len(lost), reason=lost[0]))
    return found


def to_csv(files: Sequence[FileStatus]) -> str:
    """The table with a head, one file a line. Characters that have no UTF-8 form are escaped."""
    text = StringIO()
    table = csv.DictWriter(text, [field.name for field in fields(FileStatus)], lineterminator="\n")
    table.writeheader()
    table.writerows(asdict(file) for file in files)
    return text.getvalue().encode("utf-8", errors="backslashreplace").decode()
