"""A disk that fails at one call: what Python's own file functions do beneath a folder is counted, and one refused."""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FAULTS = ("ENOSPC", "EIO", "EDQUOT", "EROFS", "torn")
"""What a call fails with; `torn` writes half of what it was given, and then there is no space left."""
KILL = "kill"
"""No call fails: the process is killed there, in the midst of what it writes."""


class FaultyDisk:
    """Counts the calls that change anything in a folder, and has the one of a number fail.

    Counted are opening a file to write, each write that reaches the system, fsync, rename, mkdir, and removing files
    and folders. What libraries do in C or Rust (mapped δ, Parquet) passes unseen.

    Args:
        folder: whatever lies in it is on the disk.
        monkeypatch: puts the disk in place, until it is undone.
        number: of the call that fails, from 1; 0 for none.
        fault: one of `FAULTS`, or `KILL`.
        short: whether every write takes half of what it is given, as the system may, without an error.
        reads: whether opening a file to read and reading from it count, and not what changes anything.
    """

    def __init__(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, number: int = 0, fault: str = "EIO", short: bool = False,
        reads: bool = False,
    ) -> None:  # fmt: skip
        self.folder, self.number, self.fault, self.short, self.reads = folder.resolve(), number, fault, short, reads
        self.calls: list[str] = []
        self._lock = threading.Lock()
        self._open, self._os_open = io.open, os.open
        for module in (io, builtins):
            monkeypatch.setattr(module, "open", self._opened)
        monkeypatch.setattr(os, "open", self._os_opened)
        for name in ("replace", "rename", "mkdir", "unlink", "remove", "rmdir", "fsync"):
            monkeypatch.setattr(os, name, self._watched(name, getattr(os, name)))

    def reached(self, call: str, path: Any) -> bool:
        """Counts a call. Whether it is one that tears.

        Raises:
            OSError: it is the one that fails.
        """
        path = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else os.fspath(path)
        if not Path(os.path.abspath(path)).is_relative_to(self.folder) or (call == "read") != self.reads:
            return False
        with self._lock:
            self.calls.append(f"{call} {Path(path).name}")
            if len(self.calls) != self.number:
                return False
        if self.fault in ("torn", KILL) and call == "write":
            return True
        if self.fault == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        number = getattr(errno, "ENOSPC" if self.fault == "torn" else self.fault)
        raise OSError(number, os.strerror(number), path)

    def _watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(path: Any, *rest: Any, **named: Any) -> Any:
            # What is removed by name within an open folder is what `shutil.rmtree` does, which may leave things lying.
            if named.get("dir_fd") is None:
                self.reached(name, path)
            return function(path, *rest, **named)

        return watched

    def _os_opened(self, path: Any, flags: int, *rest: Any, **named: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            self.reached("open", path)
        return self._os_open(path, flags, *rest, **named)

    def _opened(self, file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **named: Any) -> Any:
        if isinstance(file, int) or not Path(os.path.abspath(os.fspath(file))).is_relative_to(self.folder):
            return self._open(file, mode, buffering, *rest, **named)
        plain = mode.replace("b", "").replace("t", "")
        self.reached("read" if plain == "r" else "open", file)
        raw = _Raw(file, plain)
        raw.disk = self
        binary: Any = {"r": io.BufferedReader}.get(plain, io.BufferedWriter if "+" not in plain else io.BufferedRandom)
        return binary(raw) if "b" in mode else io.TextIOWrapper(binary(raw), *rest, **named)


class _Raw(io.FileIO):
    disk: FaultyDisk

    def write(self, content: Any) -> int:
        torn = self.disk.reached("write", self.name)
        if not (torn or self.disk.short) or len(content) < 2:
            return super().write(content)
        written = super().write(memoryview(content)[: len(content) // 2])
        if torn and self.disk.fault == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        if torn:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.name)
        return written

    def readinto(self, buffer: Any) -> int:
        self.disk.reached("read", self.name)
        return super().readinto(buffer)

    def readall(self) -> bytes:
        self.disk.reached("read", self.name)
        return super().readall()
