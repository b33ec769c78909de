"""Any dataset that the program understands, read as rows and samples."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Literal

from mmguard.data import benchmarks, drawings, easyvqa, formats, hub, remote
from mmguard.data.rows import image_value, require_no_picture, samples_of
from mmguard.data.sources import Source
from mmguard.errors import DataError
from mmguard.types import Dataset, Rejection, Sample

_FORMATS = (
    f"give {formats.DESCRIBED}, the URL of one of these, a hub id owner/name[:config], a benchmark "
    f"({', '.join(benchmarks.NAMES)}), easy-vqa, or drawings:DOMAIN"
)

_MAX_NAME = 240
"""Bytes of a file's name that leave room for another suffix, or a number, in its release."""

_LONGEST = 600
"""Characters of a reason why a row was left out."""


def read_dataset(
    source: str | Path,
    split: str | None = None,
    limit: int | None = None,
    *,
    part: Literal["train", "test"] = "train",
) -> Dataset:
    """Reads a dataset.

    `source` is one of
      - a folder or data file of any format in `data/formats`, which is recognised by its names. Whatever the
        format, a row has `question` and `answer` (optional `answers`, `options`, `metric`, `split`, `id`), or
        `caption`/`captions`/`text`, or a conversation (`data/chat.py`). Of these every human/gpt pair becomes a
        sample, `ID#k` for turn k > 0. In training each turn is a sample of its own: it does not see those before it;
      - the URL of such a folder or file in any file system that fsspec knows (`s3://`, `gs://`, `hf://`, `file://`…),
        copied once into the datasets cache;
      - `owner/name` on the Hugging Face hub, or one of its configurations as `owner/name:config`, copied once into
        the datasets cache;
      - a benchmark by its short name or hub id, with its official metric (`data/benchmarks.py`). `train` and `test`
        name what one trains and tests on: for DocVQA, whose test answers are hidden, `test` is its validation split;
      - `easy-vqa[:train|test][:what|yes-no][:N]`;
      - `drawings:DOMAIN[:train|test][:N]`: a laboratory task for zoo models, drawn by our own code.

    Images are not decoded here: only that the file exists is checked. A row that cannot be used is listed in
    `rejected` and left out of `rows` and `samples`; the others go on. A row without `id` gets its number in
    `rows`, and one whose `id` an earlier row has is `ID@NUMBER`: LLaVA's `id` is that of the image.

    Args:
        source: see above.
        split: keep only rows whose `split` is this (on the hub: that split).
        limit: keep only the first so many images, each with all its rows.
        part: what to read of a benchmark or a laboratory task if there is no `split`; other datasets are then read
            whole.

    Raises:
        DataError: there is no such dataset, its file cannot be read, it has no such split, or no row can be used.
    """
    return _assemble(*_limited(source, split, limit, part))


def read_beginning(
    source: str | Path, images: int, split: str | None = None, limit: int | None = None
) -> tuple[Dataset, Dataset]:
    """The first images of a dataset, and all of it: what `read_dataset` gives for both, from files that are read once.

    Args:
        source: as for `read_dataset`, as the others; which errors are raised is said there, too.
        images: number of the first ones.
        split: the split to read.
        limit: the number of images that are all of it.
    """
    found, most = _limited(source, split, limit, "train")
    return _assemble(found, images if most is None else min(images, most)), _assemble(found, most)


def _limited(source: str | Path, split: str | None, limit: int | None, part: str) -> tuple[Source, int | None]:
    """The rows of a split before any is judged, and how many images are wanted, if not all."""
    if limit is not None and limit < 1:
        raise DataError(f"limit {limit}: give 1 or more images")
    found, limit_of_name = open_source(source, split, part)
    limits = [number for number in (limit, limit_of_name) if number is not None]
    return _of_split(found, split), min(limits, default=None)


def open_source(source: str | Path, split: str | None = None, part: str = "train") -> tuple[Source, int | None]:
    """The rows of a dataset before any is judged, and the number of images if its name gives one.

    Args:
        source: as for `read_dataset`, as the others.
        split: the split to open, where splits lie apart; else all rows come.
        part: see there.

    Raises:
        DataError: there is no such dataset, or its file cannot be read.
    """
    path, name = Path(source), str(source)
    exists = os.path.exists(path)  # unlike Path.exists, of any name
    if isinstance(source, str) and easyvqa.is_name(name) and not exists:
        return easyvqa.read_easy_vqa(name)
    if isinstance(source, str) and drawings.is_name(name) and not exists:
        return formats.open_path(drawings.drawings_folder(name, split or part)), None
    if isinstance(source, str) and (benchmark := benchmarks.find(name)) and not exists:
        return _benchmark(benchmark, split or part), None
    if isinstance(source, str) and remote.is_url(name):
        return formats.open_path(remote.local_copy(name)), None
    if exists:
        return formats.open_path(path), None
    if isinstance(source, str) and hub.is_hub_id(name):
        hub_id, _, config = name.partition(":")
        folders = [formats.open_path(folder) for folder in hub.hub_folder(hub_id, split, config or None)]
        return _joined(name, folders), None
    raise DataError(f"{name}: no such file or folder: {_FORMATS}")


