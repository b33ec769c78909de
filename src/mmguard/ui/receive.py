"""Takes what browsers upload.

Gradio's own route keeps a file by what is in it: visitors with the same picture would share one, and whoever is done
first would take it from the others.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path

from fastapi import FastAPI, HTTPException, UploadFile

from mmguard.ui.uploads import STORED

_KEPT = 3600.0
"""Seconds that an upload waits to be unpacked; after that, nobody will."""
_PAUSE = 60.0
"""Seconds between two looks for such uploads."""


def receiver(store: Path) -> Callable[[list[UploadFile]], list[str]]:
    """A route's function, which puts every file of a request into the store, where `stored` looks for it.

    Args:
        store: the server's folder. Each request gets a folder with a name of its own, which nobody can guess.
    """

    def receive(files: list[UploadFile]) -> list[str]:
        folder = store / secrets.token_hex(32)
        try:
            folder.mkdir()
            paths = [folder / str(number) for number in range(len(files))]
            for path, file in zip(paths, files, strict=True):
                with path.open("wb") as target:
                    shutil.copyfileobj(file.file, target)
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise HTTPException(507, f"the server cannot keep it ({error.strerror}): free space on its disk") from error
        return [str(path) for path in paths]

    return receive


def forgetting(store: Path) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """What an application does for as long as it runs: removes uploads that broke off, or whose visitors left."""

    async def forget() -> None:
        while True:
            await asyncio.to_thread(_forget, store)
            await asyncio.sleep(_PAUSE)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(forget())
        yield
        task.cancel()

    return lifespan


def _forget(store: Path) -> None:
    for folder in store.iterdir():
        with suppress(OSError):
            if STORED.fullmatch(folder.name) and time.time() - folder.stat().st_mtime > _KEPT:
                shutil.rmtree(folder)
