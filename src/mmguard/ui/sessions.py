"""One visitor, one folder: nobody sees another's files, and with the visitor they go."""

from __future__ import annotations

import math
import secrets
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mmguard.errors import ConfigError

if TYPE_CHECKING:
    from mmguard.release.writer import Release
    from mmguard.types import Sample

MOST = 50
"""Sessions at a time: on one computer, more are no visitors."""
REMEMBERED = 10_000
"""Visitors who have left and may not come back: many times what can wait in the queue."""


class Stopped(BaseException):
    """The visitor stopped the work, or left. No `Exception`: an audit takes one for the failure of a single run."""


@dataclass
class Session:
    """What one visitor has uploaded and made."""

    folder: Path
    """Its name is secret: whoever knows the path of a file in it may fetch the file."""
    source: str | Path | None = None
    """The dataset: an unpacked folder, or the name of the example."""
    test: str | Path | None = None
    """Clean pictures to test a thief with, if there are any."""
    release: Release | None = None
    pairs: list[tuple[Sample, Sample]] = field(default_factory=list)
    """Original and released samples."""
    protections: int = 0
    """How many were begun."""
    stopped: float = 0.0
    """What was asked for before this moment is not wanted any more, be it at work or waiting."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _busy: bool = False
    _closed: bool = False

    @contextmanager
    def working(self, asked: float) -> Iterator[None]:
        """Holds the session's files; only one can.

        Args:
            asked: when the visitor asked for the work.

        Raises:
            ConfigError: another does.
            Stopped: the visitor stopped it while it waited.
        """
        with self._lock:
            if self._busy:
                raise ConfigError("something is still running here: wait for its end, or stop it")
            if asked < self.stopped:
                raise Stopped
            self._busy = True
        try:
            yield
        finally:
            with self._lock:
                self._busy = False
                if self._closed:
                    self._remove()

    def new(self, name: str) -> Path:
        """A path in the session's folder at which there is nothing any more."""
        path = self.folder / name
        shutil.rmtree(path, ignore_errors=True)
        return path

    def stop(self, asked: float) -> None:
        """Ends all work that was asked for before."""
        with self._lock:
            self.stopped = max(self.stopped, asked)

    def close(self) -> None:
        """Removes all files; if work goes on, ends it first."""
        self.stop(math.inf)
        with self._lock:
            self._closed = True
            if not self._busy:
                self._remove()

    def plain(self, message: str) -> str:
        """A message without the folder that the server keeps files in."""
        return message.replace(f"{self.folder}/", "").replace(str(self.folder), "upload")

    def _remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class Sessions:
    """All visitors that are there.

    Args:
        store: folder for their folders; the server may hand out what lies in it to whoever knows its path.
    """

    def __init__(self, store: Path) -> None:
        self.store = store
        self._sessions: dict[str, Session] = {}
        self._left: dict[str, None] = {}
        """In the order in which they left."""
        self._lock = threading.Lock()

    def of(self, visitor: str | None) -> Session:
        """A visitor's session, new if there is none.

        Raises:
            ConfigError: it is nobody's, it has ended, or there are too many.
        """
        if not visitor:
            raise ConfigError("this page works in a browser only: open it there")
        with self._lock:
            # What still waited in the queue when they left: nobody would end a session that it began.
            if visitor in self._left:
                raise ConfigError("this page was closed meanwhile, and its files are gone: load it again")
            if visitor not in self._sessions:
                if len(self._sessions) >= MOST:
                    raise ConfigError(f"{MOST} pages are open: close some of them")
                folder = self.store / f"session-{secrets.token_hex(16)}"
                folder.mkdir()
                self._sessions[visitor] = Session(folder)
            return self._sessions[visitor]

    def close(self, visitor: str | None) -> None:
        """Ends a visitor's session."""
        with self._lock:
            session = self._sessions.pop(visitor or "", None)
            self._left[visitor or ""] = None
            if len(self._left) > REMEMBERED:
                del self._left[next(iter(self._left))]
        if session:
            session.close()

    def close_all(self) -> None:
        """Ends all of them."""
        for visitor in list(self._sessions):
            self.close(visitor)
