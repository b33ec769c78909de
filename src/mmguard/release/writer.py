"""Writes a release: the folder that may be published, and the private record beside it."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from mmguard.config import ProtectConfig
from mmguard.data import formats
from mmguard.data.carrier import suffix_of
from mmguard.data.formats.base import Released, changes, write_text
from mmguard.data.images import Picture, load_picture, opened, read_file
from mmguard.data.rows import released_row
from mmguard.data.text import is_admissible
from mmguard.errors import BudgetError, ReleaseError, SampleError
from mmguard.release import layout
from mmguard.release.card import WARNING_TEXT, configurations, dataset_card
from mmguard.release.origin import origin
from mmguard.release.pictures import Stored, deviations, store, summary
from mmguard.release.status import FileStatus, statuses, to_csv
from mmguard.runtime.durable import put_on_disk, replacing, write_durably
from mmguard.runtime.provenance import commit
from mmguard.types import Dataset, Rejection, Sample


@dataclass(frozen=True)
class Release:
    """A complete release on disk."""

    path: Path
    """The folder that may be published."""
    record: Path
    """The private folder beside it."""
    images: int
    samples: int
    failed: list[Rejection]
    """What of the dataset was left out, and why."""
    config: ProtectConfig
    surrogates: list[str]
    """Names of the models that it was made against; none for controls."""
    captions: dict[str, str]
    """What the first surrogate says of pictures that came without text, by sample: what they were protected against."""
    pictures: dict[str, Any]
    """Formats, file sizes and notes of the pictures, counted (`release/pictures.py`)."""
    files: list[FileStatus]
    """What became of every file."""
    own_card: Path | None = None
    """The dataset's own `README.md`, if there is one: the release has another."""

    @property
    def configurations(self) -> list[str]:
        """Those that the dataset's own card lists; in the release they are one dataset."""
        return configurations(self.own_card) if self.own_card else []


