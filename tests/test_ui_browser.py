"""The web page in a real browser, at the width of a desktop and of a phone; Chromium as in `test_pages_browser.py`."""

from __future__ import annotations

import json
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip(
    "gradio", reason="Gradio holds Pillow below 13: try the page with an environment of its own, mmguard[test,ui]"
)

import uvicorn

from mmguard.config import AuditConfig, ProtectConfig
from mmguard.ui import app, jobs, serve
from mmguard.ui.jobs import Models
from mmguard.ui.sessions import Session, Sessions
from test_pages_browser import browser  # noqa: F401 (a fixture)
from test_ui import picture

pytestmark = pytest.mark.slow
EVIL = "what is <img src=x onerror=alert(1)> ${alert(2)} {{this}} here?"


class Page:
    """A server, and what its pages said and asked for that they should not."""

    def __init__(self, address: str, sessions: Sessions, browser: Any) -> None:  # noqa: F811 (the fixture)
        self.address, self.sessions, self._browser = address, sessions, browser
        self.wrong: list[str] = []

    def open(self, width: int = 1280) -> Any:
        page = self._browser.new_page(viewport={"width": width, "height": 900})
        page.on("console", lambda it: self.wrong.append(it.text) if it.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("dialog", lambda dialog: (self.wrong.append(dialog.message), dialog.dismiss()))
        local = (self.address, "data:", "blob:", "about:")
        page.on("request", lambda it: None if it.url.startswith(local) else self.wrong.append(it.url))
        page.set_default_timeout(120_000)  # Chromium and server share the machine with other work
        page.goto(self.address)
        page.get_by_role("heading", name="mmguard").wait_for()
        return page


@pytest.fixture
def web(browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:  # noqa: F811 (the fixture)
    for name in ("GRADIO_ANALYTICS_ENABLED", "GRADIO_TEMP_DIR"):
        monkeypatch.setenv(name, "")
    # The least that changes pictures and words: what optimisation does is tested elsewhere.
    fast = ProtectConfig(variant="crs", rounds=1, inner_steps=1, pgd_steps=1, top_c=2, trigger_words=2)
    monkeypatch.setattr(jobs, "settings", lambda *_: fast)
    monkeypatch.setattr(jobs, "EXAMPLE", "easy-vqa:train:what:6")
    monkeypatch.setattr(jobs, "EXAMPLE_TEST", "easy-vqa:test:what:6")
    monkeypatch.setattr(jobs, "AuditConfig", lambda seeds: AuditConfig(seeds=seeds, epochs=1, bootstrap=100))
    store = (tmp_path / "store").resolve()
    store.mkdir()
    application, sessions = serve.create(store, Models(attackers=("zoo:llava-tiny",)))
    with serve._listening(0) as listening:
        config = uvicorn.Config(application, log_level="warning", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield Page(f"http://127.0.0.1:{listening.getsockname()[1]}", sessions, browser)
        finally:
            sessions.close_all()
            server.should_exit = True
            thread.join()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "my photos"
    (root / "images").mkdir(parents=True)
    (root / "notes.docx").write_bytes(b"not for you")
    rows = []
    for number, color in enumerate(("red", "blue", "green")):
        (root / "images" / f"{color} {number}.png").write_bytes(picture(color))
        question = EVIL if color == "blue" else "what color is the shape?"
        rows.append({"file_name": f"images/{color} {number}.png", "question": question, "answer": color})
    rows.append({"file_name": "images/none.png", "question": "what?", "answer": "none"})
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def protect(page: Any) -> None:
    page.get_by_role("button", name="Protect", exact=True).click()
    page.get_by_text("Protected and checked").wait_for(timeout=240_000)
    page.locator(".slider-wrap img").first.wait_for()


def downloaded(page: Any, label: str) -> list[str]:
    """The names in the zip file that a button, which may be a link, gives."""
    with page.expect_download() as download:
        page.get_by_role("link", name=label).or_(page.get_by_role("button", name=label)).first.click()
    with zipfile.ZipFile(download.value.path()) as archive:
        return archive.namelist()


@pytest.mark.parametrize("packed", [True, False], ids=["zip", "folder"])
def test_from_a_folder_to_downloads(web: Page, photos: Path, tmp_path: Path, packed: bool) -> None:
    page = web.open()
    if packed:
        with zipfile.ZipFile(tmp_path / "my.zip", "w") as archive:
            for path in photos.rglob("*"):
                archive.write(path, path.relative_to(tmp_path))
        page.locator("input.files").first.set_input_files(tmp_path / "my.zip")
    else:
        page.locator("input.folder").first.set_input_files(photos)
    page.get_by_text("Found: 3 pictures; 3 questions.").wait_for()
    assert page.get_by_text("left out: metadata.jsonl:4: image images/none.png is not in").count() == 1
    assert str(tmp_path) not in page.content()
    protect(page)
    assert page.get_by_text("The largest change of any colour is").count() == 1

    marks = page.locator(".texts mark")
    marks.first.wait_for()
    assert marks.count() == 2
    page.get_by_label("number input for Picture").fill("2")
    page.get_by_label("number input for Picture").press("Enter")
    page.get_by_text(EVIL).wait_for()
    assert page.locator(".texts img").count() == 0

    published = downloaded(page, "may be published")
    assert "protected/images/red 0.png" in published
    assert not [name for name in published if "record" in name]
    assert "private-record/record.json" in downloaded(page, "never publish")
    assert web.wrong == []
    page.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_and_is_readable(web: Page, width: int, tmp_path: Path) -> None:
    page = web.open(width)
    page.get_by_role("button", name="Take the example").click()
    page.get_by_role("status").filter(has_text="The example").first.wait_for()
    protect(page)
    page.get_by_role("button", name="Run the test").click()
    page.locator("iframe.report").wait_for(timeout=240_000)
    page.screenshot(path=tmp_path / f"ui-{width}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    seen = "[...document.querySelectorAll('main *')].filter(e => e.checkVisibility() && e.textContent.trim())"
    assert (
        page.evaluate(f"{seen}.filter(e => parseFloat(getComputedStyle(e).fontSize) < 12).map(e => e.className)") == []
    )
    report = page.frame_locator("iframe.report")
    assert report.get_by_text("No claim follows").count() == 1
    assert report.get_by_role("heading", name="Not tested").count() == 1
    assert page.locator("iframe.report").get_attribute("sandbox") == ""
    for warning in ("Looking is not learning", "This page uses a tiny model"):
        box = page.get_by_text(warning).bounding_box()
        assert box is not None
        assert box["y"] < 900, "who does not scroll does not see it"
    assert web.wrong == []
    page.close()


def test_visitors_see_their_own_files_only_and_they_go_with_them(
    web: Page, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    anna, ben = web.open(), web.open()
    anna.locator("input.folder").first.set_input_files(photos)
    anna.get_by_text("Found: 3 pictures").wait_for()
    ben.get_by_role("button", name="Protect", exact=True).click()
    ben.get_by_text("there are no pictures yet").wait_for()
    assert len(list(web.sessions.store.glob("session-*"))) == 2
    assert not [path for path in web.sessions.store.rglob("*") if path.is_file() and "session-" not in str(path)]
    gone = threading.Event()
    closed = web.sessions.close

    def close(visitor: str | None) -> None:
        closed(visitor)
        gone.set()

    monkeypatch.setattr(web.sessions, "close", close)
    anna.close()
    assert gone.wait(60)
    (left,) = web.sessions.store.glob("session-*")
    assert not any(path.is_file() for path in left.rglob("*"))
    ben.close()


def test_a_refused_upload_says_why(web: Page, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../<b>out</b>.png", picture())
    page = web.open()
    page.locator("input.files").first.set_input_files(tmp_path / "evil.zip")
    page.get_by_role("alert").filter(has_text="leaves the folder").wait_for()
    assert page.locator(".said b").count() == 0
    assert web.wrong == []
    page.close()


def test_stop_ends_a_job(web: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = threading.Event()

    def endless(session: Session, config: ProtectConfig, models: Models, told: Any) -> None:
        while True:
            told(0.5, "Writing")
            begun.set()
            threading.Event().wait(0.05)

    monkeypatch.setattr(app.jobs, "protect_session", endless)
    page = web.open()
    page.get_by_role("button", name="Protect", exact=True).click()
    assert begun.wait(60)
    page.get_by_text("Writing the protected copy").wait_for()
    page.get_by_role("button", name="Stop").first.click()
    page.get_by_text("Stopped. Nothing of it was kept.").wait_for()
    page.close()
