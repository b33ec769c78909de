"""Tests never reach for the hub: set before anything imports huggingface_hub, which reads it once."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
