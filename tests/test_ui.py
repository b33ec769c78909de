"""The web page without a browser: what uploads may be, who sees what, and what the server answers."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import shutil
import signal
import stat
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip(
    "gradio", reason="Gradio holds Pillow below 13: try the page with an environment of its own, mmguard[test,ui]"
)

import uvicorn
from fastapi import FastAPI
from PIL import Image
from starlette.testclient import TestClient
from typer.testing import CliRunner

from mmguard import zoo
from mmguard.auditing.attackers import default_attackers
from mmguard.cli import app
from mmguard.config import AuditConfig, ProtectConfig
from mmguard.errors import ConfigError, DataError, MMGuardError
from mmguard.pages.render import texts
from mmguard.ui import jobs, receive, serve
from mmguard.ui.jobs import Models, Teller
from mmguard.ui.sessions import Session, Sessions, Stopped
from mmguard.ui.uploads import Limits, stored, unpack
from mmguard.ui.words import EFFORTS, STRENGTHS, VARIANTS

FAST = ProtectConfig(variant="crs", rounds=1, inner_steps=1, pgd_steps=1, top_c=2, trigger_words=2, eps=6)
SMALL = Limits(files=3, file_bytes=100, total_bytes=250)


def picture(color: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), color).save(file, "PNG")
    return file.getvalue()


def zipped(path: Path, content: dict[str, bytes], **attributes: int) -> list[tuple[str, Path]]:
    """An upload of one zip file."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            entry = zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = attributes.get("external_attr", 0)
            archive.writestr(entry, data)
    return [(path.name, path)]


def loose(folder: Path, content: dict[str, bytes]) -> list[tuple[str, Path]]:
    """An upload of several files, as the server keeps them: under names that say nothing of where they were."""
    folder.mkdir()
    files = []
    for number, (name, data) in enumerate(content.items()):
        path = folder / str(number)
        path.write_bytes(data)
        files.append((name, path))
    return files


def tree(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# Uploads


@pytest.mark.parametrize("packed", [True, False], ids=["zip", "folder"])
def test_a_dataset_keeps_its_folders_and_loses_the_one_around_it(tmp_path: Path, packed: bool) -> None:
    content = {"my/metadata.jsonl": b"{}", "my/images/1.JPG": b"a", "my/images/2.png": b"b", "my/notes.docx": b"c"}
    content |= {"__MACOSX/my/1.jpg": b"d", "my/.hidden.png": b"e", "my/inner.zip": b"f"}
    files = zipped(tmp_path / "my.zip", content) if packed else loose(tmp_path / "sent", content)
    found = unpack(files, tmp_path / "out")
    assert found.folder == tmp_path / "out" / "my"
    assert tree(found.folder) == ["images/1.JPG", "images/2.png", "metadata.jsonl"]
    assert (found.folder / "images/2.png").read_bytes() == b"b"
    assert set(found.ignored) == {"my/notes.docx", "__MACOSX/my/1.jpg", "my/.hidden.png", "my/inner.zip"}


@pytest.mark.parametrize("packed", [True, False], ids=["zip", "folder"])
@pytest.mark.parametrize(
    "name",
    ["../out.png", "a/../../out.png", "..\\out.png", "/etc/out.png", "\\\\host\\out.png", "C:\\out.png", "c:out.png"],
)
def test_nothing_leaves_the_folder(tmp_path: Path, name: str, packed: bool) -> None:
    content = {"fine.png": b"a", name: b"b"}
    files = zipped(tmp_path / "a.zip", content) if packed else loose(tmp_path / "sent", content)
    before = tree(tmp_path)
    with pytest.raises(DataError, match="leaves the folder"):
        unpack(files, tmp_path / "deep" / "out")
    assert tree(tmp_path) == before
    assert not (tmp_path / "deep" / "out").exists()


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_are_refused(tmp_path: Path, kind: int) -> None:
    files = zipped(tmp_path / "a.zip", {"a.png": b"/etc/passwd"}, external_attr=(kind | 0o644) << 16)
    with pytest.raises(DataError, match=r"a\.png: is a link"):
        unpack(files, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({f"{number}.png": b"a" for number in range(4)}, "more than 3 files"),
        ({"a.png": b"a" * 101}, r"a\.png: is larger than"),
        ({f"{number}.png": b"a" * 90 for number in range(3)}, "holds more than"),
        ({"a.png": b"a", "A.PNG": b"b"}, "there twice"),
        ({"a/" * 17 + "a.png": b"a"}, "at most 16 folders"),
        ({"a.docx": b"a"}, "nothing in it that is understood"),
        ({f"{'a' * 300}.png": b"a"}, "cannot be unpacked"),
    ],
)
@pytest.mark.parametrize("packed", [True, False], ids=["zip", "folder"])
def test_too_much_is_refused_and_removed(tmp_path: Path, content: dict[str, bytes], reason: str, packed: bool) -> None:
    files = zipped(tmp_path / "a.zip", content) if packed else loose(tmp_path / "sent", content)
    with pytest.raises(DataError, match=reason):
        unpack(files, tmp_path / "out", SMALL)
    assert not (tmp_path / "out").exists()