class ReleaseWriter:
    """Writes a release image by image, then its rows, card and record.

    Nothing of the original dataset is ever changed or copied. Until `finish`, the record folder holds a file
    `unfinished` that says what the release is made from; as long as it is there, a new writer of the same may take the
    folder over, go on with its `state`, and write its images again.

    Args:
        out: folder to write; must not exist, be empty, or be an unfinished release of the same.
        dataset: what is protected.
        config: settings of the run; its budgets are enforced.
        surrogates: names of the surrogates, for the record.
        source: what the dataset was read from, for the record.
        split: the split that was read, so that `verify` reads the same.
        limit: the number of images that was read, likewise.

    Raises:
        ReleaseError: `out` holds something else, overlaps the dataset's folder, cannot be written, or there
        is too
            little room on its disk.
    """

    def __init__(
        self,
        out: Path,
        dataset: Dataset,
        config: ProtectConfig,
        surrogates: Sequence[str],
        source: str | Path | None = None,
        split: str | None = None,
        limit: int | None = None,
    ) -> None:
        self.path = Path(out).resolve()
        self.record = layout.record_folder(self.path)
        self.dataset = dataset
        self.config = config
        self._eps, self._trigger_words = layout.budgets(config)
        self._format = formats.named(dataset.format)
        self._names = layout.ImageNames(dataset)
        self._images = layout.images_folder(self.path, dataset)
        self._written: dict[Path, dict[str, Any]] = {}
        self._header = {
            "mmguard": version("mmguard"),
            "seed": config.seed,
            "budgets": {"eps": self._eps, "trigger_words": self._trigger_words},
            "dataset": {
                "source": str(source if source is not None else dataset.root),
                "split": split,
                "limit": limit,
            },
            **(made_from := origin(dataset, config, surrogates)),
            "commit": commit(),
        }
        require_place(self.path, dataset, config)
        _require_same_origin(self.path, made_from)
        for folder in (self.path, self.record):
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.record / layout.LOCK)
        self._take_lock()
        # Again: another run may have begun or finished in between.
        _require_free(self.path, self.record)
        _require_same_origin(self.path, made_from)
        # First, since without it the folders would not be taken over.
        with writing(unfinished := self.record / layout.UNFINISHED):
            write_durably(unfinished, (json.dumps(made_from, indent=1) + "\n").encode())
        _write_text(self.record / layout.WARNING, WARNING_TEXT)

    def _take_lock(self) -> None:
        """One process at a time; the system takes the lock from one that dies."""
        with writing(self.record):
            try:
                self._lock.acquire(timeout=0)
            except Timeout as error:  # which is an OSError, too
                raise ReleaseError(
                    f"{self.path}: another run is writing it: wait until it is done, or choose another folder"
                ) from error

    def close(self) -> None:
        """Lets another writer go on with the release, finished or not."""
        self._lock.release()

    @property
    def state(self) -> Path:
        """Folder for what a later writer of the same may go on with; it is gone once the release is finished."""
        return self.record / layout.STATE

    @property
    def deltas(self) -> Path:
        """Where perturbations may be kept meanwhile; the file is gone once the release is finished."""
        return self.record / layout.DELTAS

    def write_image(self, path: Path, protected: Tensor) -> None:
        """Writes one protected image, reads it back from disk and checks it against the original.

        Args:
            path: the original, as `Sample.image` has it.
            protected: uint8 `(3, H, W)`, 0…255, the original's size.

        Raises:
            BudgetError: `protected` has another size or type than the original, or `‖δ‖∞` exceeds ε_x (Eq.
            13).
            ReleaseError: the file cannot be written, or reads back differently.
            SampleError: the original cannot be decoded, or stored with all that it holds besides its pixels.
        """
        if path not in self._names:
            raise ReleaseError(f"{path}: is no image of the dataset in {self.dataset.root}")
        picture, protected = load_picture(path), protected.cpu()
        original = picture.image
        if protected.dtype != torch.uint8 or protected.shape != original.shape:
            raise BudgetError(
                f"{path}: the protected image is {protected.dtype} {tuple(protected.shape)}, "
                f"the original torch.uint8 {tuple(original.shape)}"
            )
        reached, _ = layout.change(original, protected)
        if reached > self._eps:
            raise BudgetError(f"{path}: the perturbation reaches {reached}/255, its budget is {self._eps}/255")
        content = read_file(path)
        stored = store(path, picture, protected, self.config, self._eps)
        name = self._names.released(path, suffix_of(path, stored.carrier.container))
        target = self._images / name
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with replacing(target) as partial:
                partial.write_bytes(stored.content)
                released = self._read_back(path, picture, protected, partial, stored)
            reached, mean = layout.change(original, released.image)
            self._written[path] = {
                "original": layout.relative(path, self.dataset).as_posix(),
                "released": name,
                "original_sha256": hashlib.sha256(content).hexdigest(),
                "released_sha256": layout.sha256(target),
                "eps": reached,
                "mean_abs_delta": mean,
                "original_bytes": len(content),
                **stored.facts(),
            }

    def _read_back(self, path: Path, picture: Picture, protected: Tensor, written: Path, stored: Stored) -> Picture:
        """What a reader sees of a file just written: the protected picture, and all else as in the original."""
        try:
            released = load_picture(written)
        except SampleError as error:
            raise ReleaseError(f"{written}: reads back differently from what was written: check the disk") from error
        # JPEG and the low bits of 16-bit gray add something to δ, though never beyond ε.
        exact = stored.carrier.jpeg is None and stored.carrier.mode != "I;16"
        same = torch.equal(released.image, protected) if exact else released.image.shape == protected.shape
        if not same or layout.change(picture.image, released.image)[0] > self._eps:
            raise ReleaseError(f"{written}: reads back differently from what was written: check the disk")
        if found := deviations(path, picture, written, released, self._eps, self.config.declare_no_training):
            copy = f"cannot be stored faithfully: its copy {'; '.join(found)}"
            raise SampleError(str(path), f"{copy}: save it anew with another program, and please report this")
        return released

    def finish(
        self,
        triggers: Mapping[str, tuple[str, ...]],
        failed: Sequence[Rejection],
        captions: Mapping[str, str] | None = None,
        places: Mapping[str, int | None] | None = None,
        adaptation: Mapping[str, Any] | None = None,
        decoys: Mapping[str, str] | None = None,
    ) -> Release:
        """Writes record, card and data files; the release is complete once the record is no longer `unfinished`.

        A row is left out if its image was not written, or if `failed` names it: by the id of one of its
        samples or by the path of its image.

        Args:
            triggers: inserted words by sample id; samples not in it get none.
            failed: what could not be protected; `where` is a sample id or an image path.
            captions: models' captions of pictures without text, by sample id, for the record; they are not released.
            places: after how many words of its question each trigger stands, by sample id; behind all of them if it
                is None or not given.
            adaptation: how the surrogates were adapted, for the record.
            decoys: the wrong targets that pictures were moved towards, by sample id, for the record.

        Raises:
            BudgetError: a trigger is too long, inadmissible, or for a sample without a question (Eq. 16).
            ReleaseError: no row is left, or a file cannot be written.
        """
        self._check_triggers(triggers)
        by_row: dict[int, list[Sample]] = {}
        for sample in self.dataset.samples:
            by_row.setdefault(sample.row, []).append(sample)
        reasons = {rejection.where: rejection.reason for rejection in failed}
        rows: list[Released] = []
        samples: list[dict[str, Any]] = []
        left_out: list[dict[str, Any]] = []
        kept: set[Path] = set()
        for number, members in by_row.items():
            reason = self._reason_to_leave_out(members, reasons)
            if reason is not None:
                ids = [sample.id for sample in members]
                left_out.append({"where": ids[0], "reason": reason, "samples": ids})
                continue
            image = members[0].image
            kept.add(image)
            words = {sample.turn: triggers.get(sample.id, ()) for sample in members}
            after = {sample.turn: (places or {}).get(sample.id) for sample in members}
            samples += [_trigger_record(s, len(rows), words[s.turn], after[s.turn]) for s in members]
            rows.append(self._released(number, image, words, after))
        if not rows:
            first = next(iter(left_out), {"reason": "the dataset has no samples"})
            raise ReleaseError(f"{self.path}: nothing to release, every row was left out: {first['reason']}")
        skipped = list(dict.fromkeys([*self.dataset.rejected, *failed]))
        known = {sample.id for sample in self.dataset.samples}
        left_out += [
            {"where": rejection.where, "reason": rejection.reason, "samples": []}
            for rejection in skipped
            if rejection.where not in known
        ]
        self._remove_leftovers(kept)
        images = [self._written[image] for image in self._names if image in kept]
        record = {**self._header, "images": images, "samples": samples, "left_out": left_out}
        record["captions"] = dict(captions or {})
        record["adaptation"] = dict(adaptation or {})
        record["decoys"] = dict(decoys or {})
        record["pictures"] = summary(images)
        _write_text(self.record / layout.RECORD, json.dumps(record, indent=1) + "\n")
        files = statuses(self.dataset, record)
        _write_text(self.record / layout.FILES, to_csv(files))
        targets_only = all(sample.question is None for sample in self.dataset.samples)
        with writing(self.path):
            # Makes room: shards hold every picture once more. Whoever takes over draws δ anew, or has it in `state`.
            self.deltas.unlink(missing_ok=True)
            self._format.write(self.dataset, rows, self.path)
        data_files = self._format.find(self.path)
        card = dataset_card([one.row for one in rows], len(kept), len(samples), targets_only, self._format, data_files)
        _write_text(self.path / layout.CARD, card)
        with writing(self.record):
            # Else a power loss could take pictures from a release that says it is complete.
            ours = [self.record / name for name in (layout.WARNING, layout.RECORD, layout.FILES)]
            put_on_disk([self.path, *self.path.rglob("*"), self.record, *ours])
            # First, so that no part of the state is ever taken for the whole; what follows may be left lying.
            (self.record / layout.UNFINISHED).unlink()
        for folder in (layout.IMAGES, layout.STATE):
            shutil.rmtree(self.record / folder, ignore_errors=True)
        self.close()
        with contextlib.suppress(OSError):
            (self.record / layout.LOCK).unlink(missing_ok=True)
        return Release(
            self.path,
            self.record,
            len(kept),
            len(samples),
            skipped,
            self.config,
            record["surrogates"],
            record["captions"],
            record["pictures"],
            files,
            own_card if (own_card := self.dataset.root / layout.CARD).is_file() else None,
        )

    def _released(
        self, number: int, image: Path, words: Mapping[int, Sequence[str]], places: Mapping[int, int | None]
    ) -> Released:
        owner, name = self.dataset.rows[number], self._written[image]["released"]
        row = released_row(owner, self.dataset.image_field, PurePosixPath(name).name, words, places)
        return Released(self.dataset.places[number], row, changes(owner, row), self._images / name)

    def _check_triggers(self, triggers: Mapping[str, tuple[str, ...]]) -> None:
        samples = {sample.id: sample for sample in self.dataset.samples}
        for name, words in triggers.items():
            if name not in samples:
                raise ReleaseError(f"trigger for {name!r}: the dataset has no such sample")
            if words and samples[name].question is None:
                raise BudgetError(f"sample {name}: has a trigger but no question to insert it into")
            if len(words) > self._trigger_words:
                raise BudgetError(f"sample {name}: {len(words)} words, its budget is {self._trigger_words}")
            for word in words:
                if not is_admissible(word):
                    raise BudgetError(f"sample {name}: {word!r} is no admissible word (ASCII letters only)")

    def _reason_to_leave_out(self, members: Sequence[Sample], reasons: Mapping[str, str]) -> str | None:
        image = members[0].image
        relative = layout.relative(image, self.dataset).as_posix()
        for where in (*(sample.id for sample in members), str(image), relative):
            if where in reasons:
                return reasons[where]
        return None if image in self._written else "its image was not protected"

    def _remove_leftovers(self, kept: set[Path]) -> None:
        """Removes images of rows that were left out, and of an unfinished run that this one took over."""
        wanted = {self._images / self._written[image]["released"] for image in kept}
        for file in sorted([*self.path.rglob("*"), *(self.record / layout.IMAGES).rglob("*")], reverse=True):
            with writing(file):
                if file.is_file() and file not in wanted:
                    file.unlink()
                elif file.is_dir() and not any(file.iterdir()):
                    file.rmdir()


