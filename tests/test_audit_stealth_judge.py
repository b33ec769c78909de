"""Blind judging: what is asked, what is read, and an endpoint that behaves and misbehaves, on 127.0.0.1."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmguard.auditing.arms import Pairing, pair
from mmguard.auditing.stealth_judge import DIMENSIONS, KEY_VARIABLE, JudgeConfig, Question, judge, parse, questions
from mmguard.data.readers import read_dataset
from mmguard.errors import ConfigError, DataError

IMAGES = 12


def rating(altered: str, a: int = 3, b: int = 3) -> dict[str, Any]:
    return {"A": dict.fromkeys(DIMENSIONS, a), "B": dict.fromkeys(DIMENSIONS, b), "altered": altered}


@pytest.fixture(scope="module")
def pairing(tmp_path_factory: pytest.TempPathFactory) -> Pairing:
    """JPEGs with two questions each; the release brightens them and adds a word, but leaves the last as it was."""
    root = tmp_path_factory.mktemp("judged")
    for name in ("original", "release"):
        (root / name / "images").mkdir(parents=True)
    old, new = [], []
    for number in range(IMAGES):
        pixels = np.random.default_rng(number).integers(0, 200, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "original" / "images" / f"{number}.jpg")
        decoded = np.asarray(Image.open(root / "original" / "images" / f"{number}.jpg"))
        changed = decoded if number == IMAGES - 1 else decoded.clip(0, 250) + np.uint8(5)
        Image.fromarray(changed).save(root / "release" / "images" / f"{number}.png")
        for question in ("is it red?", "what is it?"):
            row = {"question": question, "answer": "yes"}
            old.append({"file_name": f"images/{number}.jpg", **row})
            if number < IMAGES - 1:
                row = {**row, "question": f"{question} zebra"}
            new.append({"file_name": f"images/{number}.png", **row})
    for name, rows in (("original", old), ("release", new)):
        (root / name / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return pair(read_dataset(root / "release"), read_dataset(root / "original"))


class Server:
    """An endpoint whose replies a test decides, and what it was sent."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.reply: Callable[[dict[str, Any]], tuple[int, Any]] = lambda body: (200, rating("A"))
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
                outer.requests.append(body)
                outer.headers.append(dict(self.headers))
                outer.paths.append(self.path)
                status, said = outer.reply(body)
                if status == 200:
                    content = said if isinstance(said, str) else json.dumps(said)
                    said = {"choices": [{"message": {"role": "assistant", "content": content}}]}
                data = said.encode() if isinstance(said, str) else json.dumps(said).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                if status == 302:
                    self.send_header("Location", said)
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST  # noqa: N815 (a name of http.server)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr("mmguard.auditing.chat_api._PAUSE", 0.0)
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    found = Server()
    yield found
    found.close()


def texts(body: dict[str, Any]) -> list[str]:
    return [part["text"] for part in body["messages"][0]["content"] if part["type"] == "text"]


def urls(body: dict[str, Any]) -> list[str]:
    return [part["image_url"]["url"] for part in body["messages"][0]["content"] if part["type"] == "image_url"]


def picture(url: str) -> np.ndarray:
    head, _, data = url.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def altered_side(body: dict[str, Any]) -> str:
    return "A" if "zebra" in texts(body)[2] else "B"


# What is asked


def test_every_changed_image_is_asked_about_once(pairing: Pairing) -> None:
    asked = questions(pairing, 50)
    assert sorted(one.original.image.stem for one in asked) == sorted(str(n) for n in range(IMAGES - 1))
    assert len({one.id for one in asked}) == IMAGES - 1
    assert {one.altered for one in asked} == {"A", "B"}
    assert len(questions(pairing, 4)) == 4
    assert asked == questions(pairing, 50)
    orders = {
        tuple(one.altered for one in sorted(questions(pairing, 50, seed), key=lambda q: q.id)) for seed in range(5)
    }
    assert len(orders) > 1


