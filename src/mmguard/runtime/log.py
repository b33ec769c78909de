"""The log of a run, for those who come back to it later: what was done when, and what went wrong."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmguard.errors import ConfigError

_log = logging.getLogger("mmguard")


@contextmanager
def logging_to(path: Path | None) -> Iterator[logging.Logger]:
    """Appends what the program logs to a file, and warnings and the exception that ends the run, if any.

    Args:
        path: the file; None logs nowhere.

    Raises:
        ConfigError: the file cannot be written.
    """
    if path is None:
        yield _log
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ConfigError(f"log {path}: cannot be written ({error.strerror}): choose another file") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    level, shown = _log.level, warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
        _log.warning("%s: %s", category.__name__, message)
        shown(message, category, *rest, **more)

    _log.addHandler(handler)
    _log.setLevel(logging.INFO)
    warnings.showwarning = show
    try:
        yield _log
    except BaseException as error:
        _log.error("%s: %s", type(error).__name__, error, exc_info=error)
        raise
    finally:
        warnings.showwarning = shown
        _log.setLevel(level)
        _log.removeHandler(handler)
        handler.close()