def _trigger_record(sample: Sample, row: int, words: Sequence[str], after: int | None) -> dict[str, Any]:
    """What the record says of a sample; positions count the words of the released question, from 0."""
    first = len((sample.question or "").split()) if after is None else after
    positions = list(range(first, first + len(words)))
    return {"id": sample.id, "row": row, "words": list(words), "positions": positions}


def require_place(out: Path, dataset: Dataset, config: ProtectConfig) -> None:
    """Makes sure that a release can be written, without touching the disk.

    Args:
        out: absolute folder of the release.
        dataset: what is protected.
        config: settings of the run.

    Raises:
        ReleaseError: as `ReleaseWriter`.
    """
    record = layout.record_folder(out)
    for folder in (out, record):
        require_apart(folder, dataset)
    _require_free(out, record)
    _require_room(out, dataset, config)


def require_apart(folder: Path, dataset: Dataset) -> None:
    """Refuses a folder in which, or around which, the owner's files lie.

    Raises:
        ReleaseError: it is such a folder.
    """
    root = dataset.root.resolve()
    if folder == root or folder in root.parents or root in folder.parents:
        raise ReleaseError(
            f"{folder}: overlaps the dataset's folder {root}, whose files must stay as they are: "
            "choose a folder beside it"
        )


def _require_free(release: Path, record: Path) -> None:
    for folder in (release, record):
        if folder.exists() and not folder.is_dir():
            raise ReleaseError(f"{folder}: is a file: choose another folder")
    if (record / layout.UNFINISHED).is_file():
        return
    for folder in (release, record):
        # What a run leaves that failed before it had written anything.
        ours = (layout.LOCK, f"{layout.UNFINISHED}.partial")
        if folder.is_dir() and any(path.name not in ours for path in folder.iterdir()):
            raise ReleaseError(f"{folder}: is not empty: choose another folder, or remove it")


