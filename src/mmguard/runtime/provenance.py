"""What a result was made with: hashes of data, versions of libraries, and the state of our own source."""

from __future__ import annotations

import functools
import hashlib
import json
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any


def digest(value: Any) -> str:
    """Hash of plain data, as JSON has it."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def versions(*packages: str) -> dict[str, str]:
    """The installed version of each package."""
    return {name: version(name) for name in packages}


@functools.cache
def commit() -> str | None:
    """The commit of our own checkout, with `-dirty` behind it if files were changed; None if it is no checkout."""
    try:
        _git("ls-files", "--error-unmatch", "__init__.py")  # fails in an environment that lies within some repository
        return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    package = Path(__file__).parents[1]
    return subprocess.run(["git", *arguments], cwd=package, capture_output=True, text=True, check=True).stdout.strip()
