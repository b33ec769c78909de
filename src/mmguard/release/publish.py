"""Puts a release on the Hugging Face hub, or behind any URL that fsspec can write to, and nothing but the release."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import fsspec
from huggingface_hub import CommitOperationAdd, HfApi

from mmguard.data.readers import read_dataset
from mmguard.data.remote import is_url
from mmguard.errors import DataError, ReleaseError
from mmguard.release import layout
from mmguard.release.card import is_dataset_card

_PRIVATE = (layout.RECORD, layout.WARNING, layout.UNFINISHED, layout.DELTAS, layout.LOCK)

_MOST_IN_A_FOLDER = 10_000
"""Files in one folder that the hub takes."""
_FILES_A_COMMIT = 500
"""A commit of more may run into the hub's time limit."""


def publish(release: str | Path, to: str, private: bool = False, api: HfApi | None = None) -> str:
    """Uploads a release as a dataset of the hub, or to a folder of another file system.

    Args:
        release: the released folder; its record is not read, and nothing of it is uploaded.
        to: `owner/name` on the hub, which is created if it is not there; or the URL of a folder in any file system that
            fsspec knows (`s3://`, `gs://`, `file://`…), with the credentials that its package finds.
        private: create it so that only its owner sees it, and upload nothing if others see one that is there; if not
            given, the owner's own default decides. For the hub alone.
        api: client of the hub, with its credentials; the usual one if not given.

    Returns:
        Address of the dataset.

    Raises:
        ReleaseError: the folder is no finished release, holds anything that does not belong to it, or is a record;
            where it is to go there are other files, which a history may keep; others can see what is to be private; the
            hub does not take so many files in a folder; or it cannot be written there.
    """
    folder = Path(release).resolve()
    files = _files(folder)
    if not is_url(to):
        return _to_hub(folder, files, to, private, api or HfApi())
    if private:
        raise ReleaseError(f"{to}: who may read there is not for mmguard to say: set it there, and leave --private out")
    return _to_url(folder, files, to)


def _to_hub(folder: Path, files: Sequence[str], repo: str, private: bool, api: HfApi) -> str:
    _require_few_in_a_folder(folder, files)
    try:
        # None and not False, which would ask for a public one even of those whose default is private.
        url = str(api.create_repo(repo, repo_type="dataset", private=private or None, exist_ok=True))
        if private and not api.dataset_info(repo).private:
            raise ReleaseError(
                f"{repo}: is there already, and public: make it private in its settings, or publish under a new name"
            )
        _require_no_others(repo, set(api.list_repo_files(repo, repo_type="dataset")) - {*files, layout.OF_THE_HUB})
        # File by file, not the folder: exactly what was looked at.
        add = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in files]
        for start in range(0, len(add), _FILES_A_COMMIT):
            some = add[start : start + _FILES_A_COMMIT]
            api.create_commit(repo, some, repo_type="dataset", commit_message="Add data")
    # Of networks, permissions and names; ValueError is the hub's word for a bad name.
    except (OSError, ValueError) as error:
        raise ReleaseError(
            f"{repo}: cannot be uploaded to ({error}): run `hf auth login` with a token that may write, or correct the "
            "name; what was uploaded so far stays, and publishing again goes on from there"
        ) from error
    return url


def _to_url(folder: Path, files: Sequence[str], url: str) -> str:
    try:
        system, root = fsspec.url_to_fs(url)
        root = root.rstrip("/")
        there = system.find(root) if system.isdir(root) else []
        _require_no_others(url, {name.removeprefix(root).lstrip("/") for name in there} - set(files))
        for name in files:
            system.makedirs(f"{root}/{name}".rpartition("/")[0], exist_ok=True)
            system.put_file(str(folder / name), f"{root}/{name}")
    except ReleaseError:
        raise
    except ImportError as error:
        raise ReleaseError(f"{url}: {error}: `pip install` that package") from error
    # Every file system has its own errors for networks, permissions and names.
    except Exception as error:
        raise ReleaseError(
            f"{url}: cannot be uploaded to ({error}): correct the URL or the credentials; what was uploaded so far "
            "stays"
        ) from error
    return url


def _require_few_in_a_folder(release: Path, files: Sequence[str]) -> None:
    ((largest, count),) = Counter(name.rpartition("/")[0] for name in files).most_common(1)
    if count > _MOST_IN_A_FOLDER:
        raise ReleaseError(
            f"{release / largest}: has {count:,} files, and the hub takes {_MOST_IN_A_FOLDER:,} in a folder: protect "
            "the dataset as Parquet (`datasets` writes it), or with its pictures in several folders"
        )


def _require_no_others(place: str, others: set[str]) -> None:
    if others:
        raise ReleaseError(
            f"{place}: holds {len(others)} files that are not of this release ({min(others)}…), and a history may keep "
            "them: publish under a new name"
        )


def _require_release(folder: Path) -> None:
    """Refuses what may be the originals: a folder with neither a record beside it nor the card of a release."""
    card = folder / layout.CARD
    if not card.is_file():
        raise ReleaseError(
            f"{folder}: has no {layout.CARD}, so that it is no release: give what `mmguard protect` wrote"
        )
    if not (layout.record_folder(folder) / layout.RECORD).is_file() and not is_dataset_card(card):
        raise ReleaseError(
            f"{folder}: has no record beside it, nor the card that `mmguard protect` wrote: it may be your originals; "
            "give the release, beside its record"
        )


def _files(folder: Path) -> list[str]:
    """The files of a release by path, all of which belong to it."""
    if not folder.is_dir():
        raise ReleaseError(f"{folder}: is no folder: give the folder that `mmguard protect` wrote")
    found = sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    if private := next((path for path in found if path.name in _PRIVATE), None):
        raise ReleaseError(
            f"{private}: is of a private record, which must not be published: give the release beside it"
        )
    _require_release(folder)
    if (layout.record_folder(folder) / layout.UNFINISHED).exists():
        raise ReleaseError(f"{folder}: is not finished: run `mmguard protect` again")
    try:
        data = read_dataset(folder)
    except DataError as error:
        raise ReleaseError(f"{error}; or give the folder that `mmguard protect` wrote") from error
    belong = {folder / layout.CARD, *data.files, *(sample.image for sample in data.samples)}
    if other := next((path for path in found if path.is_symlink() or path not in belong), None):
        raise ReleaseError(f"{other}: does not belong to the release: remove it")
    return [path.relative_to(folder).as_posix() for path in found]
