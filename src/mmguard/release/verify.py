"""Checks a release against the originals, from the files on disk alone: budgets, texts, completeness."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmguard.config import ProtectConfig
from mmguard.data import formats
from mmguard.data.images import load_picture
from mmguard.data.readers import open_source, read_dataset
from mmguard.data.rows import image_value, owner_texts
from mmguard.data.sources import Row, Source
from mmguard.data.text import insert_trigger, inserted_words
from mmguard.errors import DataError, ReleaseError, SampleError
from mmguard.release import layout
from mmguard.release.match import look_alike, match_rows
from mmguard.release.pictures import deviations, misnamed
from mmguard.runtime.progress import Advance, Told, progress
from mmguard.types import Dataset, Rejection, Sample

_OF_DOWNLOADS = (".cache/huggingface/", ".git/")
"""Folders that `hf download` and `git clone` put beside the files of a dataset."""


@dataclass
class Verification:
    """What `verify` found."""

    eps: int
    """Budget of the images, of 255."""
    trigger_words: int
    """Budget of the trigger, in words."""
    eps_from: str
    """Where `eps` comes from: arguments, record or defaults."""
    trigger_words_from: str
    """Where `trigger_words` comes from, likewise."""
    images: int = 0
    """Released images that were compared with their originals."""
    samples: int = 0
    """Samples found in the release."""
    max_eps: int = 0
    """The largest `‖δ‖∞` of any image, of 255."""
    max_words: int = 0
    """The most words inserted into any question."""
    problems: list[str] = field(default_factory=list)
    """Every violation, with the file or id at fault."""
    notes: list[str] = field(default_factory=list)
    """What was not checked."""
    left_out: list[str] = field(default_factory=list)
    """What the record says was left out, and rows of the original that cannot be read: no violations."""

    @property
    def ok(self) -> bool:
        """Whether there is no violation."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """All fields and `ok`, ready for JSON."""
        return {"ok": self.ok, **asdict(self)}


def verify(
    release: Path,
    original: str | Path | Dataset,
    eps: int | None = None,
    trigger_words: int | None = None,
    split: str | None = None,
    limit: int | None = None,
    record: Path | None = None,
    show_progress: bool | Told = False,
) -> Verification:
    """Checks that a release is the original dataset, changed within its budgets and in nothing else.

    Re-reads every file: each image has the original's size, `‖δ‖∞ ≤ ε_x` exactly as it is decoded (Eq. 13), and
    the original's opacity, low bits, grayness and metadata as far as its format holds them; in each question the
    owner's words stand untouched with at most ε_t admissible words among them (Eq. 16); answers and all other fields
    are identical; every id is there once, in order; nothing else lies in the folder, but what the hub and git put into
    copies that were downloaded. Where nothing at all differs, that is a problem, too. Where there is a private record,
    files and words must also be those that were recorded; where there is none, a note says so.

    Args:
        release: the released folder.
        original: the dataset it was made from, as for `read_dataset`, or read already.
        eps: budget of 255; if not given, the record's, else the default of `ProtectConfig`.
        trigger_words: budget in words; likewise.
        split: the split that was protected; if not given, the record's.
        limit: the number of images that were protected; if not given, the record's.
        record: the private folder of the release, for a copy that lies elsewhere; if not given, the one beside it.
        show_progress: a bar with the time that remains, on standard error; or a function that is told how far it is.

    Raises:
        ReleaseError: `release` is no folder with a dataset of a known format, or `record` is none of a release.
        DataError: the original cannot be read.
    """
    release = Path(release).resolve()
    source = _open(release)
    problems: list[str] = []
    record_file = (record or layout.record_folder(release)) / layout.RECORD
    if record is not None and not record_file.is_file():
        raise ReleaseError(f"{record}: has no {layout.RECORD}: give the folder `….record` that `mmguard protect` wrote")
    recorded = _read_record(record_file, problems)
    if not isinstance(original, Dataset):
        original = read_dataset(
            original,
            split=split if split is not None else recorded.split,
            limit=limit if limit is not None else recorded.limit,
        )
    result = _start(recorded, eps, trigger_words)
    result.problems += problems
    if not recorded.budgets:
        result.notes.append(
            f"{record_file}: no record could be read, so that files and words were not compared with it; budgets: "
            f"{result.eps}/255 from {result.eps_from}, {result.trigger_words} words from {result.trigger_words_from}"
        )
    _check_rows(source, original, recorded, result, show_progress)
    if result.images and not (result.max_eps or result.max_words):
        result.problems.append(f"{source.name}: no picture and no question differs from the original: nothing protects")
    return result


def _open(release: Path) -> Source:
    if not release.is_dir():
        raise ReleaseError(f"{release}: is no folder: give the folder that `mmguard protect` wrote")
    try:
        return open_source(release)[0]
    except DataError as error:
        raise ReleaseError(f"{error}; or give the folder that `mmguard protect` wrote") from error


@dataclass
class _Record:
    """What `verify` needs of a record; empty where there is none."""

    split: str | None = None
    limit: int | None = None
    budgets: dict[str, int] = field(default_factory=dict)
    left_out: set[str] = field(default_factory=set)
    words: dict[str, tuple[tuple[str, ...], int]] = field(default_factory=dict)
    """Inserted words by sample id, and how many of the owner's stand before them."""
    hashes: dict[str, tuple[str, str]] = field(default_factory=dict)
    """(original, released) by path of the released image."""
    declares: bool | None = None
    """Whether pictures should declare that training is prohibited; None if unknown."""


