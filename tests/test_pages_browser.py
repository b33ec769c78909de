"""The pages in a real browser, at the width of a desktop and of a phone.

Needs `pip install playwright` and a Chromium: Playwright's own (`playwright install chromium`) or the system's.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmguard.auditing.html import shown, to_html
from mmguard.auditing.losses import loss_curve
from mmguard.bench import html as bench_html
from mmguard.config import ProtectConfig
from mmguard.protection.preview import preview
from mmguard.protection.run import protect
from mmguard.trace.masses import trace
from mmguard.trace.page import write
from test_audit_html import EVIL, report, samples  # noqa: F401 (a fixture)
from test_bench_html import filled, sweep

pytestmark = pytest.mark.slow
LONG = "an-organisation/a-model-with-a-name-that-takes-more-room-than-there-is-on-any-phone-7B-Instruct"
DATA = "easy-vqa:train:what:3"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with playwright.sync_playwright() as p:
        own = Path(p.chromium.executable_path)
        path = own if own.is_file() else shutil.which("chromium") or shutil.which("google-chrome")
        if path is None:
            pytest.skip("no Chromium: playwright install chromium")
        opened = p.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def audit(tmp_path: Path, samples: list) -> Path:  # noqa: F811 (the fixture)
    rng = np.random.default_rng(0)
    arms = ("clean", "release", "control")
    curves = [loss_curve(LONG, "lora", arm, np.exp(-rng.random((3, 80))).tolist()) for arm in arms]
    found = report("zoo:a", LONG, EVIL, warnings=(EVIL,), provenance={"hash": "ab" * 64}, losses=tuple(curves))
    path = tmp_path / "report.html"
    path.write_text(to_html(found, shown(samples)), encoding="utf-8")
    return path


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    path = tmp_path / "results.html"
    path.write_text(bench_html.to_html(filled(sweep(eps=[1, 2, 4, 8]))), encoding="utf-8")
    return path


@pytest.fixture
def traced(tmp_path: Path) -> Path:
    release = protect(
        DATA, ["zoo:qwen3vl-tiny"], ProtectConfig(variant="multimodal", rounds=1, inner_steps=1), tmp_path / "r"
    ).path
    write(trace(release, DATA, "zoo:qwen3vl-tiny"), tmp_path)
    return tmp_path / "trace.html"


@pytest.fixture
def previewed(tmp_path: Path) -> Path:
    config = ProtectConfig(variant="random-words")
    return preview(DATA, ["zoo:qwen3vl-tiny"], config, tmp_path / "preview", samples=3).page


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("page", ["audit", "bench", "traced", "previewed"])
def test_page_fits_loads_everything_and_runs_nothing(
    browser: Any, page: str, width: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(page)
    said: list[str] = []
    opened = browser.new_page(viewport={"width": width, "height": 900})
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    opened.on(
        "request", lambda asked: None if asked.url.startswith((path.as_uri(), "data:")) else said.append(asked.url)
    )
    opened.goto(path.as_uri())
    opened.screenshot(path=tmp_path / f"{page}-{width}.png", full_page=True)
    assert said == []
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    images = "[...document.images].map(image => image.complete && image.naturalWidth > 0 && image.alt !== '')"
    loaded = opened.evaluate(images)
    assert loaded
    assert all(loaded)
    # Whatever is wider than the page lies in a box that scrolls, and no text is smaller than 12 pixels.
    tables = "[...document.querySelectorAll('table')].every(table => table.parentElement.className === 'scroll')"
    assert opened.evaluate(tables)
    small = "[...document.querySelectorAll('body *')].filter(e => parseFloat(getComputedStyle(e).fontSize) < 12)"
    assert opened.evaluate(f"{small}.length") == 0
    opened.close()
