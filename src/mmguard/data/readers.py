"""Any dataset that the program understands, read as rows and samples."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Literal

from mmguard.data import benchmarks, drawings, easyvqa, hub
from mmguard.data.rows import image_value, samples_of
from mmguard.data.sources import Source, read_json_lines, read_json_list
from mmguard.errors import DataError
from mmguard.types import Dataset, Rejection, Sample

_FORMATS = (
    "give a folder with metadata.jsonl, a LLaVA/ShareGPT JSON file (or a folder with one), "
    f"a hub id owner/name, a benchmark ({', '.join(benchmarks.NAMES)}), easy-vqa, or drawings:DOMAIN"
)


def read_dataset(
    source: str | Path,
    split: str | None = None,
    limit: int | None = None,
    *,
    part: Literal["train", "test"] = "train",
) -> Dataset:
    """Reads a dataset.

    `source` is one of
      - an image folder: `metadata.jsonl` with `file_name` and `question`, `answer` (optional `answers`,
        `options`, `metric`, `split`, `id`), or `caption`/`captions`, or `conversations`;
      - a LLaVA/ShareGPT JSON file (`image`, `conversations`), or a folder with exactly one; image paths are
        relative to the file's folder or to `images/` in it. Every human/gpt pair becomes a sample, `ID#k` for
        turn k > 0. In training each turn is a sample of its own: it does not see the turns before it;
      - `owner/name` on the Hugging Face hub, copied once into the datasets cache;
      - a benchmark by its short name or hub id, with its official metric (`data/benchmarks.py`). `train` and `test`
        name what one trains and tests on: for DocVQA, whose test answers are hidden, `test` is its validation split;
      - `easy-vqa[:train|test][:what|yes-no][:N]`;
      - `drawings:DOMAIN[:train|test][:N]`: a laboratory task for zoo models, drawn by our own code.

    Images are not decoded here: only that the file exists is checked. A row that cannot be used is listed in
    `rejected` and left out of `rows` and `samples`; the others go on. A row without `id` gets its number in
    `rows`.

    Args:
        source: see above.
        split: keep only rows whose `split` is this (on the hub: that split).
        limit: keep only the first so many images, each with all its rows.
        part: what to read of a benchmark or a laboratory task if there is no `split`; other datasets are then read
            whole.

    Raises:
        DataError: there is no such dataset, its file cannot be read, it has no such split, or no row can be
        used.
    """
    if limit is not None and limit < 1:
        raise DataError(f"limit {limit}: give 1 or more images")
    found, limit_of_name = _open(source, split, part)
    limits = [number for number in (limit, limit_of_name) if number is not None]
    return _assemble(_of_split(found, split), min(limits, default=None))


def _open(source: str | Path, split: str | None, part: str) -> tuple[Source, int | None]:
    path, name = Path(source), str(source)
    if isinstance(source, str) and easyvqa.is_name(name) and not path.exists():
        return easyvqa.read_easy_vqa(name)
    if isinstance(source, str) and drawings.is_name(name) and not path.exists():
        return _folder(drawings.drawings_folder(name, split or part).resolve()), None
    if isinstance(source, str) and (benchmark := benchmarks.find(name)) and not path.exists():
        return _benchmark(benchmark, split or part), None
    if path.is_dir():
        return _folder(path.resolve()), None
    if path.is_file():
        return _file(path.resolve()), None
    if isinstance(source, str) and hub.is_hub_id(name):
        folders = [_folder(folder.resolve()) for folder in hub.hub_folder(name, split)]
        return _joined(name, folders), None
    raise DataError(f"{name}: no such file or folder: {_FORMATS}")


def _benchmark(benchmark: benchmarks.Benchmark, split: str) -> Source:
    (folder,) = hub.hub_folder(benchmark.hub_id, benchmark.hub_split(split), benchmark.config)
    source = _folder(folder.resolve())
    rows = [(where, benchmark.row(row, split)) for where, row in source.rows if isinstance(row, dict)]
    return replace(source, rows=[(where, row) for where, row in rows if row])


def _folder(folder: Path) -> Source:
    metadata = folder / "metadata.jsonl"
    if metadata.is_file():
        return Source(str(metadata), folder, "file_name", read_json_lines(metadata))
    jsons = sorted(folder.glob("*.json"))
    if len(jsons) == 1:
        return _file(jsons[0])
    if jsons:
        names = ", ".join(path.name for path in jsons)
        raise DataError(f"{folder}: holds several JSON files ({names}): name the one that is meant")
    parts = [path.parent.name for path in sorted(folder.glob("*/metadata.jsonl"))]
    hint = f"name one of its folders {', '.join(parts)}" if parts else _FORMATS
    raise DataError(f"{folder}: has neither metadata.jsonl nor a JSON file: {hint}")


def _file(path: Path) -> Source:
    if path.name == "metadata.jsonl":
        return _folder(path.parent)
    if path.suffix.lower() not in (".json", ".jsonl"):
        raise DataError(f"{path}: is no dataset file: {_FORMATS}")
    rows = read_json_lines(path) if path.suffix.lower() == ".jsonl" else read_json_list(path)
    return Source(str(path), path.parent, "image", rows, fallback="images")


def _joined(name: str, parts: list[Source]) -> Source:
    """The splits of a hub dataset as one source, whose root is the folder above them."""
    if len(parts) == 1:
        return parts[0]
    rows = []
    for part in parts:
        for where, row in part.rows:
            if isinstance(row, dict) and "file_name" in row:
                row = {**row, "file_name": f"{part.root.name}/{row['file_name']}"}
            rows.append((f"{part.root.name}/{where}", row))
    return Source(name, parts[0].root.parent, "file_name", rows)


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
    return Source(source.name, source.root, source.image_field, kept, source.fallback)


def _assemble(source: Source, limit: int | None) -> Dataset:
    """Judges the rows one by one. Once the limit is reached, rows of further images are not looked at."""
    dataset = Dataset(source.root, [], [], [], source.image_field)
    chosen: set[Path] = set()
    ids: dict[str, str] = {}
    exists: dict[str, Path | None] = {}
    for where, row in source.rows:
        full = limit is not None and len(chosen) >= limit
        try:
            if isinstance(row, Rejection):
                raise ValueError(row.reason)
            image = _locate(source, image_value(row, source.image_field), exists)
            if full and image not in chosen:
                continue
            samples = samples_of(row, len(dataset.rows), image)
            _require_new_ids(samples, ids)
        except ValueError as error:
            if not full:
                dataset.rejected.append(Rejection(where, str(error)))
            continue
        chosen.add(image)
        ids.update((sample.id, where) for sample in samples)
        dataset.rows.append(row)
        dataset.samples.extend(samples)
    if not dataset.samples:
        reasons = "; ".join(f"{rejection.where}: {rejection.reason}" for rejection in dataset.rejected[:3])
        raise DataError(f"{source.name}: none of its {len(source.rows)} rows can be used: {reasons}")
    return dataset


def _locate(source: Source, value: str, known: dict[str, Path | None]) -> Path:
    if value not in known:
        known[value] = next((path for path in _candidates(source, value) if os.path.isfile(path)), None)
    found = known[value]
    if found is None:
        raise ValueError(f"image {value} is not in {source.root}: correct the path, or remove the row")
    return found


def _candidates(source: Source, value: str) -> list[Path]:
    """Where an image may lie: never outside the dataset's folder, in either system's spelling of paths."""
    depth = 0
    for part in re.split(r"[\\/]", value):
        depth += {"..": -1, ".": 0, "": 0}.get(part, 1)
        if depth < 0:
            raise ValueError(f"image path {value} leaves the dataset's folder: move the image into it")
    if value.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", value):
        raise ValueError(f"image path {value} is absolute: give it relative to the dataset's folder")
    path = os.path.normpath(value)
    return [source.root / path, *([source.root / source.fallback / path] if source.fallback else [])]


def _require_new_ids(samples: list[Sample], ids: dict[str, str]) -> None:
    for sample in samples:
        if sample.id in ids:
            raise ValueError(
                f"id {sample.id} is already that of {ids[sample.id]}: "
                "give every row an `id` of its own, or read one split"
            )
