"""Pages show what they are given as text, whatever it says, and hold everything that they show."""

from __future__ import annotations

import base64
from dataclasses import replace
from io import BytesIO
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from mmguard.pages.charts import (
    Bars,
    Chart,
    Heat,
    Interval,
    Line,
    bar_chart,
    dose_chart,
    heat_chart,
    interval_chart,
    line_chart,
)
from mmguard.pages.pictures import difference, png_uri
from mmguard.pages.render import cell, inline


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("**Attackers lose** *much* `x<y`", "<strong>Attackers lose</strong> <em>much</em> <code>x&lt;y</code>"),
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("[a](javascript:x) ![b](http://c/d.png)", "[a](javascript:x) ![b](http://c/d.png)"),
    ],
)
def test_inline_markdown(text: str, html: str) -> None:
    assert inline(text) == html


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("30.0 (-24.1 to 36.0)", '<td class="number">30.0<br><small>-24.1 to 36.0</small></td>'),
        ("–", '<td class="number">–</td>'),
        ("0.5", '<td class="number">0.5</td>'),
        ("4x4 <b>", "<td>4x4 &lt;b&gt;</td>"),
    ],
)
def test_cells(text: str, html: str) -> None:
    assert cell(text) == html


def _charts() -> list[Chart]:
    name = "a$b$ <script>alert(1)</script> --> & more"
    line = Line(name, [1, 2, 4], [0.1, 0.2, 0.3], [0.0, 0.1, 0.2], [0.2, 0.3, 0.4])
    boxes = np.array([[0, 0, 0.5, 1], [np.nan] * 4, [0.5, 0, 1, 1]])
    heat = Heat(name, np.zeros((4, 8, 3), np.uint8), boxes, np.array([0.1, 0.9, 0.3]), np.array([True, True, False]))
    return [
        bar_chart([Bars(name, {"clean": 80, name: 20}, 10), Bars(name, {"release": 1})], "percent", name, name),
        heat_chart([heat, heat], name, name),
        interval_chart([Interval(name, 3, -1, 7)], "points", name, name),
        line_chart([line, line], "eps", "G", name, name),
        line_chart([line, line], "step", "loss", name, name, log=True),
        dose_chart([line, line], "eps", "G", name, name),
        dose_chart([replace(line, x=[1, 2, 16])], "eps", "G", name, name),
    ]


def test_charts_are_reproducible_and_without_scripts() -> None:
    first = _charts()
    for one, again in zip(first, _charts(), strict=True):
        assert one == again
        assert one.address.startswith("data:image/svg+xml;base64,")
        assert b"mathdefault" not in one.svg  # how ticks of a logarithmic axis read if nobody sets them
        root = ElementTree.fromstring(one.svg)
        assert not [element for element in root.iter() if element.tag.endswith("script")]
        links = [value for element in root.iter() for key, value in element.attrib.items() if key.endswith("href")]
        assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)
    assert len({one.svg for one in first}) == 7


def test_difference_is_enlarged_around_gray() -> None:
    before = torch.full((3, 1, 3), 100, dtype=torch.uint8)
    after = before + torch.tensor([0, 2, 255 - 100], dtype=torch.uint8)
    assert difference(before, after)[0, 0].tolist() == [128, 160, 255]


@pytest.mark.parametrize(("size", "shown"), [((40, 30), (40, 30)), ((800, 400), (384, 192))])
def test_pictures_are_themselves_unless_large(size: tuple[int, int], shown: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    kind, _, content = png_uri(torch.from_numpy(pixels).permute(2, 0, 1)).partition(",")
    assert kind == "data:image/png;base64"
    image = Image.open(BytesIO(base64.b64decode(content)))
    assert image.size == shown
    if size == shown:
        assert (np.asarray(image) == pixels).all()
