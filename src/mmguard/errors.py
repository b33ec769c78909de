"""What can go wrong, as one tree. Every message names the file or value at fault and the cure.

MMGuardError
├── ConfigError      a setting out of range, or settings that exclude each other
├── DataError        a dataset that cannot be read
│   └── SampleError  one sample of it; the others can go on
├── SurrogateError   a model that cannot be loaded or cannot serve as surrogate or attacker
├── EngineError      workers that are lost again and again
├── ReleaseError     a release that cannot be written, or is not what it should be
└── BudgetError      a perturbation or trigger beyond its budget: a bug of ours, never the user's
"""

from __future__ import annotations


class MMGuardError(Exception):
    """Base of every error that mmguard raises on purpose."""


class ConfigError(MMGuardError):
    """A setting is out of range, or two settings exclude each other."""


class DataError(MMGuardError):
    """A dataset cannot be read."""


class SampleError(DataError):
    """One sample of a dataset cannot be used; the others can.

    Attributes:
        where: the file and line, or the image, at fault.
        message: what is wrong with it.
    """

    def __init__(self, where: str, message: str) -> None:
        super().__init__(where, message)  # what pickle makes it from again, in another process
        self.where, self.message = where, message

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


class SurrogateError(MMGuardError):
    """A model cannot be loaded, or cannot serve as surrogate or attacker."""


class EngineError(MMGuardError):
    """The workers that share a run are lost again and again."""


class ReleaseError(MMGuardError):
    """A release cannot be written, or is not what it should be."""


class BudgetError(MMGuardError):
    """A perturbation or trigger exceeds its budget."""
