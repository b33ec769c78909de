"""What test files share. Tests never reach for the hub: that is set before anything imports huggingface_hub."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, at the import
if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest

import tiny
from mmguard.lvlm.loading import load_surrogate
from mmguard.lvlm.surrogate import Surrogate


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Surrogate:
    """A tiny LLaVA of this file's own."""
    return load_surrogate(tiny.build("llava", tmp_path_factory.mktemp("llava")), device="cpu")
