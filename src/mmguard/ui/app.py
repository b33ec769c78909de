"""The page itself: what is on it, and which job each button does."""

from __future__ import annotations

import html
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import gradio as gr
from fastapi import FastAPI

from mmguard.config import Variant
from mmguard.errors import DataError, MMGuardError
from mmguard.pages.pictures import AMPLIFIED
from mmguard.pages.render import texts
from mmguard.runtime.memory import release_memory
from mmguard.types import Dataset
from mmguard.ui import jobs
from mmguard.ui.jobs import Models, Teller
from mmguard.ui.sessions import MOST, Session, Sessions, Stopped
from mmguard.ui.uploads import LIMITS, PICTURES, TEXTS, Unpacked, discard
from mmguard.ui.words import EFFORTS, FORMATS, NOT_PROTECTED, STRENGTHS, VARIANTS, ZOO_WARNING

_log = logging.getLogger(__name__)
_LISTED = 5
"""Files that a message names."""
_BUTTON: dict[str, Any] = {"api_visibility": "private"}
"""Buttons are for people, not for programs."""
_WORK: dict[str, Any] = {**_BUTTON, "concurrency_id": "work", "concurrency_limit": 1}
"""One job at a time, whoever asks for it: two would not be faster."""


def mount(app: FastAPI, sessions: Sessions, models: Models) -> FastAPI:
    """Puts the page at the root of an application."""
    return gr.mount_gradio_app(
        app,
        _Page(sessions, models).blocks,
        path="/",
        server_name="127.0.0.1",
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        ssr_mode=False,
        show_error=False,
        max_file_size=LIMITS.total_bytes,
        # Fonts of the system: Gradio's own themes may fetch theirs.
        theme=gr.themes.Default(
            primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
        ),
        css=_asset("page.css"),
    )