def test_a_bomb_is_refused_before_it_goes_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = zipped(tmp_path / "a.zip", {f"{number}.png": bytes(50 << 20) for number in range(3)})
    assert files[0][1].stat().st_size < 1 << 20
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: pytest.fail("it was opened"))
    with pytest.raises(DataError, match="holds more than 100 MB"):
        unpack(files, tmp_path / "out", Limits(total_bytes=100 << 20))


def test_a_bomb_that_lies_about_its_size_is_cut_off(tmp_path: Path) -> None:
    files = zipped(tmp_path / "a.zip", {"a.png": bytes(10_000)})
    raw = bytearray(files[0][1].read_bytes())
    place = raw.index(b"PK\x01\x02") + 24  # the size in the central directory, which is the one that is read
    assert int.from_bytes(raw[place : place + 4], "little") == 10_000
    raw[place : place + 4] = (50).to_bytes(4, "little")
    files[0][1].write_bytes(raw)
    with pytest.raises(DataError):
        unpack(files, tmp_path / "out", SMALL)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["no zip", "cut", "scrambled", "encrypted"])
def test_a_broken_zip_file_is_an_error_with_a_cure(tmp_path: Path, damage: str) -> None:
    files = zipped(tmp_path / "a.zip", {"a.png": os.urandom(3000)})
    raw = bytearray(files[0][1].read_bytes())
    if damage == "no zip":
        raw = bytearray(b"what is this")
    elif damage == "cut":
        raw = raw[:1000]
    elif damage == "scrambled":
        raw[500:600] = bytes(100)
    else:
        raw[raw.index(b"PK\x01\x02") + 8] |= 1
    files[0][1].write_bytes(raw)
    with pytest.raises(DataError, match="pack it"):
        unpack(files, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_only_what_was_uploaded_is_read(tmp_path: Path) -> None:
    store = tmp_path / "store"
    good = store / ("0a" * 32) / "a.png"
    good.parent.mkdir(parents=True)
    good.write_bytes(b"a")
    secret = store / "session-1" / "secret.png"
    secret.parent.mkdir()
    secret.write_bytes(b"s")
    link = good.with_name("b.png")
    link.symlink_to(secret)
    assert stored([["my/a.png", str(good)]], store) == [("my/a.png", good)]
    for path in (
        "/etc/passwd",
        str(secret),
        f"{good.parent}/../session-1/secret.png",
        str(link),
        "https://example.org/a",
    ):
        with pytest.raises(DataError, match="was not uploaded here"):
            stored([["a.png", path]], store)
    for nonsense in (None, "a", [["a"]], [["a", 1]], [{"path": "a"}]):
        with pytest.raises(DataError, match="not understood"):
            stored(nonsense, store)


# Sessions


def test_each_visitor_has_files_of_their_own_and_they_go_with_them(tmp_path: Path) -> None:
    sessions = Sessions(tmp_path)
    anna, ben = sessions.of("anna"), sessions.of("ben")
    assert sessions.of("anna") is anna
    assert anna.folder != ben.folder
    assert len(anna.folder.name) > 32, "a name to guess"
    (ben.folder / "a.png").write_bytes(b"a")
    sessions.close("anna")
    assert (anna.folder.exists(), ben.folder.exists()) == (False, True)
    with pytest.raises(ConfigError, match="closed meanwhile"):
        sessions.of("anna")
    sessions.close_all()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="in a browser"):
        sessions.of(None)


