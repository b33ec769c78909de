"""What the command line shows of a protection: tables that fit on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.filesize import decimal
from rich.table import Column, Table
from rich.text import Text

from mmguard.types import STATUSES

if TYPE_CHECKING:
    from mmguard.protection.survey import Survey
    from mmguard.release.status import FileStatus

_NUMBERS = ("samples", "change", "words")
_ROWS = 20
"""Files that a table on the screen names."""


def printable(text: str) -> str:
    """Text for a line of the screen or the log: what does not print stands as an escape.

    Names of files may hold line ends, changes of direction, escapes of terminals and bytes that are no text.
    """
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def totals(files: Sequence[FileStatus]) -> dict[str, int]:
    """How many files there are of each status."""
    return {status: sum(file.status == status for file in files) for status in STATUSES}


def files_table(files: Sequence[FileStatus]) -> Table:
    """The first files, those that want attention before others, and totals of all."""
    table = Table(Column("file", overflow="fold"), "status", *(Column(name, justify="right") for name in _NUMBERS))
    table.add_column("reason", overflow="fold", ratio=1)
    ordered = sorted(files, key=lambda file: STATUSES.index(file.status))
    for file in ordered[:_ROWS]:
        numbers = ["", ""] if file.status == "left out" else [f"{file.change}/255", str(file.words)]
        name, reason = Text(printable(file.file)), Text(printable(file.reason))
        table.add_row(name, file.status, str(file.samples), *numbers, reason)
    if len(files) > _ROWS:
        table.add_row(f"… and {len(files) - _ROWS} more")
    table.add_section()
    for status, number in totals(files).items():
        samples = sum(file.samples for file in files if file.status == status)
        table.add_row(f"{number} in all", status, str(samples), style="bold")
    return table


def survey_tables(survey: Survey) -> list[Table]:
    """What would be done, what would be left out, if anything, and what it would take."""
    done = Table("what would be done", "")
    for name, value in _facts(survey).items():
        done.add_row(name, Text(value, overflow="fold"))
    tables = [done]
    if survey.left_out:
        lost = Table("would be left out", "reason")
        for one in survey.left_out[:_ROWS]:
            lost.add_row(*(Text(printable(text), overflow="fold") for text in (one.where, one.reason)))
        if len(survey.left_out) > _ROWS:
            lost.add_row(f"… and {len(survey.left_out) - _ROWS} more", "all are in the output of --json")
        tables.append(lost)
    cost = Table("what it would take", "estimate")
    for stage, seconds in survey.cost.seconds.items():
        cost.add_row(stage, duration(seconds))
    cost.add_row("in all", f"about {duration(survey.seconds)}", style="bold")
    cost.add_section()
    cost.add_row("release", f"about {decimal(survey.cost.release_bytes)}")
    cost.add_row("besides, while it runs", decimal(survey.cost.working_bytes))
    cost.add_row("free on that disk", decimal(survey.free_bytes))
    return [*tables, cost]


def _facts(survey: Survey) -> dict[str, str]:
    return {
        "format": survey.format,
        "shards": f"{survey.shards:,} data file{'' if survey.shards == 1 else 's'}",
        "samples": f"{survey.samples:,}",
        "images": f"{survey.images:,}",
        "images without a question": f"{survey.without_question:,}",
        "questions that get a trigger": f"{survey.triggers:,}",
        "captions left untouched": f"{survey.captions:,}",
        "pictures without text": f"{survey.wordless:,}",
        "left out": f"{len(survey.left_out):,}",
        "surrogates": ", ".join(survey.surrogates) or "none is needed",
        "device": survey.device,
        "release": str(survey.out),
    }


def duration(seconds: float) -> str:
    """Two units at most: `0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