def _read_record(path: Path, problems: list[str]) -> _Record:
    if not path.is_file():
        return _Record()
    try:
        record = json.loads(path.read_bytes())
        return _Record(
            record["dataset"]["split"],
            record["dataset"]["limit"],
            {name: int(record["budgets"][name]) for name in ("eps", "trigger_words")},
            {name for entry in record["left_out"] for name in entry["samples"]},
            {e["id"]: (tuple(e["words"]), int(next(iter(e["positions"]), 0))) for e in record["samples"]},
            {e["released"]: (e["original_sha256"], e["released_sha256"]) for e in record["images"]},
            record["config"].get("declare_no_training"),
        )
    # Whatever is wrong with it is one problem of the release; the files themselves can still be checked.
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        problems.append(f"{path}: is damaged ({error!r}) and was ignored")
        return _Record()


def _start(record: _Record, eps: int | None, trigger_words: int | None) -> Verification:
    defaults = ProtectConfig()

    def choose(given: int | None, name: str, default: int) -> tuple[int, str]:
        if given is not None:
            return given, "arguments"
        return (record.budgets[name], "record") if name in record.budgets else (default, "defaults")

    eps_255, eps_from = choose(eps, "eps", defaults.eps)
    words, words_from = choose(trigger_words, "trigger_words", defaults.trigger_words)
    return Verification(eps_255, words, eps_from, words_from)


def _check_rows(
    source: Source, original: Dataset, record: _Record, result: Verification, show_progress: bool | Told
) -> None:
    if source.format != original.format:
        result.problems.append(f"{source.name}: is of the format {source.format}, the original {original.format}")
    by_row: dict[int, list[Sample]] = {}
    for sample in original.samples:
        by_row.setdefault(sample.row, []).append(sample)
    expected = [number for number, members in by_row.items() if members[0].id not in record.left_out]
    result.left_out += [s.id for members in by_row.values() for s in members if s.id in record.left_out]
    result.left_out += [f"{rejection.where}: {rejection.reason}" for rejection in original.rejected]
    names = layout.ImageNames(original)

    rows = _released_rows(source, result)
    files = [_image(source, row) for _, row in rows]
    paths = [source.image_root / file for file in files]
    matching = match_rows(
        [original.rows[number] for number in expected],
        [
            layout.relative(by_row[number][0].image, original).as_posix() if original.named else ""
            for number in expected
        ],
        [row for _, row in rows],
        [names.original(file) if original.named else "" for file in files],
        original.image_field,
        None if original.named else look_alike([by_row[number][0].image for number in expected], paths),
    )
    result.problems += [f"{rows[number][0]}: belongs to no row of the original" for number in matching.extra]
    for place in matching.missing:
        ids = ", ".join(sample.id for sample in by_row[expected[place]])
        result.problems.append(f"id {ids}: is missing from the release")
    if not matching.in_order:
        result.problems.append(f"{source.name}: its rows are not in the original's order")
    for name in sorted(record.words.keys() - {sample.id for sample in original.samples}):
        result.problems.append(f"id {name}: was protected, but is not in the original")
    images: dict[Path, str] = {}
    for place, number in matching.pairs:
        members = by_row[expected[place]]
        where, row = rows[number]
        images[members[0].image] = files[number]
        result.samples += len(members)
        if number in matching.altered:
            result.problems.append(f"{where} (id {members[0].id}): fields altered: {matching.altered[number]}")
        _check_words(where, members, original.rows[expected[place]], row, record.words, result)
    with progress("Verifying", len(images), show_progress) as advance:
        _check_images(source, images, record, original.named, result, advance)
    wanted = {source.root / layout.CARD, *source.files, *(source.image_root / name for name in images.values())}
    _check_no_other_files(source.root, wanted, result)


