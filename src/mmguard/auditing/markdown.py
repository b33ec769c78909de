"""The pieces of a report in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def table(head: Sequence[str], lines: Iterable[Iterable[str]]) -> str:
    """A table, one row a line."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines))


def bullets(lines: Iterable[str]) -> str:
    """A list."""
    return "\n".join(f"- {line}" for line in lines)


def facts(values: Mapping[str, Any]) -> str:
    """A list of names and values."""
    return bullets(f"{name}: {plain(value)}" for name, value in values.items())


def plain(value: Any) -> str:
    """A value as text; of a dict, names with their values."""
    return ", ".join(f"{k} {plain(v)}" for k, v in value.items()) if isinstance(value, dict) else str(value)
