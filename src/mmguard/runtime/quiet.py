"""Keeps what libraries say in passing from the user's screen; their errors, and warnings that matter, stay."""

from __future__ import annotations

import logging
import os
import warnings

_MISSED = "Failed to load CPU gemm_4bit_forward"
"""What bitsandbytes says on some processors, whoever imports it, of a faster kernel that it does well without."""


def quiet_libraries() -> None:
    """Progress bars and advice of the libraries would drown our own; a user's own setting wins.

    To be called before they are imported, in every process: of all this only the environment is inherited.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Models that are pickles are refused, and nobody is asked to convert them.
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    # A picture that large is left out, and the reason says so.
    warnings.filterwarnings("ignore", "Image size .* exceeds limit")
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_matters)


def _matters(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_MISSED)
