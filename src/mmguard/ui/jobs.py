"""What the page has done: the Python API, called with a visitor's files and told of in plain words."""

from __future__ import annotations

import secrets
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any

from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from mmguard import demo, zoo
from mmguard.auditing.arms import pair
from mmguard.auditing.attackers import default_attackers
from mmguard.auditing.html import marked_texts
from mmguard.auditing.report import AuditReport
from mmguard.auditing.run import audit
from mmguard.config import AuditConfig, ProtectConfig, Variant
from mmguard.data.images import load_image
from mmguard.data.readers import read_dataset
from mmguard.errors import ConfigError, ReleaseError
from mmguard.pages.pictures import difference
from mmguard.protection.run import protect
from mmguard.release.verify import Verification, verify
from mmguard.runtime.progress import Told
from mmguard.screen import duration
from mmguard.types import Dataset
from mmguard.ui.sessions import Session, Stopped
from mmguard.ui.uploads import LIMITS, Limits, Unpacked, stored, unpack
from mmguard.ui.words import STAGES, STRENGTHS

EXAMPLE, EXAMPLE_TEST = "easy-vqa:train:what:60", "easy-vqa:test:what:100"
_LONGEST, _SHORTEST = 1024, 384
"""Pixels of the longer side of a picture on the page: larger ones are thinned out, smaller ones enlarged."""


@dataclass(frozen=True)
class Models:
    """What whoever starts the page chooses, and no visitor can."""

    surrogate: str = f"zoo:{zoo.NAMES[0]}"
    attackers: tuple[str, ...] = ()
    """Those of the zoo if not given."""
    device: str = "auto"


@dataclass(frozen=True)
class Protected:
    """What came of a protection."""

    release: Path
    """A zip file."""
    record: Path
    """Another one, which is private."""
    check: Verification
    notes: list[str]
    """What the owner should know: positions in metadata, and what was left out."""


@dataclass(frozen=True)
class Shown:
    """One picture before and after, with its texts."""

    name: str
    before: Path
    after: Path
    difference: Path
    texts: list[tuple[list[tuple[str, str, bool]] | None, str]]
    """The question, if there is one: white space, word, and whether it was inserted; and the answer."""


def take(session: Session, sent: Any, name: str, store: Path, limits: Limits = LIMITS) -> tuple[Dataset, Unpacked]:
    """Unpacks an upload into the session's folder and reads it; what is there from an earlier one stays until then.

    Args:
        session: the visitor's.
        sent: what the browser says was uploaded.
        name: what it is; what was taken as the same before is replaced.
        store: where the server puts uploads.
        limits: how much is taken.

    Raises:
        DataError: it is refused, or no dataset.
    """
    into = session.folder / f"{name}-{secrets.token_hex(4)}"
    try:
        unpacked = unpack(stored(sent, store), into, limits)
        dataset = read_dataset(unpacked.folder)
    except BaseException:
        shutil.rmtree(into, ignore_errors=True)
        raise
    for earlier in set(session.folder.glob(f"{name}-*")) - {into}:
        shutil.rmtree(earlier, ignore_errors=True)
    return dataset, unpacked


def settings(strength: str, variant: Variant, surrogate: str) -> ProtectConfig:
    """What a visitor's choice means.

    Raises:
        ConfigError: there is no such choice.
    """
    if strength not in STRENGTHS:
        raise ConfigError(f"strength {strength}: choose one of {', '.join(STRENGTHS)}")
    chosen = STRENGTHS[strength]
    # A visitor of the zoo sees how it works, in minutes.
    base = demo.PROTECT if surrogate.startswith("zoo:") else ProtectConfig()
    return replace(base, variant=variant, eps=chosen.eps, trigger_words=chosen.words, rounds=chosen.rounds)