_WEIGHTS = "weights."


def _require_same_origin(release: Path, made_from: Mapping[str, Any]) -> None:
    """Refuses to go on with a release that was begun with other settings, surrogates, data or versions."""
    unfinished = layout.record_folder(release) / layout.UNFINISHED
    before: dict[str, Any] = json.loads(unfinished.read_text(encoding="utf-8") or "{}") if unfinished.is_file() else {}
    if changed := _differences(before, made_from):
        as_before = "as before"
        if all(one.startswith(_WEIGHTS) for one in changed):
            as_before += " (with --offline, if the cache still has the former weights)"
        raise ReleaseError(
            f"{release}: holds an unfinished release, and not of the same: {'; '.join(changed)}. Run again {as_before} "
            f"to finish it, choose another folder, or remove {release} and {unfinished.parent} to begin anew"
        )


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], within: str = "") -> list[str]:
    """What has another value now, by its path, as in `config.seed: 0, now 1`."""
    found: list[str] = []
    for name in before.keys() | now.keys() if before else ():
        one, other = before.get(name), now.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found += _differences(one, other, f"{within}{name}.")
        elif one != other and not (within == _WEIGHTS and one is None):  # the hub did not say then
            found.append("the data has changed" if name == "data" else f"{within}{name}: {one}, now {other}")
    return sorted(found)