def test_a_request_shows_both_versions_alike(pairing: Pairing) -> None:
    for one in questions(pairing, 50):
        body = one.request("judge-1")
        assert body["model"] == "judge-1"
        assert altered_side(body) == one.altered
        shown = dict(zip("AB", map(picture, urls(body)), strict=True))
        other = "B" if one.altered == "A" else "A"
        np.testing.assert_array_equal(shown[one.altered], np.asarray(Image.open(one.released.image)))
        np.testing.assert_array_equal(shown[other], np.asarray(Image.open(one.original.image)))
        assert "zebra" not in texts(body)[2 if other == "A" else 4]
        # Nothing but pixels and text: no file name, suffix or id.
        said = "".join(texts(body))
        assert not any(hint in said for hint in (".jpg", ".png", "release/", "original/", one.id))


def test_the_name_of_a_question_says_nothing(pairing: Pairing) -> None:
    one = questions(pairing, 1)[0]
    swapped = Pairing([(one.released, one.original)], pairing.digests)
    assert questions(swapped, 1)[0].id == one.id


def test_sheet_and_key(pairing: Pairing, tmp_path: Path) -> None:
    sheet = tmp_path / "new" / "sheet.jsonl"
    assert judge(pairing, JudgeConfig(sheet, pairs=5)) is None
    lines = [json.loads(line) for line in sheet.read_text().splitlines()]
    key = json.loads((tmp_path / "new" / "sheet.key.json").read_text())
    assert [line["custom_id"] for line in lines] == list(key)
    assert len(lines) == 5
    for line in lines:
        assert (line["method"], line["url"]) == ("POST", "/v1/chat/completions")
        assert set(line["body"]) == {"messages"}
        assert key[line["custom_id"]]["altered"] == altered_side(line["body"])


# What a judge says


def test_a_judge_who_sees_it(pairing: Pairing, server: Server) -> None:
    def reply(body: dict[str, Any]) -> tuple[int, Any]:
        side = altered_side(body)
        return 200, rating(side, **{side.lower(): 1})

    server.reply = reply
    found = judge(pairing, JudgeConfig(url=server.url, model="judge-1"))
    assert found is not None
    assert (found.pairs, found.usable, found.problem) == (IMAGES - 1, IMAGES - 1, None)
    assert found.detected is not None
    assert found.detected.value == 1
    assert 0.5 < found.detected.low < 1
    for score in found.scores.values():
        assert (score.original.value, score.released.value, score.difference.value) == (3, 1, -2)
    assert set(server.paths) == {"/v1/chat/completions"}
    assert {body["model"] for body in server.requests} == {"judge-1"}


def test_a_judge_who_always_says_a(pairing: Pairing, server: Server) -> None:
    found = judge(pairing, JudgeConfig(url=server.url, model="m"))
    assert found is not None
    share = np.mean([one.altered == "A" for one in questions(pairing, 50)])
    assert found.detected is not None
    assert found.detected.value == pytest.approx(share)
    assert found.detected.low < 0.5 < found.detected.high


def test_unusable_replies_are_counted_and_not_guessed(pairing: Pairing, server: Server) -> None:
    server.reply = lambda body: (200, rating("B") if altered_side(body) == "B" else "I cannot tell.")
    found = judge(pairing, JudgeConfig(url=server.url, model="m"))
    assert found is not None
    assert found.usable == sum(one.altered == "B" for one in questions(pairing, 50))
    assert 0 < found.usable < found.pairs
    assert found.problem is not None
    assert "I cannot tell." in found.problem


def test_a_busy_server_is_asked_again(pairing: Pairing, server: Server) -> None:
    busy = [429, 503, 500]
    server.reply = lambda body: (busy.pop(), "busy") if busy else (200, rating("A"))
    found = judge(pairing, JudgeConfig(url=server.url, model="m", pairs=1))
    assert found is not None
    assert (found.usable, len(server.requests)) == (1, 4)


