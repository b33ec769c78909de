"""Makes docs/images/before-after.png: one drawing, protected by the defaults."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path

from mmguard.data.readers import read_dataset
from mmguard.demo import before_after
from mmguard.protection.run import protect
from mmguard.zoo import drawings

TARGET = Path(__file__).parents[1] / "docs" / "images" / "before-after.png"

with tempfile.TemporaryDirectory() as scratch:
    data = Path(scratch) / "data"
    data.mkdir()
    image, questions = drawings.scenes(random.Random(11), (256, 256))
    image.save(data / "scene.png")
    row = {"file_name": "scene.png", "question": questions[1].text, "answer": questions[1].answer}
    (data / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    release = protect(data, ["zoo:qwen3vl-tiny"], out=Path(scratch) / "release", device="cpu")
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    released = read_dataset(release.path).samples[0]
    before_after(data / "scene.png", released.image, TARGET, scale=1)
    print(f"{row['question']} → {released.question}")
