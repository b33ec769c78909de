"""A chat-completions endpoint as OpenAI defined it and most servers speak it, with the standard library alone."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from mmguard.errors import ConfigError

_TRIES = 4
_PAUSE = 2.0
"""Seconds before the second try; twice as long before each further one, or what the server asks for."""
_LONGEST_PAUSE = 60.0
_TIMEOUT = 300.0
_PATH = "/chat/completions"


class ChatAPI:
    """One endpoint. Its key is held in memory only, sent to no other host, and never part of an error's message.

    Args:
        url: base address (`https://…/v1`), or that of `chat/completions` itself.
        key: sent as bearer token, if any.

    Raises:
        ConfigError: the address is no http(s) address.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ConfigError(f"judge {url}: give the address of an OpenAI-compatible API, such as https://HOST/v1")
        self._url = url if url.endswith(_PATH) else url.rstrip("/") + _PATH
        self._key = key

    def complete(self, body: dict[str, Any]) -> str:
        """What the model replies.

        A busy or failing server is asked again, three times.

        Args:
            body: of the request.

        Raises:
            OSError: there is no reply.
        """
        for attempt in range(_TRIES):
            pause = _PAUSE * 2**attempt
            try:
                return self.text(self._post(body)) or ""
            except urllib.error.HTTPError as error:
                problem = f"HTTP {error.code} {error.reason}: {error.read(300).decode(errors='replace')}"
                if error.code not in (408, 429) and error.code < 500:
                    break
                if (asked := error.headers.get("Retry-After", "")).isdigit():
                    pause = float(asked)
            except (OSError, HTTPException, ValueError) as error:
                problem = str(error) or type(error).__name__
            if attempt + 1 < _TRIES:
                time.sleep(min(pause, _LONGEST_PAUSE))
        # Some servers quote the key that they refuse.
        problem = " ".join(problem.split())
        raise OSError(problem.replace(self._key, "***") if self._key else problem)

    @staticmethod
    def text(response: Any) -> str | None:
        """The reply in the body of a response; None if there is none."""
        try:
            content = response["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            return None
        return content if isinstance(content, str) else None

    def _post(self, body: dict[str, Any]) -> Any:
        data = json.dumps(body).encode()
        request = urllib.request.Request(self._url, data, {"Content-Type": "application/json"})
        if self._key:
            # Not repeated to the host that a redirect leads to.
            request.add_unredirected_header("Authorization", f"Bearer {self._key}")
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
            return json.load(response)
