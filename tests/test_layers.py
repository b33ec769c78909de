"""Imports point one way through the program (docs of the package: cli > trace > auditing | protection > … > errors)."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mmguard

PACKAGE = Path(mmguard.__file__).parent
LAYERS = (
    {"cli"},
    {"ui"},
    {"screen"},
    {"demo", "bench", "trace"},
    {"auditing", "protection"},
    {"release"},
    {"perturb", "losses"},
    {"lvlm"},
    {"data"},
    {"runtime", "pages"},
    {"config", "types", "errors", "zoo"},
)
SIDES = ({"auditing", "protection"}, {"trace", "protection"})
"""Those of the owner and those of the thief know nothing of each other."""
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.name != "__init__.py")


def imported(path: Path) -> set[str]:
    """The parts of mmguard that a module imports, at the top or inside functions."""
    package = ("mmguard", *path.parent.relative_to(PACKAGE).parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {tuple(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = (*base, *(node.module or "").split(".")) if node.module else base
            # Of the package itself come its parts; of a part, whatever it has.
            found |= {(*module, alias.name) for alias in node.names} if module == ("mmguard",) else {module}
    return {parts[1] for parts in found if parts[0] == "mmguard" and len(parts) > 1} - {"__version__"}


@pytest.mark.parametrize(
    "line",
    [
        "from mmguard.release import writer", "from mmguard import release", "import mmguard.release.writer",
        "import os, mmguard.release as r", "from ..release import writer", "from .. import release",
        "from ..release.writer import ReleaseWriter", "def late():\n    from ..release.writer import ReleaseWriter",
    ],
)  # fmt: skip
def test_every_way_to_import_is_seen(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "new.py").write_text(f"import json\nfrom .images import x\n{line}\n")
    assert imported(tmp_path / "data" / "new.py") == {"data", "release"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for other in imported(path) - {own}:
        assert RANK[other] >= RANK[own], f"{path}: {own} must not import {other}"
        assert {own, other} not in SIDES, f"{path}: the released folder is their only interface"


def test_help_and_import_load_nothing_heavy() -> None:
    code = (
        "import sys, mmguard, mmguard.cli; heavy = "
        "{'torch', 'transformers', 'datasets', 'peft', 'trl', 'numpy', 'matplotlib', 'jinja2', 'gradio'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_are_frozen() -> None:
    assert sorted(mmguard.__all__) == [
        "AuditConfig", "AuditReport", "MMGuardError", "ProtectConfig", "Release", "Verification", "__version__",
        "audit", "load_surrogate", "protect", "read_dataset", "verify",
    ]  # fmt: skip
    assert all(getattr(mmguard, name) is not None for name in mmguard.__all__)
    # A subpackage of the same name would take the function's place as soon as anything imports it.
    assert not [name for name in mmguard.__all__ if (PACKAGE / name).exists() or (PACKAGE / f"{name}.py").exists()]
    assert callable(mmguard.protect)
    assert callable(mmguard.audit)
    with pytest.raises(AttributeError, match="nothing_like_it"):
        mmguard.nothing_like_it  # noqa: B018 (looking it up is what fails)


def test_what_a_checker_is_told_to_overlook_has_its_reason_beside_it() -> None:
    root = Path(__file__).parents[1]
    told = re.compile(r"# (?:noqa|type: ignore)\b")
    reasoned = re.compile(told.pattern + r"(?:: \w+ \(\S.+\)|\[[\w-]+\]  # \S.+)$")
    unexplained = [
        f"{path.relative_to(root)}:{number}"
        for folder in ("src", "tests", "benchmarks", "scripts")
        for path in sorted((root / folder).rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if told.search(line) and not reasoned.search(line)
    ]
    assert unexplained == []