def test_of_those_who_left_the_last_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmguard.ui.sessions.REMEMBERED", 3)
    sessions = Sessions(tmp_path)
    for number in range(9):
        sessions.of(str(number))
        sessions.close(str(number))
    for number in (6, 7, 8):
        with pytest.raises(ConfigError, match="closed meanwhile"):
            sessions.of(str(number))
    assert len(sessions._left) == 3
    assert list(tmp_path.iterdir()) == []


def test_a_visitor_who_leaves_ends_the_work_and_then_the_files_go(tmp_path: Path) -> None:
    sessions = Sessions(tmp_path)
    session = sessions.of("anna")

    def work() -> None:
        with session.working(1.0):
            with pytest.raises(ConfigError, match="still running"):
                session.working(2.0).__enter__()
            sessions.close("anna")
            assert session.folder.exists(), "work still goes on in it"
            Teller(lambda: session.stopped > 1.0, quiet)(0.5, "Writing")

    with pytest.raises(Stopped):
        work()
    assert not session.folder.exists()


def test_stopping_ends_what_was_asked_for_before_and_nothing_else(tmp_path: Path) -> None:
    session = Sessions(tmp_path).of("anna")
    session.stop(2.0)
    session.stop(1.0)  # answered late
    with pytest.raises(Stopped), session.working(1.5):
        pytest.fail("it had waited, and was not wanted any more")
    with session.working(3.0):
        assert not session.stopped > 3.0


# Jobs


@pytest.fixture
def session(tmp_path: Path) -> Session:
    store = tmp_path / "store"
    store.mkdir()
    return Sessions(store).of("anna")


def quiet(share: float, what: str) -> None:
    """Is told, and does nothing."""


def upload(store: Path, content: dict[str, bytes]) -> list[list[str]]:
    """What a browser says after it uploaded files."""
    sent = []
    for number, (name, data) in enumerate(content.items()):
        path = store / f"{number:064x}" / Path(name).name
        path.parent.mkdir()
        path.write_bytes(data)
        sent.append([name, str(path)])
    return sent


