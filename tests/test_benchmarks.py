"""What measures luban must not fall behind it: a benchmark is run seldom, and by hand."""

import ast
import importlib
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted([*(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "tools").glob("*.py")])


def imported(path: Path) -> list[tuple[str, str]]:
    """Return the names that a script takes from luban, each with its module."""
    found: list[tuple[str, str]] = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "luban":
            found += [(node.module or "", alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names if alias.name.partition(".")[0] == "luban"]
    return found


@pytest.mark.parametrize("path", SCRIPTS, ids=[str(path.relative_to(ROOT)) for path in SCRIPTS])
def test_what_a_script_imports_is_there(path: Path) -> None:
    for module, name in imported(path):
        there = importlib.import_module(module)
        known = not name or hasattr(there, name) or importlib.util.find_spec(f"{module}.{name}") is not None
        assert known, f"{module} has no {name}"
