"""Which weights a model's name stands for at the moment, and how whoever made them would fine-tune them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from mmguard import zoo
from mmguard.errors import ConfigError

_HUB_TIMEOUT = 3.0
"""Seconds. Without a network the answer should not be waited for."""


def model_folder(name: str) -> Path | None:
    """The folder of a zoo model or of a local one; None for a hub id or a file.

    Raises:
        SurrogateError: the zoo has no such model.
    """
    if name.startswith("zoo:"):
        return zoo.path(name.removeprefix("zoo:"))
    return Path(name) if Path(name).is_dir() else None


def recommended(name: str) -> Mapping[str, Mapping[str, float]]:
    """How to fine-tune a model, as the `mmguard.json` in its folder recommends: `lr` and `epochs`, by recipe.

    Args:
        name: a hub id, a local folder, or `zoo:NAME`.

    Returns:
        The recommendations; none for a model without such a file.

    Raises:
        ConfigError: the file cannot be read.
        SurrogateError: the zoo has no such model.
    """
    folder = model_folder(name)
    if folder is None or not (card := folder / "mmguard.json").is_file():
        return {}
    try:
        return {
            recipe: {setting: float(value) for setting, value in advice.items()}
            for recipe, advice in json.loads(card.read_text(encoding="utf-8")).get("recommended", {}).items()
        }
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{card}: not a model card of mmguard ({error}); remove it or restore it") from error


def weights_digest(name: str) -> str | None:
    """Tells one state of a model from another.

    Args:
        name: a hub id, a local folder or file, or `zoo:NAME`.

    Returns:
        A hash of the folder's files (names and bytes) or of the file, or the commit on the hub; without a network, the
        commit that the cache holds. None if the model is nowhere to be found.

    Raises:
        SurrogateError: the zoo has no such model.
    """
    folder, files = model_folder(name), [Path(name)]
    if folder is not None:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
    elif files[0].is_file():
        folder = files[0].parent
    else:
        return hub_commit(name) or _cached_commit(name)
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def hub_commit(name: str) -> str | None:
    """The newest commit of a model on the hub; None where the hub does not answer or has no such model."""
    from huggingface_hub import HfApi

    try:
        return HfApi().model_info(name, timeout=_HUB_TIMEOUT).sha
    # No network, offline mode, a proxy that refuses, a gated or missing model, no valid id: each has its own exception,
    # from whatever HTTP library the hub's client uses, and to each the answer is to go on without the hub.
    except Exception:
        return None


def _cached_commit(name: str) -> str | None:
    from huggingface_hub import try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(name, "config.json")
    except ValueError:  # no valid id
        return None
    return Path(cached).parent.name if isinstance(cached, str) else None
