"""What the package imports is what it declares: nothing comes by chance, and nothing is asked for in vain."""

from __future__ import annotations

import ast
import re
import sys
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest

import mmguard

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli", reason="tomllib is of Python 3.11")

PACKAGE = Path(mmguard.__file__).parent
PROJECT = Path(__file__).parents[1] / "pyproject.toml"
THROUGH = {"fastapi": "gradio", "starlette": "gradio", "uvicorn": "gradio"}
"""What the web page is made of, which has to be of the releases that Gradio goes with."""
UNSEEN = {
    "num2words": "the processor of SmolVLM",
    "bitsandbytes": "transformers, for the recipe qlora",
    "gcsfs": "fsspec, for gs://",
    "gguf": "transformers, for language models in that form",
    "s3fs": "fsspec, for s3://",
}
"""Imported by others on our behalf."""


def name_of(requirement: str) -> str:
    return re.match(r"[A-Za-z0-9._-]+", requirement).group().lower().replace("_", "-")


def declared() -> tuple[set[str], set[str]]:
    """What is always required, and what extras for users add."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    extras = {name: found for name, found in project["optional-dependencies"].items() if name not in ("docs", "test")}
    further = {name_of(one) for name, found in extras.items() for one in found if name != "browser"}
    return {name_of(one) for one in project["dependencies"]}, further


def imported() -> set[str]:
    """The distributions of all third-party modules that are imported anywhere in the package."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(str(node.module).split(".")[0])
    ours = found - set(sys.stdlib_module_names) - {"mmguard"}
    known = packages_distributions()
    return {THROUGH.get(one, known.get(one, [one])[0]).lower().replace("_", "-") for one in ours}


def test_imports_are_declared_and_what_is_declared_is_imported() -> None:
    always, further = declared()
    assert imported() - always - further == set(), "imported, and not declared"
    assert (always | further) - imported() - set(UNSEEN) == set(), "declared, and not imported"


def test_every_requirement_says_from_which_release() -> None:
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    every = [*project["dependencies"], *(one for found in project["optional-dependencies"].values() for one in found)]
    assert [one for one in every if not re.search(r">=|==", one) and not one.startswith("mmguard[")] == []
    assert requires("mmguard"), "the installed package knows them, too"