def photos(colors: str) -> dict[str, bytes]:
    rows = [
        {"file_name": f"images/{color}.png", "question": "what color is the shape?", "answer": color}
        for color in colors.split()
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return {"my/metadata.jsonl": text} | {f"my/images/{color}.png": picture(color) for color in colors.split()}


def test_from_an_upload_to_downloads_and_a_report(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    store = session.folder.parent
    dataset, unpacked = jobs.take(session, upload(store, photos("red blue green")), "pictures", store)
    assert (len(dataset.samples), unpacked.ignored) == (3, ())
    session.source = unpacked.folder
    told: list[tuple[float, str]] = []
    made = jobs.protect_session(session, FAST, Models(), Teller(lambda: False, lambda *it: told.append(it)))
    assert made.check.ok
    assert 0 < made.check.max_eps <= 6
    assert made.check.max_words == 2
    assert all(0 <= share <= 1 for share, _ in told)
    stages = {what.partition(",")[0] for _, what in told}
    assert {"Reading the pictures", "Changing the pictures", "Writing the protected copy"} <= stages

    with zipfile.ZipFile(made.release) as archive:
        names = archive.namelist()
        assert {f"protected/images/{color}.png" for color in ("red", "blue", "green")} < set(names)
        assert not [name for name in names if "record" in name or "PUBLISH" in name], "a secret in what is published"
    with zipfile.ZipFile(made.record) as archive:
        assert {"private-record/record.json", "private-record/DO_NOT_PUBLISH.txt"} < set(archive.namelist())

    shown = jobs.show(session, 2)
    before, after = Image.open(shown.before), Image.open(shown.after)
    assert before.size == after.size == (384, 384)
    assert before.getpixel((5, 5)) == {"red": (255, 0, 0), "blue": (0, 0, 255), "green": (0, 128, 0)}[shown.name[:-4]]
    assert before.tobytes() != after.tobytes()
    ((question, answer),) = shown.texts
    assert question is not None
    assert [inserted for _, _, inserted in question] == [False] * 5 + [True] * 2
    assert answer == shown.name[:-4]
    for number in (0, 4):
        with pytest.raises(ConfigError, match="there are 3"):
            jobs.show(session, number)

    asked: dict[str, object] = {}

    def audit(release: Path, original: Path, test: Path, attackers: tuple, config: AuditConfig, out: Path, **_: object):
        asked.update(release=release, original=original, test=test, attackers=attackers, seeds=config.seeds)
        return "report"

    monkeypatch.setattr(jobs, "audit", audit)
    with pytest.raises(ConfigError, match="no test pictures"):
        jobs.audit_session(session, "quick", Models(), quiet)
    session.test = "easy-vqa:test:what:5"
    assert jobs.audit_session(session, "quick", Models(), quiet) == ("report", session.folder / "report/report.html")
    assert asked == {
        "release": session.folder / "release",
        "original": unpacked.folder,
        "test": "easy-vqa:test:what:5",
        "attackers": tuple(f"zoo:{name}" for name in zoo.MEASURED[:2]),
        "seeds": 1,
    }
    session.close()
    assert not session.folder.exists()


def test_a_stopped_protection_leaves_no_release(session: Session) -> None:
    session.source = "easy-vqa:train:what:3"

    def stop(share: float, what: str) -> None:
        if what == "Writing":
            raise Stopped

    with pytest.raises(Stopped):
        jobs.protect_session(session, ProtectConfig(variant="random-noise"), Models(), stop)
    assert session.release is None
    made = jobs.protect_session(session, ProtectConfig(variant="random-noise"), Models(), quiet)
    assert made.check.images == 3


def test_a_second_protection_is_shown_at_addresses_of_its_own(session: Session) -> None:
    session.source = "easy-vqa:train:what:3"
    shown = []
    for seed in (0, 1):
        jobs.protect_session(session, ProtectConfig(variant="random-noise", seed=seed), Models(), quiet)
        shown.append(jobs.show(session, 1))
    first, second = shown
    assert {first.before, first.after, first.difference}.isdisjoint({second.before, second.after, second.difference})
    assert not first.after.parent.exists(), "nobody looks at it any more"


def test_an_upload_cannot_name_other_peoples_pictures(session: Session, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(picture())
    store = session.folder.parent
    for path in ("../../../secret.png", str(tmp_path / "secret.png")):
        row = json.dumps({"file_name": path, "question": "what is it?", "answer": "mine"}).encode()
        with pytest.raises(DataError, match="none of its 1 rows can be used"):
            jobs.take(session, upload(store, {"metadata.jsonl": row}), "pictures", store)
        for folder in store.glob("0*"):
            shutil.rmtree(folder)


def test_every_choice_is_a_setting() -> None:
    for variant in VARIANTS:
        found = [jobs.settings(strength, variant, "zoo:qwen3vl-tiny") for strength in STRENGTHS]
        assert [one.eps for one in found] == sorted({one.eps for one in found})
        assert {one.variant for one in found} == {variant}
    assert jobs.settings("standard", "bph", "owner/model").inner_steps == ProtectConfig.inner_steps
    with pytest.raises(ConfigError, match="strength enormous"):
        jobs.settings("enormous", "bph", "zoo:qwen3vl-tiny")


@pytest.mark.parametrize(("effort", "seeds", "said"), [("quick", 1, "once"), ("thorough", 3, "three times")])
@pytest.mark.parametrize("given", [(), ("zoo:llava-tiny",)], ids=["zoo", "given"])
def test_an_effort_says_what_it_is_whichever_thieves_there_are(
    session: Session, monkeypatch: pytest.MonkeyPatch, effort: str, seeds: int, said: str, given: tuple[str, ...]
) -> None:
    asked: list[tuple[tuple[str, ...], int]] = []
    monkeypatch.setattr(jobs, "audit", lambda *it, **_: asked.append((it[3], it[4].seeds)))
    session.source = session.test = "easy-vqa:test:what:5"
    session.release = SimpleNamespace(path=session.folder)
    jobs.audit_session(session, effort, Models(attackers=given), quiet)
    zoos = tuple(default_attackers())
    assert asked == [(given or (zoos[:2] if effort == "quick" else zoos), seeds)]
    assert f"each thief tries {said};" in EFFORTS[effort]


def test_what_is_left_is_told_once_it_can_be_known(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(jobs, "monotonic", lambda: clock[0])
    said: list[str] = []
    teller = Teller(lambda: False, lambda _, what: said.append(what))
    for now, share in ((1.0, 0.5), (10.0, 0.5), (20.0, 0.1), (30.0, 1.0)):
        clock[0] = now
        teller(share, "Perturbing")
    plain = "Changing the pictures"
    # The third is of another stage, which has only begun.
    assert said == [plain, f"{plain}, about 10 s left", plain, plain]


# The server


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[TestClient, Sessions]]:
    for name in ("GRADIO_SHARE", "GRADIO_ANALYTICS_ENABLED", "GRADIO_MCP_SERVER"):
        monkeypatch.setenv(name, "True")
    monkeypatch.setenv("GRADIO_ALLOWED_PATHS", "/")
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    monkeypatch.setenv("GRADIO_TEMP_DIR", "/nowhere")
    store = (tmp_path / "store").resolve()
    store.mkdir()
    application, sessions = serve.create(store, Models())
    assert isinstance(application, FastAPI)
    with TestClient(application, base_url="http://127.0.0.1:7860") as client:
        yield client, sessions


def test_the_page_is_there_and_loads_nothing_from_elsewhere(server: tuple[TestClient, Sessions]) -> None:
    client, _ = server
    page = client.get("/")
    assert page.status_code == 200
    loaded = re.findall(r'<(?:script|link|img|iframe)\b[^>]*?(?:src|href)="([^"]+)"', page.text)
    assert loaded
    assert not [address for address in loaded if "//" in address]
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert not re.search(r"@import|@font-face|url\((?!.data:)", client.get("/theme.css").text)
    config = client.get("/config").json()
    text = json.dumps(config)
    assert "What this does not protect against" in text
    assert "does **not** protect against large models" in text
    assert config["analytics_enabled"] is False
    assert not config.get("is_colab")
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert "GRADIO_SHARE" not in os.environ
    assert all(one["api_visibility"] == "private" for one in config["dependencies"])


def ask(client: TestClient, visitor: str, function: str, *data: object, event: object = None) -> None:
    """Presses a button, as a page does."""
    (dependency,) = [one for one in client.get("/config").json()["dependencies"] if one["api_name"] == function]
    body = {"data": data, "fn_index": dependency["id"], "session_hash": visitor, "event_data": event}
    address = "/gradio_api/queue/join" if dependency["queue"] else "/gradio_api/run/predict"
    assert client.post(address, json=body).status_code == 200


def answer(client: TestClient, visitor: str) -> str:
    """What the page shows once all that was asked for is done."""
    return client.get("/gradio_api/queue/data", params={"session_hash": visitor}).text


def test_a_job_that_waits_behind_another_can_be_stopped(
    server: tuple[TestClient, Sessions], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, sessions = server
    begun: list[Session] = []
    go_on = threading.Event()

    def protect(session: Session, *_: object) -> None:
        begun.append(session)
        assert go_on.wait(60)
        raise ConfigError("it was at work")

    monkeypatch.setattr(jobs, "protect_session", protect)
    for visitor in ("anna", "ben"):
        ask(client, visitor, "_protect", "gentle", "crs")
    ask(client, "ben", "_stop")
    go_on.set()
    assert "it was at work" in answer(client, "anna")
    assert "Stopped." in answer(client, "ben")
    assert begun == [sessions.of("anna")]
    ask(client, "ben", "_protect", "gentle", "crs")
    assert "it was at work" in answer(client, "ben"), "the next is wanted"


def test_texts_are_shown_as_reports_show_them(
    server: tuple[TestClient, Sessions], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, sessions = server
    path = sessions.of("anna").folder / "a.png"
    path.write_bytes(picture())
    question = [("", "what", False), (" ", "is", False), (" ", "<b>", True)]
    shown = jobs.Shown("a.png", path, path, path, [(question, "a & b"), (None, "a river")])
    monkeypatch.setattr(jobs, "show", lambda *_: shown)
    ask(client, "anna", "_look", 1)
    said = answer(client, "anna")
    assert "what is <mark>&lt;b&gt;</mark> → a &amp; b" in said
    assert texts(question, "a & b").strip() in said
    assert texts(None, "a river").strip() in said


def test_no_file_of_this_computer_is_handed_out(server: tuple[TestClient, Sessions]) -> None:
    client, sessions = server
    for path in ("/etc/passwd", "/etc/../etc/passwd", str(Path(__file__).resolve()), f"{sessions.store}/../x"):
        assert client.get(f"/gradio_api/file={path}").status_code in (403, 404), path
    for address in ("http://example.org/a", "https:/example.org/a", "HTTPS://example.org"):
        assert client.get(f"/gradio_api/file={address}").status_code == 403
        assert client.get(f"/gradio_api/proxy={address}").status_code == 403
    own = sessions.of("anna").folder / "a.png"
    own.write_bytes(picture())
    assert client.get(f"/gradio_api/file={own}").content == picture()
    assert client.get(f"/gradio_api/file={own}").headers["cache-control"] == "no-store"
    assert client.get(f"/gradio_api/file={own.parent}").status_code in (403, 404), "a list of files"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:7860", "Origin": "http://localhost:7860"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example:7860"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:9999"}, 403),
    ],
)
def test_other_pages_in_the_browser_are_refused(
    server: tuple[TestClient, Sessions], headers: dict[str, str], status: int
) -> None:
    client, sessions = server
    assert client.get("/", headers=headers).status_code == status
    reply = client.post("/upload", files={"files": ("a.png", picture())}, headers=headers)
    assert reply.status_code == status
    assert bool(list(sessions.store.glob("*/0"))) == (status == 200)


def test_requests_have_a_size_and_it_has_a_limit(server: tuple[TestClient, Sessions]) -> None:
    client, _ = server
    too_long = {"Content-Length": str(2 << 30)}
    assert client.post("/upload", content=b"a", headers=too_long).status_code == 413
    assert client.post("/upload", content=iter([b"a"])).status_code == 411


def test_an_upload_lies_where_it_is_looked_for(server: tuple[TestClient, Sessions]) -> None:
    client, sessions = server
    (path,) = client.post("/upload", files={"files": ("../../a.png", picture())}).json()
    assert [file.read_bytes() for _, file in stored([["a.png", path]], sessions.store)] == [picture()]


@pytest.mark.parametrize("busy", [False, True])
def test_an_upload_goes_whether_it_is_taken_or_refused(server: tuple[TestClient, Sessions], busy: bool) -> None:
    client, sessions = server
    (path,) = client.post("/upload", files={"files": ("a.png", picture())}).json()
    with sessions.of("anna").working(time.monotonic()) if busy else nullcontext():
        ask(client, "anna", "_take", event={"files": [["a.png", path]]})
        assert ("still running" if busy else "Found: 1 pictures") in answer(client, "anna")
    assert not Path(path).parent.exists()


NOTHING = {"metadata.jsonl": b'{"file_name": "none.png", "question": "what is it?", "answer": "nothing"}'}


@pytest.mark.parametrize(("function", "what"), [("_take", "source"), ("_take_test", "test")])
def test_a_refused_upload_takes_nothing_from_the_visitor(
    server: tuple[TestClient, Sessions], function: str, what: str
) -> None:
    client, sessions = server
    session = sessions.of("anna")

    def drop(content: dict[str, bytes]) -> str:
        files = [("files", (Path(name).name, data)) for name, data in content.items()]
        paths = client.post("/upload", files=files).json()
        ask(client, "anna", function, event={"files": [list(pair) for pair in zip(content, paths, strict=True)]})
        return answer(client, "anna")

    assert "Found: 1 pictures" in drop(photos("red"))
    first, before = getattr(session, what), tree(session.folder)
    session.release = "made in hours"
    for content, reason in ((NOTHING, "none of its 1 rows"), ({"a.zip": b"no zip"}, "cannot be read")):
        said = drop(content)
        assert reason in said
        assert "what was here before stays" in said
        assert (getattr(session, what), session.release) == (first, "made in hours")
        assert tree(session.folder) == before
    assert "Found: 2 pictures" in drop(photos("blue green"))
    assert not first.exists()
    assert getattr(session, what).exists()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receive, "_KEPT", 0.2)
    monkeypatch.setattr(receive, "_PAUSE", 0.01)


def test_an_upload_that_nobody_takes_is_forgotten(impatient: None, server: tuple[TestClient, Sessions]) -> None:
    client, _ = server
    (path,) = client.post("/upload", files={"files": ("a.png", picture())}).json()
    ends = time.monotonic() + 30
    while Path(path).exists():
        assert time.monotonic() < ends, "it is still there"
        time.sleep(0.05)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no such signal")
@pytest.mark.parametrize("ignored", [False, True], ids=["default", "nohup"])
def test_a_terminal_that_is_closed_ends_the_server_and_files_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ignored: bool
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("GRADIO_ANALYTICS_ENABLED", "GRADIO_TEMP_DIR"):
        monkeypatch.setenv(name, "")
    went_on = []

    def run(server: uvicorn.Server, **_: object) -> None:
        (store,) = tmp_path.glob("mmguard-ui-*")
        (store / "original.png").write_bytes(picture())
        assert ignored or signal.getsignal(signal.SIGHUP) != signal.SIG_DFL, "it would end the tests"
        signal.raise_signal(signal.SIGHUP)
        went_on.append(server)

    monkeypatch.setattr(uvicorn.Server, "run", run)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        with nullcontext() if ignored else pytest.raises(SystemExit):
            serve.serve(Models(), 0, False, lambda _: None)
        assert signal.getsignal(signal.SIGHUP) == (signal.SIG_IGN if ignored else signal.SIG_DFL)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert bool(went_on) == ignored
    assert list(tmp_path.iterdir()) == []


def test_without_gradio_the_command_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gradio" else found(name))
    done = CliRunner().invoke(app, ["ui"])
    assert done.exit_code == 1
    assert "pip install 'mmguard[ui]'" in done.output


def test_a_port_that_is_taken_is_an_error_with_a_cure() -> None:
    with serve._listening(0) as taken:
        assert taken.getsockname()[0] == "127.0.0.1"
        with pytest.raises(MMGuardError, match="choose another with --port"):
            serve._listening(taken.getsockname()[1])
