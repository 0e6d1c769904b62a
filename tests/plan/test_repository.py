"""Rules of the repository itself, so that the documents and the layers stay true."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mserve import __version__

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "mserve"
DECIDES = (
    "core",
    "wire",
    "observe",
    "checkpoint",
    "cache",
    "capacity",
    "scheduler",
    "text",
    "server",
    "toy",
)


def run_tool(*command: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )


def test_the_readme_draws_the_real_folders() -> None:
    done = run_tool("tools/check_tree.py")
    assert done.returncode == 0, done.stdout


def test_a_wrong_tree_is_noticed(tmp_path: Path) -> None:
    for name in ("tests/plan/a.py", "docs/b.md", "src/mserve/core/c.py", "README.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    tree = "```\nsrc/mserve/\n  core/  words\n  gone/  not here\ntests/\n```\n"
    (tmp_path / "README.md").write_text("## Where things are\n\n" + tree)
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    subprocess.run(["git", "-C", str(tmp_path), "add", "."], check=True)
    done = run_tool("tools/check_tree.py", str(tmp_path))
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "README.md does not draw docs/",
        "README.md does not draw tests/plan/",
        "README.md draws src/mserve/gone/, which does not exist",
    ]


def test_no_file_breaks_a_rule() -> None:
    done = run_tool("tools/check_files.py")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("line", ["import pickle", "from pickle import loads", "import shelve"])
def test_a_pickle_is_noticed(tmp_path: Path, line: str) -> None:
    planted = tmp_path / "planted.py"
    planted.write_text(f"def load():\n    {line}\n")
    done = run_tool("tools/check_files.py", str(planted))
    assert done.returncode == 1
    assert "planted.py:2" in done.stdout


def test_imports_go_down_only() -> None:
    done = run_tool("-c", "from importlinter.cli import lint_imports_command as c; c()")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("folder", [name for name in DECIDES if (PACKAGE / name).is_dir()])
def test_what_decides_loads_no_torch(folder: str) -> None:
    names = [
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for path in sorted((PACKAGE / folder).rglob("*.py"))
    ]
    script = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]: importlib.import_module(name.removesuffix('.__init__'))\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = run_tool("-c", script, *names)
    assert done.returncode == 0, done.stderr or f"{folder} loads torch"


@pytest.mark.parametrize(
    "name",
    sorted(
        ".".join(path.parent.relative_to(PACKAGE.parent).parts)
        for path in PACKAGE.rglob("__init__.py")
        if path.parent.name in DECIDES or path.parent == PACKAGE
    ),
)
def test_a_front_door_offers_what_it_lists(name: str) -> None:
    module = importlib.import_module(name)
    listed = getattr(module, "__all__", [])
    source = Path(str(module.__file__)).read_text(encoding="utf-8")
    imported = {
        alias.asname or alias.name
        for node in ast.parse(source).body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mserve")
        for alias in node.names
    }
    assert len(listed) == len(set(listed))
    assert imported <= set(listed), "imported and not listed in __all__"
    assert all(hasattr(module, entry) for entry in listed)


def test_the_changelog_speaks_of_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## \[(\d+\.\d+\.\d+)\]", text, re.MULTILINE)
    assert newest is not None
    assert newest[1] == __version__


def links(document: Path) -> list[str]:
    text = document.read_text(encoding="utf-8")
    return [target for target in re.findall(r"\]\(([^)#]+)", text) if "://" not in target]


@pytest.mark.parametrize(
    "document",
    [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").rglob("*.md"))],
    ids=lambda path: path.name,
)
def test_links_lead_somewhere(document: Path) -> None:
    assert [link for link in links(document) if not (document.parent / link).exists()] == []


def test_the_reading_order_names_real_files() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    _, _, after = text.partition("## Ten files to read")
    named = re.findall(r"^\d+\. `([^`]+)`", after, re.MULTILINE)
    assert len(named) == 10
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_every_decision_is_listed() -> None:
    folder = ROOT / "docs" / "decisions"
    pages = {path.name for path in folder.glob("[0-9]*.md")}
    assert pages == set(links(folder / "README.md"))


def requirements() -> list[str]:
    """What a user's installation brings."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    runtime = text.partition("dependencies = [")[2].partition("]\n")[0]
    return re.findall(r'^    "([A-Za-z0-9_-]+)[<>=]', runtime, re.MULTILINE)


# Required by what they are given to rather than imported: uvicorn's parser of HTTP.
LOADED_BY_NAME = {"httptools"}
IMPORTED_AS = {"markdown-it-py": "markdown_it", "pyzmq": "zmq"}


@pytest.mark.parametrize("name", sorted(set(requirements()) - LOADED_BY_NAME))
def test_every_requirement_is_used(name: str) -> None:
    module = IMPORTED_AS.get(name, name.replace("-", "_"))
    wanted = re.compile(rf"^\s*(import|from) {module}\b", re.MULTILINE)
    assert any(wanted.search(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py"))


def test_constraints_pin_every_requirement() -> None:
    pinned = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
    )
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    required = re.findall(r'^    "([A-Za-z0-9_-]+)[<>=]', text, re.MULTILINE)
    assert len(required) > 20
    assert [name for name in required if name.lower() not in pinned] == []
    assert pinned["torch"] == "2.13.0"
