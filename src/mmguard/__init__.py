"""Protect image-text data from being used to fine-tune vision-language models (MMGuard, arXiv:2605.14291)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmguard.auditing.report import AuditReport as AuditReport
    from mmguard.auditing.run import audit as audit
    from mmguard.config import AuditConfig as AuditConfig
    from mmguard.config import ProtectConfig as ProtectConfig
    from mmguard.data.readers import read_dataset as read_dataset
    from mmguard.errors import MMGuardError as MMGuardError
    from mmguard.lvlm.loading import load_surrogate as load_surrogate
    from mmguard.protection.run import protect as protect
    from mmguard.release.verify import Verification as Verification
    from mmguard.release.verify import verify as verify
    from mmguard.release.writer import Release as Release

__version__ = "0.1.0"

# Where each public name lives: importing mmguard loads neither torch nor transformers.
_HOMES = {
    "AuditConfig": "mmguard.config",
    "AuditReport": "mmguard.auditing.report",
    "MMGuardError": "mmguard.errors",
    "ProtectConfig": "mmguard.config",
    "Release": "mmguard.release.writer",
    "Verification": "mmguard.release.verify",
    "audit": "mmguard.auditing.run",
    "load_surrogate": "mmguard.lvlm.loading",
    "protect": "mmguard.protection.run",
    "read_dataset": "mmguard.data.readers",
    "verify": "mmguard.release.verify",
}
__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
