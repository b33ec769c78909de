"""Publishing: a release goes to the hub whole, and nothing else ever does."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import datasets
import fsspec
import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from PIL import Image
from typer.testing import CliRunner

from mmguard.cli import app
from mmguard.config import ProtectConfig
from mmguard.data.readers import read_dataset
from mmguard.errors import ReleaseError
from mmguard.protection.run import protect
from mmguard.release import layout
from mmguard.release import publish as module
from mmguard.release.publish import publish


class Hub:
    """What a client of the hub does, on a dictionary of repositories."""

    def __init__(self, **repos: list[str]) -> None:
        self.files = {name.replace("__", "/"): files for name, files in repos.items()}
        self.private: dict[str, bool | None] = dict.fromkeys(self.files, False)
        self.commits = 0

    def create_repo(self, repo: str, *, repo_type: str, private: bool | None, exist_ok: bool) -> str:
        assert (repo_type, exist_ok) == ("dataset", True)
        if "/" not in repo:
            raise ValueError(f"{repo} is no owner/name")
        self.files.setdefault(repo, [".gitattributes"])
        self.private.setdefault(repo, private)
        return f"https://hub/datasets/{repo}"

    def dataset_info(self, repo: str) -> SimpleNamespace:
        return SimpleNamespace(private=bool(self.private[repo]))

    def list_repo_files(self, repo: str, *, repo_type: str) -> list[str]:
        return list(self.files[repo])

    def create_commit(
        self, repo: str, operations: list[CommitOperationAdd], *, repo_type: str, commit_message: str
    ) -> None:
        assert all(Path(str(operation.path_or_fileobj)).is_file() for operation in operations)
        self.commits += 1
        self.files[repo] += [operation.path_in_repo for operation in operations]

    @property
    def api(self) -> HfApi:
        return cast("HfApi", self)


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """Of two pictures with odd names and a caption."""
    for number, name in enumerate(("größe/a [b].png", "c.png")):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), (number, 90, 90)).save(tmp_path / "data" / name)
    (tmp_path / "data" / "c.txt").write_text("a caption")
    return protect(tmp_path / "data", [], ProtectConfig(variant="random-noise"), tmp_path / "out").path


FILES = ["README.md", "c.png", "c.txt", "größe/a [b].png"]


@pytest.mark.parametrize("private", [False, True])
def test_all_of_a_release_and_nothing_else(release: Path, private: bool) -> None:
    hub = Hub()
    assert publish(release, "me/photos", private, hub.api) == "https://hub/datasets/me/photos"
    assert sorted(hub.files["me/photos"]) == [".gitattributes", *FILES]
    assert hub.private == {"me/photos": private or None}  # the owner's own default, and not public by force
    publish(release, "me/photos", private, hub.api)  # again, over itself


def test_nothing_private_goes_where_others_see_it(release: Path) -> None:
    hub = Hub(me__photos=[".gitattributes"])
    with pytest.raises(ReleaseError, match=r"me/photos: is there already, and public: make it private"):
        publish(release, "me/photos", private=True, api=hub.api)
    assert hub.files["me/photos"] == [".gitattributes"]
    hub.private["me/photos"] = True
    publish(release, "me/photos", private=True, api=hub.api)
    assert sorted(hub.files["me/photos"]) == [".gitattributes", *FILES]


def test_originals_are_not_published_by_mistake(release: Path, tmp_path: Path) -> None:
    """A folder with a README is no release; one that was moved away from its record is, by its card."""
    originals, hub = tmp_path / "data", Hub()
    (originals / "README.md").write_text("---\nlicense: mit\n---\nMy pictures.\n")
    with pytest.raises(ReleaseError, match=r"data: has no record beside it, nor the card .*give the release"):
        publish(originals, "me/photos", api=hub.api)
    assert hub.files == {}
    (release / "README.md").write_text("my own words")  # the record tells
    publish(release, "me/photos", api=hub.api)
    shutil.rmtree(layout.record_folder(release))
    with pytest.raises(ReleaseError, match="has no record beside it"):
        publish(release, "me/photos", api=hub.api)


def test_a_release_far_from_its_record_is_known_by_its_card(release: Path, tmp_path: Path) -> None:
    hub, moved = Hub(), tmp_path / "elsewhere" / "release"
    shutil.copytree(release, moved)
    publish(moved, "me/photos", api=hub.api)
    assert sorted(hub.files["me/photos"]) == [".gitattributes", *FILES]


def test_many_files_go_in_several_commits(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub()
    monkeypatch.setattr(module, "_FILES_A_COMMIT", 3)
    publish(release, "me/photos", api=hub.api)
    assert hub.commits == 2
    assert sorted(hub.files["me/photos"]) == [".gitattributes", *FILES]


def test_more_files_than_the_hub_takes_in_a_folder_are_not_sent(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub()
    monkeypatch.setattr(module, "_MOST_IN_A_FOLDER", 3)
    publish(release, "me/photos", api=hub.api)  # three at the top, one further down
    monkeypatch.setattr(module, "_MOST_IN_A_FOLDER", 2)
    with pytest.raises(ReleaseError, match=r"has 3 files, and the hub takes 2 in a folder: protect .*Parquet"):
        publish(release, "me/others", api=hub.api)
    assert list(hub.files) == ["me/photos"]


def test_to_any_file_system(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for url in (f"file://{tmp_path}/store/photos/", "memory://photos"):
        system, root = fsspec.url_to_fs(url)
        for _ in range(2):  # again, over itself
            assert publish(release, url) == url
        assert sorted(name.removeprefix(root).lstrip("/") for name in system.find(root)) == FILES
        data = read_dataset(url)
        assert [sample.image.read_bytes() for sample in data.samples] == [
            sample.image.read_bytes() for sample in read_dataset(release).samples
        ]
        system.pipe_file(f"{root}/record.json", b"{}")
        with pytest.raises(ReleaseError, match=r"holds 1 files that are not of this release \(record.json"):
            publish(release, url)


def test_a_file_system_that_cannot_be_written_is_named_with_a_cure(release: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ReleaseError, match=r"file/photos: cannot be uploaded to .*correct the URL"):
        publish(release, f"file://{tmp_path}/file/photos")
    with pytest.raises(ReleaseError, match="leave --private out"):
        publish(release, "memory://photos", private=True)


def copy_of_the_record(release: Path) -> None:
    shutil.copy(release.with_name("out.record") / "record.json", release / "größe")


def record_under_another_name(release: Path) -> None:
    shutil.copy(release.with_name("out.record") / "record.json", release / "notes.json")


def link_to_an_original(release: Path) -> None:
    (release / "c.png").unlink()
    (release / "c.png").symlink_to(release.with_name("data") / "c.png")


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (copy_of_the_record, r"record\.json: is of a private record"),
        (record_under_another_name, r"notes\.json"),
        (link_to_an_original, r"c\.png: does not belong to the release"),
        (lambda release: (release / "README.md").unlink(), r"has no README\.md"),
        (lambda release: (release / ".env").write_text("secret"), r"\.env: does not belong"),
        (lambda release: (release.with_name("out.record") / "unfinished").write_text(""), "is not finished"),
        (shutil.rmtree, "is no folder"),
    ],
)
def test_what_is_not_the_release_is_refused(release: Path, tamper: Callable[[Path], object], message: str) -> None:
    tamper(release)
    hub = Hub()
    with pytest.raises(ReleaseError, match=message):
        publish(release, "me/photos", api=hub.api)
    assert hub.files == {}


def test_a_record_is_never_published(release: Path) -> None:
    hub = Hub()
    with pytest.raises(ReleaseError, match="private record, which must not be published"):
        publish(release.with_name("out.record"), "me/photos", api=hub.api)
    assert hub.files == {}


def test_a_repository_with_originals_is_refused(release: Path) -> None:
    hub = Hub(me__photos=["README.md", "original.jpg"])
    with pytest.raises(ReleaseError, match=r"1 files that are not of this release \(original\.jpg…\).*new name"):
        publish(release, "me/photos", api=hub.api)
    assert hub.files["me/photos"] == ["README.md", "original.jpg"]


def test_a_refusal_of_the_hub_has_a_cure(release: Path) -> None:
    with pytest.raises(ReleaseError, match=r"photos is no owner/name.*hf auth login"):
        publish(release, "photos", api=Hub().api)


def test_the_command(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub()
    monkeypatch.setattr(module, "HfApi", lambda: hub)
    done = CliRunner().invoke(app, ["publish", str(release), "me/photos", "--private"])
    assert done.exit_code == 0, done.output
    assert "https://hub/datasets/me/photos" in done.output
    assert hub.private == {"me/photos": True}
    assert CliRunner().invoke(app, ["publish", str(release) + ".record", "me/photos"]).exit_code == 1