def test_a_refusal_is_final_and_the_key_is_kept(
    pairing: Pairing, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "sk-secret")
    server.reply = lambda body: (401, "no such key: sk-secret")
    sheet = tmp_path / "sheet.jsonl"
    found = judge(pairing, JudgeConfig(sheet, server.url, "m", pairs=2))
    assert found is not None
    assert (found.usable, found.detected, found.scores) == (0, None, {})
    assert found.problem == "HTTP 401 Unauthorized: no such key: ***"
    assert len(server.requests) == 2
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer sk-secret"}
    assert not any("sk-secret" in path.read_text() for path in tmp_path.iterdir())


def test_the_key_goes_to_no_other_host(pairing: Pairing, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "sk-secret")
    other = Server()
    server.reply = lambda body: (302, other.url)
    judge(pairing, JudgeConfig(url=server.url, model="m", pairs=1))
    other.close()
    assert "Authorization" in server.headers[0]
    assert len(other.headers) == 1
    assert "Authorization" not in other.headers[0]


def test_no_server(pairing: Pairing, server: Server) -> None:
    server.close()
    found = judge(pairing, JudgeConfig(url=server.url, model="m", pairs=1))
    assert found is not None
    assert found.usable == 0
    assert found.problem is not None
    assert "refused" in found.problem


def test_a_server_that_speaks_otherwise(pairing: Pairing, server: Server) -> None:
    server.reply = lambda body: (201, {"answer": 42})
    found = judge(pairing, JudgeConfig(url=server.url + "/chat/completions", model="m", pairs=1))
    assert found is not None
    assert found.usable == 0
    assert server.paths == ["/v1/chat/completions"]


@pytest.mark.parametrize("form", ["batch", "text", "object"])
def test_replies_from_a_file(pairing: Pairing, tmp_path: Path, form: str) -> None:
    asked = questions(pairing, 50)

    def line(one: Question) -> dict[str, Any]:
        said = rating(one.altered)
        message = {"choices": [{"message": {"content": json.dumps(said)}}]}
        forms: dict[str, dict[str, Any]] = {
            "batch": {"response": {"status_code": 200, "body": message}, "error": None},
            "text": {"reply": f"Well: {json.dumps(said)}"},
            "object": {"reply": said},
        }
        return {"custom_id": one.id, **forms[form]}

    path = tmp_path / "replies.jsonl"
    path.write_text("\n".join(json.dumps(line(one)) for one in asked[1:]))
    found = judge(pairing, JudgeConfig(replies=path))
    assert found is not None
    assert (found.pairs, found.usable, found.problem) == (IMAGES - 1, IMAGES - 2, "no reply in the file")
    assert found.detected is not None
    assert found.detected.value == 1


def test_replies_to_other_questions(pairing: Pairing, tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    path.write_text('{"custom_id": "pair-0", "reply": ""}\n{"custom_id": 3}\n{"custom_id": "x", "response": 3}\n{')
    with pytest.raises(DataError, match=r"answers none of the 11 questions: give the release"):
        judge(pairing, JudgeConfig(replies=path))


@pytest.mark.parametrize(
    ("reply", "altered"),
    [
        (json.dumps(rating("B")), "B"),
        (f"```json\n{json.dumps(rating('A'), indent=2)}\n```", "A"),
        (f"<think>{json.dumps(rating('A'))} or {{</think> {json.dumps(rating('B'))} done", "B"),
        (json.dumps(rating("C")), None),
        (json.dumps(rating("A", b=4)), None),
        (json.dumps({**rating("A"), "B": {}}), None),
        ('{"altered": ["A"], "A": 3}', None),
        ("", None),
        ('{"a":' * 100_000, None),
    ],
)
def test_parse(reply: str, altered: str | None) -> None:
    found = parse(reply)
    assert (found and found["altered"]) == altered


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "http://h/v1"}, "give --judge-model"),
        ({"url": "file:///etc/passwd", "model": "m"}, "give the address of an OpenAI-compatible API"),
        ({"url": "localhost:8000", "model": "m"}, "give the address of an OpenAI-compatible API"),
        ({"url": "http://h/v1", "model": "m", "replies": Path("r")}, "exclude each other"),
        ({"replies": Path("no-such-file")}, "no-such-file: no such file"),
        ({"pairs": 0}, "judge-pairs 0: give 1 or more"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        JudgeConfig(**settings)