def working_bytes(dataset: Dataset, config: ProtectConfig, pixels: int, pictures: int) -> int:
    """What the record folder needs at most while a release is made, besides the release.

    Args:
        dataset: what is protected.
        config: settings of the run.
        pixels: of all images together.
        pictures: bytes of all released pictures together.
    """
    delta = 3 * pixels if config.perturbs_images else 0
    waiting = pictures if formats.named(dataset.format).contains else 0
    # One copy in the journal; the one that is worked on is gone before pictures are copied into their data files.
    return delta * config.optimised + max(delta, waiting)


def _require_room(release: Path, dataset: Dataset, config: ProtectConfig) -> None:
    """A PNG needs hardly more than its pixels, and with noise of a few levels nearly as much."""
    images = list(dataset.by_image())
    pixels = pictures = 0
    for image in images:
        # An image that cannot be read is reported when it is protected.
        with contextlib.suppress(Exception), opened(image) as file:
            pixels += file.width * file.height
            pictures += max(3, len(file.getbands())) * file.width * file.height
    # What an unfinished run left is written over.
    left = [*release.rglob("*"), *layout.record_folder(release).rglob("*")]
    needed = pictures + working_bytes(dataset, config, pixels, pictures)
    needed -= sum(file.stat().st_size for file in left if file.is_file())
    disk = next(folder for folder in (release, *release.parents) if folder.exists())
    available = shutil.disk_usage(disk).free
    if needed > available:
        raise ReleaseError(
            f"{release}: {len(images)} images need up to {needed / 1e6:,.0f} MB, {available / 1e6:,.0f} MB "
            "are available: free space, choose another disk, or protect fewer images"
        )


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Says what to do where something of a release, or of its record, cannot be written.

    Raises:
        ReleaseError: instead of an OSError within.
    """
    try:
        yield
    except OSError as error:
        cure = "free space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check folder and permissions"
        raise ReleaseError(
            f"{path}: cannot be written ({error.strerror or error}): {cure} and run again; "
            "what was written so far stays"
        ) from error


def _write_text(path: Path, text: str) -> None:
    with writing(path):
        write_text(path, text)