class _Page:
    """The page's parts, and what they do."""

    def __init__(self, sessions: Sessions, models: Models) -> None:
        self._sessions, self._models = sessions, models
        with gr.Blocks(title="mmguard", analytics_enabled=False) as self.blocks:
            self._introduce()
            self._ask()
            with gr.Column(visible=False) as self.result:
                self._show_result()
                self._ask_for_audit()
            self._connect()
        # An upload and a job of everyone who is there may wait.
        self.blocks.queue(default_concurrency_limit=1, max_size=2 * MOST, api_open=False)

    def _introduce(self) -> None:
        gr.Markdown(
            "# mmguard\nProtect pictures with text from being used to train AI models. Everything happens on this "
            "computer: nothing is sent anywhere, and what you drop here is deleted when you close the page."
        )
        with gr.Column(elem_classes="limits"):
            limits = "\n".join(f"- {line}" for line in NOT_PROTECTED)
            warning = f"\n\n{ZOO_WARNING}" if self._models.surrogate.startswith("zoo:") else ""
            gr.Markdown(f"## What this does not protect against\n{limits}{warning}")

    def _ask(self) -> None:
        gr.Markdown("## 1. Your pictures")
        self.dropped = _drop_zone("Drop a folder or a zip file with your pictures here")
        self.example = gr.Button("No pictures at hand? Take the example: 60 small drawings", size="md")
        with gr.Accordion("What can be in it?", open=False):
            gr.Markdown(FORMATS)
        self.found = gr.HTML()
        gr.Markdown("## 2. How to protect them")
        self.strength = gr.Radio(
            [(it.said, name) for name, it in STRENGTHS.items()], value="standard", label="Strength"
        )
        self.variant = gr.Radio(
            [(said, name) for name, said in VARIANTS.items()], value="crs", label="Method", elem_classes="options"
        )
        with gr.Row():
            self.protect = gr.Button("Protect", variant="primary")
            self.stop = gr.Button("Stop")
        self.status = gr.HTML(elem_classes="status")

    def _show_result(self) -> None:
        gr.Markdown("## 3. Look at the result")
        self.number = gr.Slider(1, 2, 1, step=1, label="Picture")
        frame: dict[str, Any] = {"type": "filepath", "format": "png", "buttons": ["fullscreen"], "interactive": False}
        with gr.Row():
            self.slider = gr.ImageSlider(label="Before (left) and after (right): drag the line", **frame)
            self.changed = gr.Image(label=f"Difference × {AMPLIFIED}: gray is no change", **frame)
        self.texts = gr.HTML()
        with gr.Row():
            self.release = gr.DownloadButton("Download the protected copy: may be published", variant="primary")
            self.record = gr.DownloadButton("Download the record: private, never publish it", variant="stop")
        gr.Markdown(
            "The record says which words were inserted, and how pictures differ. Keep it, apart from the copy: it "
            "would tell a thief how to undo the protection."
        )

    def _ask_for_audit(self) -> None:
        gr.Markdown(
            "## 4. Play the thief\nSmall models are trained on your originals, on the protected copy, and on a copy "
            "changed at random, and are then asked about pictures that they have not seen. Drop other pictures of the "
            "same kind, with questions and answers. For the example they are at hand."
        )
        self.tested = _drop_zone("Drop a folder or a zip file with test pictures here")
        self.test_found = gr.HTML()
        self.effort = gr.Radio(
            [(said, name) for name, said in EFFORTS.items()], value="quick", label="Effort", elem_classes="options"
        )
        with gr.Row():
            self.audit = gr.Button("Run the test", variant="primary")
            self.stop_audit = gr.Button("Stop")
        self.audit_status = gr.HTML(elem_classes="status")
        with gr.Column(visible=False) as self.outcome:
            self.page = gr.HTML()
            self.report = gr.DownloadButton("Download the report")

    def _connect(self) -> None:
        look = [self.slider, self.changed, self.texts]
        after = [self.status, self.result, self.number, *look, self.release, self.record]
        taken = [self.found, self.status, self.result, self.test_found]
        audited = [self.status, self.result, self.audit_status, self.outcome, self.page, self.report]
        self.dropped.upload(self._take, outputs=taken, **_BUTTON)
        self.example.click(self._take_example, outputs=taken, **_BUTTON)
        self.tested.upload(self._take_test, outputs=[self.test_found, self.status, self.result], **_BUTTON)
        self.protect.click(
            self._protect, [self.strength, self.variant], [*after, self.audit_status, self.outcome],
            show_progress_on=self.status, **_WORK,
        )  # fmt: skip
        self.number.change(self._look, self.number, look, show_progress="hidden", trigger_mode="always_last", **_BUTTON)
        self.audit.click(self._audit, self.effort, audited, show_progress_on=self.audit_status, **_WORK)
        for button in (self.stop, self.stop_audit):
            button.click(self._stop, queue=False, **_BUTTON)
        self.blocks.unload(self._leave)

    # What the buttons do. Whatever a function leaves out of its answer stays as it is.

    def _take(self, event: gr.EventData, request: gr.Request) -> _Answer:
        def use(session: Session, folder: Path) -> _Answer:
            session.source, session.test, session.release = folder, None, None
            return {self.test_found: ""}

        return self._take_upload(event, request, "pictures", self.found, use)

    def _take_example(self, request: gr.Request) -> _Answer:
        def job(session: Session) -> _Answer:
            session.release = None
            session.source, session.test = jobs.EXAMPLE, jobs.EXAMPLE_TEST
            return {
                self.found: _note("The example: 60 small drawings, each with a question and an answer."),
                self.test_found: _note("The example's own: 100 other drawings."),
            }

        return self._attempt(request, self.found, job)

    def _take_test(self, event: gr.EventData, request: gr.Request) -> _Answer:
        def use(session: Session, folder: Path) -> _Answer:
            session.test = folder
            return {}

        return self._take_upload(event, request, "test", self.test_found, use)

    def _take_upload(
        self,
        event: gr.EventData,
        request: gr.Request,
        name: str,
        found: gr.HTML,
        use: Callable[[Session, Path], _Answer],
    ) -> _Answer:
        """Takes what was dropped. If it is refused, the visitor keeps what they had; the upload goes in any case."""
        sent, store = event._data.get("files"), self._sessions.store

        def job(session: Session) -> _Answer:
            try:
                dataset, unpacked = jobs.take(session, sent, name, store)
            except MMGuardError as error:
                raise DataError(f"{error}; what was here before stays") from error
            return {found: _found(dataset, unpacked, session), **use(session, unpacked.folder)}

        try:
            return self._attempt(request, found, job)
        finally:
            discard(sent, store)

    def _protect(
        self, strength: str, variant: str, request: gr.Request, progress: gr.Progress = gr.Progress()
    ) -> _Answer:
        def job(session: Session) -> _Answer:
            config = jobs.settings(strength, cast(Variant, variant), self._models.surrogate)
            made = jobs.protect_session(session, config, self._models, _teller(session, request, progress))
            images = len({ours.image for ours, _ in session.pairs})
            return {
                self.status: _made(made),
                self.result: gr.Column(visible=True),
                self.audit_status: "",
                self.outcome: gr.Column(visible=False),
                # A slider of one step has no range.
                self.number: gr.Slider(1, max(2, images), 1, visible=images > 1),
                self.release: gr.DownloadButton(value=str(made.release)),
                self.record: gr.DownloadButton(value=str(made.record)),
                **self._shown(session, 1),
            }

        return self._attempt(request, self.status, job)

    def _look(self, number: float, request: gr.Request) -> _Answer:
        try:
            return self._shown(self._sessions.of(request.session_hash), int(number))
        except MMGuardError:  # something else is being protected meanwhile
            return {self.texts: gr.skip()}

    def _audit(self, effort: str, request: gr.Request, progress: gr.Progress = gr.Progress()) -> _Answer:
        def job(session: Session) -> _Answer:
            report, page = jobs.audit_session(session, effort, self._models, _teller(session, request, progress))
            return {
                self.audit_status: _note(report.verdict.replace("**", "")),
                self.outcome: gr.Column(visible=True),
                self.page: _framed(page.read_text(encoding="utf-8")),
                self.report: gr.DownloadButton(value=str(page)),
            }

        return self._attempt(request, self.audit_status, job)

    def _stop(self, request: gr.Request) -> None:
        with suppress(MMGuardError):  # the page was closed meanwhile
            self._sessions.of(request.session_hash).stop(request.state.asked)

    def _leave(self, request: gr.Request) -> None:
        self._sessions.close(request.session_hash)
        # Gradio would keep what the page showed, reports among it, of up to ten thousand visitors who have left.
        self.blocks.state_holder.session_data.pop(request.session_hash, None)
        self.blocks.state_holder.time_last_used.pop(request.session_hash, None)

    def _attempt(self, request: gr.Request, status: gr.HTML, job: Callable[[Session], _Answer]) -> _Answer:
        """Does a job with the visitor's files, or says why not; what they no longer have is no longer shown."""
        try:
            session = self._sessions.of(request.session_hash)
        except MMGuardError as error:
            return {status: _note(str(error), error=True)}
        try:
            with session.working(request.state.asked):
                answer = job(session)
        except MMGuardError as error:
            answer = {status: _note(session.plain(str(error)), error=True)}
        except Stopped:
            answer = {status: _note("Stopped. Nothing of it was kept.")}
        except Exception:
            _log.exception("a job failed")
            answer = {status: _note("This failed, and should not have. The terminal says more.", error=True)}
        release_memory()  # models refer to themselves, and would stay for some visitors more
        return answer if session.release else {self.status: "", self.result: gr.Column(visible=False)} | answer

    def _shown(self, session: Session, number: int) -> _Answer:
        one = jobs.show(session, number)
        shown = "".join(texts(question, answer) for question, answer in one.texts)
        return {
            self.slider: (str(one.before), str(one.after)),
            self.changed: str(one.difference),
            self.texts: f'<div class="texts"><p><strong>{html.escape(one.name)}</strong></p>{shown}</div>',
        }


