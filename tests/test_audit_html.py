"""The audit's page: complete in itself, whatever is missing, and safe whatever the data says."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmguard.auditing.html import shown, to_html
from mmguard.auditing.report import AuditReport, Failure
from mmguard.auditing.stats import Scores, analyse
from mmguard.types import Sample
from test_audit_report import _attacked, _mixed

EVIL = "<script>alert(1)</script><img src=http://evil/x onerror=alert(2)>"


def report(*attackers: str, control: bool = True, **more: Any) -> AuditReport:
    def arm(share: float) -> np.ndarray:
        return np.tile((np.arange(40) < round(40 * share)).astype(float), (3, 1))

    by_arm = {"clean": arm(0.8), "release": arm(0.5)} | ({"control": arm(0.8)} if control else {})
    scores = [Scores(name, "lora", by_arm, arm(0.2)[0], "control") for name in attackers]
    findings, headline = analyse(scores, resamples=100)
    return AuditReport(headline, tuple(findings), **more)


class Page(HTMLParser):
    """The elements of a page that load or run something, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not [name for name, _ in attrs if name.startswith("on")]
        assert not [value for name, value in attrs if name in ("src", "href") and not (value or "").startswith("data:")]
        if tag == "img":
            self.images.append(dict(attrs))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def samples(tmp_path: Path) -> list[tuple[Sample, Sample]]:
    pairs = []
    for number in range(4):
        paths = [tmp_path / f"{number}-{name}.png" for name in ("before", "after")]
        for place, path in enumerate(paths):
            Image.new("RGB", (8, 8), (100 + place, 40 * number, 0)).save(path)
        for turn in range(2):
            question = f"what is {EVIL} here?"
            ours = Sample(f"{number}#{turn}", number, paths[0], question, "a cup", turn=turn)
            pairs.append((ours, Sample(ours.id, number, paths[1], f"{question} river stone", "a cup", turn=turn)))
    return pairs


def test_everything_is_shown(samples: list[tuple[Sample, Sample]]) -> None:
    found = report(
        "zoo:a", "b", failures=(Failure("c", "no such model"),), warnings=("leaked",),
        provenance={"versions": {"trl": "1.0"}, "seeds": [0, 1, 2]},
    )  # fmt: skip
    html = to_html(found, shown(samples))
    page = Page(html)
    text = " ".join(page.text.split())
    parts = [
        "Attackers lose 30.0 points", "leaked", "What attackers learn", "beyond control", "50.0", "no such model",
        "0#0", "1#0", "2#0", found.not_tested[0], "versions", "trl 1.0",
    ]  # fmt: skip
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    assert "3#0" not in text
    assert "0#1" not in text
    assert html.count("<mark>") == 6
    assert "<mark>river</mark> <mark>stone</mark> → a cup" in html
    assert len(page.images) == 2 + 3 * 3
    assert all(image["alt"] for image in page.images)
    assert "zoo:a (lora): clean 80.0, release 50.0, control 80.0" in str(page.images[0]["alt"])
    assert "details" in page.tags
    assert html.index("<details>") > html.index("Not tested")


def test_nothing_that_the_data_says_runs_or_loads(samples: list[tuple[Sample, Sample]]) -> None:
    found = report(
        EVIL, failures=(Failure(EVIL, EVIL),), warnings=(EVIL,), not_tested=(EVIL,), provenance={EVIL: {EVIL: EVIL}}
    )
    html = to_html(found, shown(samples))
    page = Page(html)  # which checks every address and attribute
    assert "script" not in page.tags
    assert page.text.count(EVIL) >= 9
    assert not re.search(r"url\(|@import", html)


@pytest.mark.parametrize(
    ("found", "said", "images"),
    [
        (report("a", control=False), "The matched control was not run", 1),
        (report(failures=(Failure("a", "broke"),)), "No attacker finished", 0),
        (report(), "No attacker finished", 0),
    ],
)
def test_what_is_missing_is_left_out(found: AuditReport, said: str, images: int) -> None:
    page = Page(to_html(found))
    assert said in page.text
    assert len(page.images) == images
    assert "Before and after" not in page.text


def test_attacks_have_a_section_with_a_chart() -> None:
    html = to_html(_attacked(0.7))
    page = Page(html)
    section = page.text[page.text.index("Under attack") : page.text.index("Not tested")]
    assert "big chose lora for clean, lora for the control, lora under gray for release" in section
    assert "Best of" in section
    assert len(page.images) == 3
    alt = str(page.images[2]["alt"])
    assert "big (lora) under gray: 10.0 (" in alt
    assert "big (lora) under jpeg-50: 40.0 (" in alt
    assert "best of" in alt
    assert "Under attack" not in to_html(report("a"))


def test_several_mixtures_have_a_dose_curve() -> None:
    page = Page(to_html(_mixed((80, 20, 50))))
    assert "Mixed with clean data" in page.text
    (alt,) = (str(image["alt"]) for image in page.images if "clean part" in str(image["alt"]))
    assert "big (lora). unprotected: 40 at 20, 25 at 50, 10 at 80; control: 40 at 20," in alt
    assert "release: 0 at 20, 0 at 50, 0 at 80." in alt
    assert not [image for image in Page(to_html(_mixed((20,)))).images if "clean part" in str(image["alt"])]


def test_captions_have_no_question(samples: list[tuple[Sample, Sample]]) -> None:
    ours = Sample("x", 0, samples[0][0].image, None, "a river")
    (only,) = shown([(ours, Sample("x", 0, samples[0][1].image, None, "a river"))])
    assert only.question is None
    assert "the text is the answer, and stays" in to_html(report("a"), [only])


def test_the_same_report_gives_the_same_page(samples: list[tuple[Sample, Sample]]) -> None:
    assert to_html(report("a"), shown(samples)) == to_html(report("a"), shown(samples))
