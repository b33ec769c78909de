"""What a release is made from: where all of it is the same, the release would be, too."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmguard.config import ProtectConfig
from mmguard.lvlm.weights import weights_digest
from mmguard.release.layout import sha256
from mmguard.runtime.provenance import digest, versions
from mmguard.types import Dataset

_PACKAGES = ("mmguard", "torch", "torchvision", "transformers", "peft")

RELEASE_REVISION = 2
"""Of the code of protections: raised when a change alters what comes of one, so that releases from before, finished or
not, are not taken for the same."""


def origin(dataset: Dataset, config: ProtectConfig, surrogates: Sequence[str]) -> dict[str, Any]:
    """Settings, surrogates in their order, weights, data, versions and revision, ready for JSON.

    Args:
        dataset: the owner's data.
        config: settings of the protection.
        surrogates: names of the models.

    Raises:
        SurrogateError: the zoo has no such model.
    """
    models = [*surrogates, config.fluency] if config.fluency else surrogates
    made_from: dict[str, Any] = {
        "config": asdict(config),
        "surrogates": list(surrogates),
        "weights": {name: weights_digest(name) for name in models},
        "data": _data_digest(dataset),
        "versions": versions(*_PACKAGES),
        "revision": RELEASE_REVISION,
    }
    plain: dict[str, Any] = json.loads(json.dumps(made_from))
    return plain


def _data_digest(dataset: Dataset) -> str:
    """Hash of the rows as they stand, and of the files of their images."""
    files = [_file_digest(path) for path in dataset.by_image()]
    return digest([dataset.rows, files])


def _file_digest(path: Path) -> str | None:
    try:
        return sha256(path)
    except OSError:  # an image that cannot be read is left out, and reported, when its turn comes
        return None
