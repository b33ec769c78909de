"""What stands between the network and Gradio: only pages of this server on this computer are answered."""

from __future__ import annotations

import re
from time import monotonic

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmguard.ui.uploads import LIMITS

HOSTS = ("127.0.0.1", "localhost")
_POLICY = "; ".join(
    (
        "default-src 'self'",
        # Gradio's pages have scripts within them, and make functions of templates.
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_UPLOADS = "/gradio_api/upload"
_ELSEWHERE = re.compile(r"=\s*https?:", re.IGNORECASE)
_ENVELOPE = 1 << 20
"""Bytes of a request around the files in it."""


class Guard:
    """ASGI middleware.

    - A page elsewhere that the visitor's browser shows, too, could send requests here; their `Origin` gives it away. A
      name that such a page has had resolved to this computer is no `Host` of ours.
    - Requests are no larger than uploads may be.
    - Requests say when they came (`request.state.asked`): what they ask for may wait, and be stopped before it begins.
    - Gradio's routes that fetch an address for the browser are closed, and the browser fetches nothing from elsewhere;
      so is its route for uploads, which is not ours.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, refuses, or passes on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if refusal := _refusal(scope):
            await PlainTextResponse(refusal[1], refusal[0])(scope, receive, send)
            return
        scope.setdefault("state", {})["asked"] = monotonic()

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                if scope["path"].startswith("/gradio_api/"):
                    headers["Cache-Control"] = "no-store"
            await send(message)

        await self._app(scope, receive, send_guarded)


def _refusal(scope: Scope) -> tuple[int, str] | None:
    """Status and reason, if a request is not answered."""
    headers = Headers(scope=scope)
    host = headers.get("host", "")
    if scope["type"] != "http":
        return 403, "no such connection"
    if host.rpartition(":")[0] not in HOSTS and host not in HOSTS:
        return 403, "this page is for the computer it runs on: open http://127.0.0.1"
    if headers.get("origin", f"http://{host}") != f"http://{host}":
        return 403, "another page asked for this"
    if _ELSEWHERE.search(scope["path"]):
        return 403, "nothing is fetched from elsewhere"
    if scope["path"].startswith(_UPLOADS):
        return 403, "uploads go elsewhere"
    if scope["method"] == "POST":
        length = headers.get("content-length", "")
        if not length.isdecimal():
            return 411, "say how long the request is"
        if int(length) > LIMITS.total_bytes + _ENVELOPE:
            return 413, "larger than an upload may be"
    return None
