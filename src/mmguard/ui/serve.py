"""Starts the page: on this computer only, without telemetry, without a tunnel, and leaving nothing behind."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import signal
import socket
import sys
import tempfile
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mmguard.errors import ConfigError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from mmguard.ui.jobs import Models
    from mmguard.ui.sessions import Sessions

HOST = "127.0.0.1"
_M_ARENA_MAX = -8
"""As in glibc's malloc.h."""
_PATIENCE = 2
"""Seconds that open pages have when the server ends."""


def serve(models: Models, port: int, open_browser: bool, say: Callable[[str], None]) -> None:
    """Serves the page until it is interrupted.

    Args:
        models: what visitors' data is protected and tested with.
        port: 0 takes any that is free.
        open_browser: whether to show the page.
        say: is told the address.

    Raises:
        ConfigError: Gradio is not installed, or the port is taken.
    """
    require_gradio()
    import uvicorn

    _share_memory()
    with _listening(port) as listening, tempfile.TemporaryDirectory(prefix="mmguard-ui-") as folder:
        # A link on the way there (/tmp on some systems) would make Gradio's and our paths differ.
        app, sessions = create(Path(folder).resolve(), models)
        address = f"http://{HOST}:{listening.getsockname()[1]}"
        say(address)
        if open_browser:
            webbrowser.open(address)
        server = uvicorn.Server(
            uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=_PATIENCE)
        )
        try:
            with _signals_exit(), suppress(KeyboardInterrupt):
                server.run(sockets=[listening])
        finally:
            sessions.close_all()


@contextmanager
def _signals_exit() -> Iterator[None]:
    """Has signals that would end the process at once end it by `SystemExit`, so that files go.

    Once it has ended, uvicorn raises the SIGTERM that ended it again. It knows nothing of SIGHUP, which comes when the
    terminal is closed. Windows has no such signal, and who ignores it (`nohup`) wants the server to go on.
    """
    handlers: dict[int, Callable[..., None]] = {signal.SIGTERM: lambda *_: sys.exit()}
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is not None and signal.getsignal(hangup) == signal.SIG_DFL:
        handlers[hangup] = lambda *_: signal.raise_signal(signal.SIGTERM)
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _share_memory() -> None:
    """Has all threads take memory from one place.

    Every job runs in another of Gradio's threads. Where each has a place of its own, as with glibc, what one gives back
    is of no use to the next, and the server grows by 60 to 90 MB with twenty visitors.
    """
    with suppress(AttributeError, OSError, TypeError):  # another library, or another system
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def create(store: Path, models: Models) -> tuple[FastAPI, Sessions]:
    """The application, and its visitors.

    Args:
        store: an empty folder for all files.
        models: what visitors' data is protected and tested with.
    """
    _settle_gradio(store)
    from fastapi import FastAPI

    from mmguard.ui.app import mount
    from mmguard.ui.guard import Guard
    from mmguard.ui.receive import forgetting, receiver
    from mmguard.ui.sessions import Sessions

    sessions = Sessions(store)
    app = FastAPI(lifespan=forgetting(store), docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard)
    app.add_api_route("/upload", receiver(store), methods=["POST"])
    # There is no `launch`, and so nothing that could open a tunnel.
    return mount(app, sessions, models), sessions


def require_gradio() -> None:
    """Says what to do where Gradio is missing.

    Raises:
        ConfigError: it is.
    """
    if importlib.util.find_spec("gradio") is None:
        raise ConfigError("the page needs Gradio, which is not installed: pip install 'mmguard[ui]'")


def _settle_gradio(store: Path) -> None:
    """Sets what Gradio reads from the environment, before it is imported; whatever else is there must not count."""
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(store)
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"


def _listening(port: int) -> socket.socket:
    try:
        return socket.create_server((HOST, port))
    except (OSError, OverflowError) as error:
        raise ConfigError(f"port {port}: cannot be used ({error}): choose another with --port") from error