def _benchmark(benchmark: benchmarks.Benchmark, split: str) -> Source:
    (folder,) = hub.hub_folder(benchmark.hub_id, benchmark.hub_split(split), benchmark.config)
    source = formats.open_path(folder)
    rows = [(where, benchmark.row(row, split)) for where, row in source.rows if isinstance(row, dict)]
    return replace(source, rows=[(where, row) for where, row in rows if row])


def _joined(name: str, parts: list[Source]) -> Source:
    """The splits of a hub dataset as one source, whose root is the folder above them."""
    if len(parts) == 1:
        return parts[0]
    rows = []
    for part in parts:
        for where, row in part.rows:
            if isinstance(row, dict) and isinstance(row.get("file_name"), str):  # of several pictures there is none
                row = {**row, "file_name": f"{part.root.name}/{row['file_name']}"}
            rows.append((f"{part.root.name}/{where}", row))
    return Source(name, parts[0].root.parent, "file_name", rows, files=tuple(f for part in parts for f in part.files))


def _of_split(source: Source, split: str | None) -> Source:
    if not source.rows:
        raise DataError(f"{source.name}: is empty: {_FORMATS}")
    if split is None:
        return source
    found = (row.get("split") for _, row in source.rows if isinstance(row, dict))
    splits = {name for name in found if isinstance(name, str)}
    if split not in splits:
        there = ", ".join(sorted(splits))
        cure = f"choose one of {there}" if there else "its rows have no `split` field; leave the split out"
        raise DataError(f"{source.name}: no row is of split {split!r}: {cure}")
    # A line that is no row may belong to any split: it stays, to be reported.
    kept = [(w, row) for w, row in source.rows if isinstance(row, Rejection) or row.get("split") == split]
    return replace(source, rows=kept)


def _assemble(source: Source, limit: int | None) -> Dataset:
    """Judges the rows one by one. Once the limit is reached, rows of further images are not looked at."""
    dataset = Dataset(
        source.root,
        [],
        [],
        image_field=source.image_field,
        format=source.format,
        files=source.files,
        unpacked=source.unpacked,
        named=source.named,
    )
    if file := next((file for file in source.files if len(os.fsencode(file.name)) > _MAX_NAME), None):
        raise DataError(f"{file}: its name is longer than {_MAX_NAME} bytes: rename it")
    chosen: set[Path] = set()
    ids: set[str] = set()
    exists: dict[str, Path | None] = {}
    for where, row in source.rows:
        full = limit is not None and len(chosen) >= limit
        try:
            if isinstance(row, Rejection):
                raise ValueError(row.reason)
            image = _locate(source, image_value(row, source.image_field), exists)
            if full and image not in chosen:
                continue
            samples = _distinct(samples_of(row, len(dataset.rows), image, source.wordless), ids)
            require_no_picture(row)
        except ValueError as error:
            if not full:
                dataset.rejected.append(Rejection(where, _shortened(str(error))))
            continue
        chosen.add(image)
        ids.update(sample.id for sample in samples)
        dataset.rows.append(row)
        dataset.places.append(where)
        dataset.samples.extend(samples)
    if not dataset.samples:
        reasons = "; ".join(f"{rejection.where}: {rejection.reason}" for rejection in dataset.rejected[:3])
        raise DataError(f"{source.name}: none of its {len(source.rows)} rows can be used: {reasons}")
    return dataset


def _shortened(reason: str) -> str:
    """A reason without the middle of what it cites, if that is long: what is wrong and the cure stand at its ends."""
    return reason if len(reason) <= _LONGEST else f"{reason[: _LONGEST // 2]} … {reason[-_LONGEST // 2 :]}"


def _locate(source: Source, value: str, known: dict[str, Path | None]) -> Path:
    if value not in known:
        known[value] = next((path for path in source.candidates(value) if os.path.isfile(path)), None)
    found = known[value]
    if found is None:
        raise ValueError(f"image {value} is not in {source.root}: correct the path, or remove the row")
    if len(os.fsencode(found.name)) > _MAX_NAME:
        raise ValueError(f"the name of image {value} is longer than {_MAX_NAME} bytes: rename it")
    return found


def _distinct(samples: list[Sample], taken: set[str]) -> list[Sample]:
    """The samples of a row, with its number behind their ids if any of these is taken."""
    own = name = samples[0].id
    ids = [sample.id for sample in samples]
    while not taken.isdisjoint(ids):
        name += f"@{samples[0].row}"
        ids = [name + sample.id.removeprefix(own) for sample in samples]
    return [replace(sample, id=new) for sample, new in zip(samples, ids, strict=True)] if name != own else samples
