"""The web page under load: twenty visitors at once, over HTTP as browsers speak it, with a server of its own."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import secrets
import signal
import tempfile
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip(
    "gradio", reason="Gradio holds Pillow below 13: try the page with an environment of its own, mmguard[test,ui]"
)

import httpx
import torch
from PIL import Image

from mmguard.config import ProtectConfig
from mmguard.ui import jobs, serve
from mmguard.ui.jobs import Models

pytestmark = pytest.mark.slow

VISITORS, WAVES = 20, 6
PATIENCE = 600.0
"""Seconds that a visitor waits for an answer."""
GROWTH = 1.05
"""Of the server's memory, from the first wave on. Measured: 1197, 1212, 1219, 1210, 1209, 1206 MB; before threads
shared their memory, 1261, 1321, 1415 MB, which is refused."""


def _serve(folder: Path, address: Connection) -> None:
    """The server as `mmguard ui` starts it; strong protections optimise a little, others change pictures at random."""
    tempfile.tempdir = str(folder)
    torch.set_num_threads(1)
    little = ProtectConfig(variant="crs", rounds=1, inner_steps=1, pgd_steps=1, top_c=2, trigger_words=2)
    jobs.settings = lambda strength, *_: little if strength == "strong" else ProtectConfig(variant="random-noise")
    serve.serve(Models(), 0, False, address.send)


@dataclass
class Server:
    address: str
    folder: Path
    process: psutil.Process
    functions: dict[str, dict[str, Any]]

    @property
    def store(self) -> Path:
        (store,) = self.folder.glob("mmguard-ui-*")
        return store


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(tmp_path, theirs))
    process.start()
    try:
        assert ours.poll(PATIENCE)
        address = ours.recv()
        for _ in range(100):
            try:
                config = httpx.get(f"{address}/config").json()
                break
            except httpx.TransportError:
                time.sleep(0.1)
        functions = {one["api_name"]: one for one in config["dependencies"]}
        yield Server(address, tmp_path, psutil.Process(process.pid), functions)
        os.kill(process.pid or 0, signal.SIGTERM)
        process.join(30)
        assert not list(tmp_path.glob("mmguard-ui-*")), "files outlived the server"
    finally:
        process.kill()
        process.join()


@dataclass
class Visitor:
    """What a browser does, and keeps."""

    number: int
    server: Server
    name: str = field(default_factory=lambda: secrets.token_hex(8))
    waited: list[int] = field(default_factory=list)
    """Places in the queue that the page told of."""

    def __post_init__(self) -> None:
        # The server ends a connection that was idle for five seconds: one that is used just then would be refused.
        limits = httpx.Limits(keepalive_expiry=1)
        self.http = httpx.Client(base_url=self.server.address, timeout=PATIENCE, limits=limits)
        # What a page holds open for as long as it is open.
        beat = self.http.build_request("GET", f"/gradio_api/heartbeat/{self.name}")
        self._open = self.http.send(beat, stream=True)

    def leave(self) -> None:
        self._open.close()
        self.http.close()

    def upload(self, content: dict[str, bytes]) -> list[list[str]]:
        files = [("files", (Path(name).name, data)) for name, data in content.items()]
        reply = self.http.post("/upload", files=files)
        assert reply.status_code == 200, reply.text
        return [[name, path] for name, path in zip(content, reply.json(), strict=True)]

    def press(self, function: str, *data: Any, event: Any = None) -> None:
        """Presses a button."""
        body = {
            "data": list(data),
            "fn_index": self.server.functions[function]["id"],
            "session_hash": self.name,
            "event_data": event,
        }
        joined = self.http.post("/gradio_api/queue/join", json=body)
        assert joined.status_code == 200, joined.text

    def call(self, function: str, *data: Any, event: Any = None) -> list[Any]:
        """Presses a button, and waits until the page has its answer."""
        self.press(function, *data, event=event)
        with self.http.stream("GET", "/gradio_api/queue/data", params={"session_hash": self.name}) as messages:
            for line in messages.iter_lines():
                said = json.loads(line.removeprefix("data: ")) if line else {}
                if said.get("msg") == "estimation":
                    self.waited.append(said["rank"])
                if said.get("msg") == "process_completed":
                    assert said["success"], said
                    return said["output"]["data"]
        raise AssertionError("the page was given no answer")

    def fetch(self, path: str) -> httpx.Response:
        return self.http.get(f"/gradio_api/file={path}")


def photos(number: int) -> dict[str, bytes]:
    """Two pictures that nobody else has, and one that all have."""
    content, rows = {}, []
    for name, color in (("a", (number, 0, 90)), ("b", (90, number, 0)), ("same", (7, 7, 7))):
        file = io.BytesIO()
        Image.new("RGB", (32, 32), color).save(file, "PNG")
        content[f"my/images/{name}.png"] = file.getvalue()
        answer = "gray" if name == "same" else f"owner {number}"
        rows.append({"file_name": f"images/{name}.png", "question": "what color is the shape?", "answer": answer})
    content["my/metadata.jsonl"] = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return content


def paths(answer: Any) -> list[str]:
    """The files that an answer of the page names."""
    if isinstance(answer, dict):
        return [answer["path"]] if isinstance(answer.get("path"), str) else paths(list(answer.values()))
    return [path for part in answer for path in paths(part)] if isinstance(answer, list) else []


def visit(visitor: Visitor) -> list[str]:
    """From an upload to downloads; the files that the visitor was given."""
    sent = visitor.upload(photos(visitor.number))
    found = visitor.call("_take", event={"files": sent})
    assert "Found: 3 pictures; 3 questions." in found[0], found
    made = visitor.call("_protect", "strong" if visitor.number % 40 == 0 else "standard", "crs")
    assert "Protected and checked: 3 pictures" in made[0], made[0]
    shown = visitor.call("_look", 2)
    given = [path for path in dict.fromkeys(paths(made) + paths(shown)) if visitor.server.folder.name in path]
    assert len(given) == 2 * 3 + 2, given
    for path in given:
        assert visitor.fetch(path).status_code == 200
    (release,) = [path for path in given if path.endswith("protected.zip")]
    with zipfile.ZipFile(io.BytesIO(visitor.fetch(release).content)) as archive:
        rows = [json.loads(line) for line in archive.read("protected/metadata.jsonl").splitlines()]
        assert [row["answer"] for row in rows] == [f"owner {visitor.number}"] * 2 + ["gray"]
        with Image.open(archive.open("protected/images/a.png")) as image:
            red, _, blue = image.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
        assert abs(red - visitor.number) <= 8
        assert abs(blue - 90) <= 8
    return given


def change_mind(visitor: Visitor) -> None:
    """Has a protection wait, and closes the page."""
    visitor.call("_take", event={"files": visitor.upload(photos(visitor.number))})
    visitor.press("_protect", "standard", "crs")
    visitor.leave()


def queue(visitors: list[Visitor]) -> list[int]:
    """All places in the queue that the page told of, from 0."""
    return [rank for visitor in visitors for rank in visitor.waited]


def test_twenty_visitors_at_once(server: Server) -> None:
    memory = []
    for wave in range(WAVES):
        began = time.monotonic()
        visitors = [Visitor(10 * number, server) for number in range(VISITORS)]
        with ThreadPoolExecutor(VISITORS + 2) as pool:
            left = [pool.submit(change_mind, Visitor(250, server)) for _ in range(2)]
            given = list(pool.map(visit, visitors))
            for one in left:
                one.result()
        print(f"wave {wave}: {time.monotonic() - began:.0f} s, longest queue {max(queue(visitors))}")
        folders = [{Path(path).relative_to(server.store).parts[0] for path in files} for files in given]
        assert all(len(own) == 1 for own in folders)
        assert len(set.union(*folders)) == VISITORS, "two visitors share a folder"
        for folder in (server.store, *(server.store / name for own in folders for name in own)):
            assert visitors[0].fetch(str(folder)).status_code in (403, 404), "a list of files"
        assert max(queue(visitors)) > VISITORS / 2, "who waits is told"
        for visitor in visitors:
            visitor.leave()
        for _ in range(300):
            if not (left_over := os.listdir(server.store)):
                break
            time.sleep(0.1)
        assert left_over == [], "files outlived their visitors"
        memory.append(server.process.memory_info().rss / 2**20)
        print(f"wave {wave}: {memory[-1]:.0f} MB")
    assert max(memory) < GROWTH * memory[0]
