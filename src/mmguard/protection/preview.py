"""The first samples as they would be protected, on one page to look at: no release, and nothing that reads as one."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mmguard.config import ProtectConfig
from mmguard.data.images import load_picture, picture_of
from mmguard.data.readers import read_beginning, read_dataset
from mmguard.data.tasks import target_text
from mmguard.data.text import trigger_start
from mmguard.errors import ConfigError, ReleaseError
from mmguard.lvlm.captions import with_captions
from mmguard.lvlm.surrogate import Surrogate
from mmguard.pages.pictures import AMPLIFIED, difference, png_uri
from mmguard.pages.render import render
from mmguard.perturb.budget import apply
from mmguard.perturb.trigger import Trigger
from mmguard.protection.batch import Item
from mmguard.protection.decoys import assign
from mmguard.protection.loop import optimise, work
from mmguard.protection.prepare import (
    begin,
    captions_of,
    chosen,
    ensemble_of,
    names_of,
    require_something_to_do,
    speechless,
)
from mmguard.protection.sharing import share
from mmguard.release import layout
from mmguard.release.pictures import store
from mmguard.release.writer import require_apart
from mmguard.runtime.progress import stages
from mmguard.types import Dataset, Rejection

PAGE = "preview.html"

Piece = tuple[str, str, bool]
"""White space, text, and whether it was inserted."""


@dataclass(frozen=True)
class Preview:
    """A page on disk."""

    page: Path
    images: int
    samples: int
    failed: list[Rejection]
    """What of the first samples could not be protected, and rows before them that cannot be used."""


@dataclass(frozen=True)
class _Picture:
    """An image before and after, as addresses that hold it, and its texts."""

    name: str
    before: str
    after: str
    difference: str
    texts: list[tuple[list[Piece] | None, str]]
    """The question of each sample, if it has one, and the target."""


def preview(
    dataset: str | Path,
    surrogates: Sequence[str | Surrogate] = ("auto",),
    config: ProtectConfig | None = None,
    out: str | Path | None = None,
    *,
    samples: int,
    split: str | None = None,
    limit: int | None = None,
    device: str = "auto",
    show_progress: bool = False,
) -> Preview:
    """Protects the first samples of a dataset in memory and shows them on a page: before, after, difference, words.

    The page is all that is written. Pictures in files of their own would be a dataset, and could be taken for the
    release; nothing reads a page.

    Args:
        dataset: whatever `read_dataset` reads.
        surrogates: as for `protect`.
        config: settings; the defaults if not given.
        out: folder of the page; new, empty, or that of an earlier preview. A new temporary folder if not given.
        samples: how many, in the dataset's order.
        split: use only this split.
        limit: use only the first so many images.
        device: `auto`, `cpu`, `cuda`…
        show_progress: bars on standard error.

    Raises:
        ConfigError: settings that exclude each other, or no samples.
        DataError: the dataset cannot be read, or nothing in it can be protected.
        SurrogateError: a surrogate cannot be loaded or used.
        ReleaseError: the folder holds something else, overlaps the dataset's, or cannot be written.
    """
    if samples < 1:
        raise ConfigError(f"preview {samples}: give 1 or more samples")
    config = config or ProtectConfig()
    if config.misleads:  # the whole dataset says what pictures can be mistaken for
        data, whole = read_beginning(dataset, samples, split, limit)
    else:
        data = whole = read_dataset(dataset, split, samples if limit is None else min(samples, limit))
    data = replace(data, samples=data.samples[:samples])
    require_something_to_do(whole if config.misleads else data, config)
    folder = Path(out).resolve() if out is not None else None
    if folder is not None:
        require_apart(folder, data)
        _require_no_other(folder)
    needed = chosen(surrogates, config, device)
    ensemble = ensemble_of(needed, config, device)
    said = captions_of(data, ensemble, config, show_progress)
    failed = speechless(said, names_of(needed))
    items, unreadable = begin(with_captions(data, said), config, ensemble, None, failed, show_progress)
    if config.misleads:
        captioned = [one for item in items for one in item.samples]
        assign(items, [*(one for one in whole.samples if one.answer), *captioned])
    if config.optimised and ensemble is not None:
        with stages(work(items, config), show_progress) as advance:
            optimise(items, ensemble, config, advance)
    share(items, config.trigger_scope)
    shown = [item for item in items if item.lost is None]
    failed += [*data.rejected, *unreadable, *(Rejection(str(i.path), str(i.lost)) for i in items if i.lost)]
    page = render(
        PAGE,
        summary=_summary(dataset, shown, config, names_of(needed)),
        pictures=[_picture(item, data, config) for item in shown],
        amplified=AMPLIFIED,
        left_out=failed,
        settings={name: str(value) for name, value in asdict(config).items()},
    )
    return Preview(_write(page, folder), len(shown), sum(len(item.samples) for item in shown), failed)


def _summary(source: str | Path, items: Sequence[Item], config: ProtectConfig, surrogates: Sequence[str]) -> str:
    samples = sum(len(item.samples) for item in items)
    eps, words = layout.budgets(config)
    against = f" against {', '.join(surrogates)}" if surrogates else ""
    return (
        f"The first {samples} samples ({len(items)} images) of {source}, protected by {config.variant}{against}: "
        f"images change by at most {eps} levels of 255, questions by {words} words."
    )


def _picture(item: Item, data: Dataset, config: ProtectConfig) -> _Picture:
    original = load_picture(item.path)
    stored = store(item.path, original, apply(original.image, item.delta), config, layout.budgets(config)[0])
    before, after = original.image, picture_of(stored.content, item.path).image
    texts = [
        (_marked(sample.question, trigger, place), target_text(sample))
        for sample, trigger, place in zip(item.samples, item.triggers, item.places, strict=True)
    ]
    return _Picture(
        name=layout.relative(item.path, data).as_posix(),
        before=png_uri(before),
        after=png_uri(after),
        difference=png_uri(difference(before, after)),
        texts=texts,
    )


def _marked(question: str | None, trigger: Trigger, place: int | None) -> list[Piece] | None:
    if question is None:
        return None
    start = trigger_start(question, place)
    inserted = [(" ", " ".join(trigger), True)] if trigger else []
    return [("", question[:start], False), *inserted, ("", question[start:], False)]


def _require_no_other(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ReleaseError(f"{folder}: is a file: choose another folder")
    if folder.is_dir() and any(path.name != PAGE for path in folder.iterdir()):
        raise ReleaseError(f"{folder}: holds something else than a preview: choose another folder for it")


def _write(page: str, folder: Path | None) -> Path:
    try:
        place = folder or Path(tempfile.mkdtemp(prefix="mmguard-preview-"))
        place.mkdir(parents=True, exist_ok=True)
        # A lone surrogate in a text has no UTF-8 form.
        (place / PAGE).write_text(page, encoding="utf-8", errors="xmlcharrefreplace")
    except OSError as error:
        raise ReleaseError(f"{folder}: cannot be written ({error.strerror}): choose another folder") from error
    return place / PAGE
