"""Templates to pages. Whatever a page is given is text: dataset and model names, questions and messages are escaped."""

from __future__ import annotations

import functools
import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

_NUMBER = re.compile(r"(–|-?\d+(?:\.\d+)?)(?: \((.* to .*)\))?$")


def render(template: str, **values: Any) -> str:
    """A page.

    Args:
        template: name of a file in `templates/`.
        **values: what it shows; `Markup` alone is taken as HTML.
    """
    return _environment().get_template(template).render(values)


def texts(question: list[tuple[str, str, bool]] | None, answer: str) -> Markup:
    """A released question and its answer as pages show them, with inserted words marked.

    Args:
        question: white space and word, and whether it was inserted, for each word; None for a caption.
        answer: what follows.
    """
    parts: Any = _environment().get_template("parts.html").module
    return Markup(parts.texts(question, answer))


def inline(text: str) -> Markup:
    """Our Markdown within a line: `**bold**`, `*italic*` and code. No links, no images, no HTML."""
    return Markup(_markdown().renderInline(text))


def cell(text: str) -> Markup:
    """A table's cell: a number, below it its interval, if it has one; or a text."""
    if (number := _NUMBER.match(text)) is None:
        return Markup("<td>{}</td>").format(inline(text))
    interval = Markup("<br><small>{}</small>").format(number[2]) if number[2] else ""
    return Markup('<td class="number">{}{}</td>').format(number[1], interval)


@functools.cache
def _markdown() -> MarkdownIt:
    return MarkdownIt("zero").enable(["emphasis", "backticks"])


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("mmguard.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"inline": inline, "cell": cell}
    return environment
