"""Benchmarks run seldom; that what they import is there is seen here."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_what_a_benchmark_imports_exists(path: Path) -> None:
    missing = [
        f"{node.module}.{name.name}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mserve")
        for name in node.names
        if not hasattr(importlib.import_module(node.module or ""), name.name)
    ]
    assert not missing