_Answer = dict[Any, Any]
"""New values of the page's parts."""


def _drop_zone(label: str) -> gr.HTML:
    return gr.HTML(
        html_template=_asset("drop.html"),
        js_on_load=_asset("drop.js"),
        label=label,
        limits=f"{LIMITS.files:,} files and {LIMITS.total_bytes >> 20:,} MB",
        most=LIMITS.files,
        bytes=LIMITS.total_bytes,
        suffixes=[*PICTURES, *TEXTS, ".zip"],
    )


def _asset(name: str) -> str:
    return (files("mmguard.ui") / name).read_text(encoding="utf-8")


def _teller(session: Session, request: gr.Request, progress: gr.Progress) -> Teller:
    return Teller(lambda: request.state.asked < session.stopped, lambda share, what: progress(share, desc=what))


def _note(text: str, error: bool = False, more: str = "") -> str:
    """A message; `more` is HTML."""
    kind = 'class="said error" role="alert"' if error else 'class="said" role="status"'
    return f"<div {kind}>{html.escape(text)}{more}</div>"


def _list(lines: Sequence[str]) -> str:
    shown = [*lines[:_LISTED], *([f"… and {len(lines) - _LISTED:,} more"] if len(lines) > _LISTED else [])]
    return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in shown) + "</ul>" if shown else ""


def _found(dataset: Dataset, unpacked: Unpacked, session: Session) -> str:
    images, asked = len(dataset.by_image()), sum(sample.question is not None for sample in dataset.samples)
    silent = sum(not sample.answer for sample in dataset.samples)
    told = len(dataset.samples) - asked - silent
    kinds = [f"{n:,} {what}" for n, what in ((asked, "questions"), (told, "captions"), (silent, "without text")) if n]
    lines = [session.plain(f"left out: {one.where}: {one.reason}") for one in dataset.rejected]
    lines += [f"ignored: {name}" for name in unpacked.ignored]
    return _note(f"Found: {images:,} pictures; {', '.join(kinds)}.", more=_list(lines))


def _made(made: jobs.Protected) -> str:
    check = made.check
    text = (
        f"Protected and checked: {check.images:,} pictures, {check.samples:,} texts. The largest change of any "
        f"colour is {check.max_eps} levels of 255; at most {check.max_words} words were inserted into a question."
    )
    return _note(text, more=_list(made.notes))


def _framed(page: str) -> str:
    """A page within this one, which can run nothing."""
    return f'<iframe class="report" title="Report of the test" sandbox="" srcdoc="{html.escape(page)}"></iframe>'