def protect_session(session: Session, config: ProtectConfig, models: Models, told: Told) -> Protected:
    """Protects the session's dataset, checks what was written and packs it.

    Raises:
        MMGuardError: as `protect`; or the release does not verify.
    """
    if session.source is None:
        raise ConfigError("there are no pictures yet: drop a folder or a zip file, or take the example")
    session.release, session.pairs = None, []
    session.new(_shown(session))
    session.protections += 1
    out = session.new("release")
    session.new("release.record")
    release = protect(session.source, [models.surrogate], config, out, device=models.device, show_progress=told)
    check = verify(release.path, session.source, show_progress=told)
    if not check.ok:
        raise ReleaseError(f"the protected copy is not what it should be: {'; '.join(check.problems[:3])}")
    pairing = pair(read_dataset(release.path), read_dataset(session.source))
    packed = Protected(
        _packed(release.path, session.folder / "protected.zip", "protected"),
        _packed(release.record, session.folder / "private-record.zip", "private-record"),
        check,
        [
            *(f"{count} of the pictures: {note}" for note, count in release.pictures["notes"].items()),
            *(session.plain(f"left out: {failure.where}: {failure.reason}") for failure in release.failed),
        ],
    )
    session.release, session.pairs = release, pairing.pairs
    return packed


def show(session: Session, number: int) -> Shown:
    """One of the session's pictures, counted from 1, before and after.

    Raises:
        ConfigError: there is no such picture.
    """
    images = list(dict.fromkeys(ours.image for ours, _ in session.pairs))
    if not 1 <= number <= len(images):
        raise ConfigError(f"picture {number}: there are {len(images)}")
    pairs = [(ours, released) for ours, released in session.pairs if ours.image == images[number - 1]]
    before, after = load_image(pairs[0][0].image), load_image(pairs[0][1].image)
    folder = session.folder / _shown(session)
    folder.mkdir(exist_ok=True)
    return Shown(
        images[number - 1].name,
        _saved(before, folder / f"{number}-before.png"),
        _saved(after, folder / f"{number}-after.png"),
        _saved(difference(before, after), folder / f"{number}-difference.png"),
        [marked_texts(ours, released) for ours, released in pairs],
    )


def audit_session(session: Session, effort: str, models: Models, told: Told) -> tuple[AuditReport, Path]:
    """Plays the thief with the session's release; the report, and the page that shows it.

    Raises:
        MMGuardError: as `audit`; or there is no release, or no test set.
    """
    if session.release is None or session.source is None:
        raise ConfigError("there is no protected copy yet: protect something first")
    if session.test is None:
        raise ConfigError("there are no test pictures: drop a folder or a zip file with others of the same kind")
    quick = effort == "quick"
    attackers = models.attackers or tuple(default_attackers()[: 2 if quick else None])
    out = session.folder / "report"
    report = audit(
        session.release.path, session.source, session.test, attackers, AuditConfig(seeds=1 if quick else 3), out,
        arms=(), progress=told, device=models.device, jobs=None,
    )  # fmt: skip
    return report, out / "report.html"


class Teller:
    """Tells a visitor how far a job is and how long it will take, and ends the job if they want no more of it."""

    def __init__(self, stopped: Callable[[], bool], say: Callable[[float, str], None]) -> None:
        self._stopped, self._say = stopped, say
        self._share, self._began = 0.0, monotonic()

    def __call__(self, share: float, what: str) -> None:
        """Takes what the program tells."""
        if self._stopped():
            raise Stopped
        if share < self._share:  # the next stage
            self._began = monotonic()
        self._share = share
        spent = monotonic() - self._began
        left = f", about {duration(spent * (1 - share) / share)} left" if share > 0.02 and spent > 3 else ""
        self._say(share, f"{STAGES.get(what, what)}{left if share < 1 else ''}")


def _shown(session: Session) -> str:
    """The folder of what the page shows: of each protection another, since browsers keep what was at an address."""
    return f"shown-{session.protections}"


def _packed(folder: Path, target: Path, name: str) -> Path:
    # Stored as it is: pictures are compressed already.
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, f"{name}/{path.relative_to(folder).as_posix()}")
    return target


def _saved(image: Tensor, path: Path) -> Path:
    """A picture of the session as the page shows it. Pixels stay as they are: averaging would hide a perturbation."""
    picture = to_pil_image(image)
    longest = max(picture.size)
    times = _LONGEST / longest if longest > _LONGEST else max(1, _SHORTEST // longest)
    size = tuple(max(1, round(side * times)) for side in picture.size)
    picture.resize(size, Image.Resampling.NEAREST).save(path)
    return path
