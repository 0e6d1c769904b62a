"""Does the tree in README.md name the folders that exist, each once, and no other?

    python tools/check_tree.py [ROOT]

A folder counts when git tracks a file in it. Under ``src/mserve`` one level is listed; elsewhere
the folders of the root, and those of ``tests`` and ``docs``. Exit 1 and one line per difference.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

_ENTRY = re.compile(r"^( *)([\w.-]+(?:/[\w.-]+)*)/(?: +\S.*)?$")
_LISTED_INSIDE = ("src/mserve", "tests", "docs")


def folders_in_readme(readme: str) -> list[str]:
    """Paths that the first fenced block after the heading "Where things are" draws, by indent."""
    _, _, after = readme.partition("## Where things are")
    block = after.split("```")[1] if after.count("```") >= 2 else ""
    paths: list[str] = []
    parents: list[tuple[int, str]] = []
    for line in block.splitlines():
        entry = _ENTRY.match(line)
        if not entry:
            continue
        indent = len(entry[1])
        while parents and parents[-1][0] >= indent:
            parents.pop()
        path = f"{parents[-1][1]}/{entry[2]}" if parents else entry[2]
        parents.append((indent, path))
        paths.append(path)
    return paths


def folders_in_git(root: Path) -> set[str]:
    """Folders with tracked files that the tree has to list."""
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=root, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    listed: set[str] = set()
    for name in tracked:
        parts = Path(name).parts[:-1]
        if not parts:
            continue
        if parts[0] != "src":
            listed.add(parts[0])
        for parent in _LISTED_INSIDE:
            inside = Path(parent).parts
            if parts[: len(inside)] == inside:
                listed |= {parent, "/".join(parts[: len(inside) + 1])}
    return listed


def differences(root: Path) -> list[str]:
    drawn = folders_in_readme((root / "README.md").read_text(encoding="utf-8"))
    real = folders_in_git(root)
    problems = [f"README.md draws {path}/ twice" for path in set(drawn) if drawn.count(path) > 1]
    problems += [f"README.md draws {path}/, which does not exist" for path in set(drawn) - real]
    problems += [f"README.md does not draw {path}/" for path in real - set(drawn)]
    return sorted(problems)


if __name__ == "__main__":
    found = differences(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1])
    print("\n".join(found) or "the tree in README.md is right")
    sys.exit(1 if found else 0)