def _image(source: Source, row: Row) -> str:
    """The path of a released row's image; "" if the row names none that can be."""
    try:
        places = source.candidates(image_value(row, source.image_field))
    except ValueError:
        return ""
    place = next((place for place in places if os.path.isfile(place)), places[0])
    return Path(os.path.relpath(place, source.image_root)).as_posix()


def _released_rows(source: Source, result: Verification) -> list[tuple[str, Row]]:
    rows: list[tuple[str, Row]] = []
    for where, row in source.rows:
        if isinstance(row, Rejection):
            result.problems.append(f"{where}: {row.reason}")
        else:
            rows.append((where, row))
    return rows


def _check_words(
    where: str,
    members: Sequence[Sample],
    owner: dict[str, Any],
    row: dict[str, Any],
    recorded: dict[str, tuple[tuple[str, ...], int]],
    result: Verification,
) -> None:
    try:
        texts = owner_texts(row)
    except ValueError:
        texts = []  # the conversation itself is broken, which is among the row's differences already
    for sample, before, after in zip(members, owner_texts(owner), texts, strict=False):
        words = inserted_words(before, after)
        if words is None:
            result.problems.append(
                f"{where} (id {sample.id}): the owner's words were changed, or something else than words of "
                "ASCII letters was inserted"
            )
            continue
        result.max_words = max(result.max_words, len(words))
        if len(words) > result.trigger_words:
            result.problems.append(
                f"{where} (id {sample.id}): {len(words)} words inserted, the budget is {result.trigger_words}"
            )
        # Words are counted in the question, which in a conversation is the text without the picture's tag.
        asked = sample.question or before
        if sample.id in recorded and after != insert_trigger(before, *_placed(asked, *recorded[sample.id])):
            result.problems.append(f"{where} (id {sample.id}): the inserted words are not those recorded")


def _placed(question: str, words: tuple[str, ...], first: int) -> tuple[tuple[str, ...], int | None]:
    return words, first if 0 < first < len(question.split()) else None


def _check_images(
    source: Source, images: dict[Path, str], record: _Record, named: bool, result: Verification, advance: Advance
) -> None:
    contained = formats.named(source.format).contains
    recorded = set(record.hashes.values())
    for original, name in images.items():
        advance(1)
        file = source.image_root / name
        try:
            before, after = load_picture(original), load_picture(file)
        except SampleError as error:
            result.problems.append(str(error))
            continue
        if before.image.shape != after.image.shape:
            size, owner = (f"{one.image.shape[2]} x {one.image.shape[1]}" for one in (after, before))
            result.problems.append(f"{name}: is {size} pixels, the original {owner}")
            continue
        result.images += 1
        reached, _ = layout.change(before.image, after.image)
        result.max_eps = max(result.max_eps, reached)
        if reached > result.eps:
            result.problems.append(f"{name}: differs by {reached}/255, the budget is {result.eps}/255")
        found = deviations(original, before, file, after, result.eps, record.declares)
        if not contained and (says := misnamed(file)):
            found.append(says)
        result.problems += [f"{name}: {deviation}" for deviation in found]
        # Pictures without names are numbered by row, and by others once a row is left out.
        if not named and recorded:
            if (layout.sha256(original), layout.sha256(file)) not in recorded:
                result.problems.append(f"{file}: is not the file that was recorded")
        elif name in record.hashes:
            for path, hashed in zip((original, file), record.hashes[name], strict=True):
                if layout.sha256(path) != hashed:
                    result.problems.append(f"{path}: is not the file that was recorded")


def _check_no_other_files(release: Path, wanted: set[Path], result: Verification) -> None:
    for file in sorted(release.rglob("*")):
        name = file.relative_to(release).as_posix()
        if name == layout.OF_THE_HUB or name.startswith(_OF_DOWNLOADS):
            continue
        if file.is_symlink():
            result.problems.append(f"{name}: is a link: a release holds files only")
        elif not file.is_dir() and file not in wanted:
            result.problems.append(f"{name}: does not belong to the release")
