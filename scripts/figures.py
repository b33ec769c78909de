"""Makes the figures of README and site: a protected drawing, what a model sees in it, and charts of docs/results.

`python scripts/figures.py` makes all of them again, on a CPU in a minute.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmguard.config import ProtectConfig
from mmguard.data.readers import read_dataset
from mmguard.demo import before_after
from mmguard.pages.charts import Bars, Chart, Interval, bar_chart, interval_chart
from mmguard.protection.run import protect
from mmguard.trace.masses import trace
from mmguard.trace.page import write
from mmguard.zoo import drawings

DOCS = Path(__file__).parents[1] / "docs"
IMAGES = DOCS / "images"
SURROGATE = "zoo:qwen3vl-tiny"
PICTURES = ("before-after.png", "attention.svg")
"""Those that need a model."""


def drawing() -> None:
    """`PICTURES`: one drawing, protected by the defaults, and what its surrogate sees in it."""
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        data.mkdir()
        image, questions = drawings.scenes(random.Random(11), (256, 256))
        image.save(data / "scene.png")
        row = {"file_name": "scene.png", "question": questions[1].text, "answer": questions[1].answer}
        (data / "metadata.jsonl").write_text(json.dumps(row) + "\n")
        release = protect(
            data, [SURROGATE], ProtectConfig(inner_steps=60), out=Path(scratch) / "release", device="cpu"
        ).path
        released = read_dataset(release).samples[0]
        before_after(data / "scene.png", released.image, IMAGES / "before-after.png", scale=1)
        write(trace(release, data, SURROGATE, device="cpu"), Path(scratch) / "trace")
        (IMAGES / "attention.svg").write_bytes((Path(scratch) / "trace" / "figures" / "map-1.svg").read_bytes())
        print(f"{row['question']} → {released.question}")


def control() -> Chart:
    """What fine-tuning on clean data, control and release is worth to each attacker, for one release."""
    audit = next(_audits(DOCS / "results" / "laboratory.json"))["audit"]
    bars = [
        Bars(found["attacker"], {arm: 100 * found["accuracy"][arm] for arm in ("clean", "control", "release")})
        for found in audit["findings"]
    ]
    return bar_chart(bars, "accuracy in percent", "Accuracy after fine-tuning on clean data, control and release.", "")


def gain_removed() -> Chart:
    """G of every task and variant, in the mean over attackers."""
    return interval_chart(list(removed()), "G", "Gain removed, with its interval, by task and variant.", "")


def removed() -> Iterator[Interval]:
    """The headline of every audit in the black box."""
    for one in _audits(DOCS / "results.json"):
        if one["settings"]["group"] != "black box":
            continue
        task = one["settings"]["dataset"].partition(":train")[0]
        yield Interval(f"{task}, {one['settings']['protect.variant']}", **one["audit"]["headline"]["gain_removed"])


def _audits(file: Path) -> Iterator[dict[str, Any]]:
    """The experiments of a file that `mmguard bench` wrote."""
    yield from json.loads(file.read_text(encoding="utf-8"))["experiments"]


CHARTS = {"control.svg": control, "gain-removed.svg": gain_removed}
"""Those that need no model, by file."""

if __name__ == "__main__":
    for name, chart in CHARTS.items():
        (IMAGES / name).write_bytes(chart().svg)
    drawing()
