"""Lines of Python per folder, and what the change since a base adds. To look at, never a gate.

python tools/size.py [BASE]        (default: where this branch left main)
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else ""


def folder_of(name: str) -> str:
    parts = Path(name).parts[:-1]
    return "/".join(parts[:3] if parts[:2] == ("src", "mserve") else parts[:2]) or "."


def counts() -> tuple[Counter[str], Counter[str]]:
    """(lines that are neither blank nor only a comment, files) per folder."""
    lines: Counter[str] = Counter()
    files: Counter[str] = Counter()
    for name in git("ls-files", "*.py", "*.cpp", "*.h").splitlines():
        if not (ROOT / name).is_file():
            continue
        text = (ROOT / name).read_text(encoding="utf-8")
        code = [line for line in text.splitlines() if line.strip() and line.strip()[0] != "#"]
        lines[folder_of(name)] += len(code)
        files[folder_of(name)] += 1
    return lines, files


def changed(base: str) -> Counter[str]:
    """Lines added minus removed per folder, the working tree against ``base``."""
    delta: Counter[str] = Counter()
    for row in git("diff", "--numstat", base, "--", "*.py", "*.cpp", "*.h").splitlines():
        added, removed, name = row.split("\t")
        if added != "-":
            delta[folder_of(name)] += int(added) - int(removed)
    return delta


def main() -> None:
    base = sys.argv[1] if len(sys.argv) > 1 else git("merge-base", "main", "HEAD").strip()
    lines, files = counts()
    delta = changed(base) if base else Counter()
    print(f"{'folder':<28}{'files':>6}{'lines':>8}{'change':>8}")
    for folder in sorted(lines.keys() | delta.keys()):
        change = f"{delta[folder]:+d}" if delta[folder] else ""
        print(f"{folder:<28}{files[folder]:>6}{lines[folder]:>8}{change:>8}")
    print(f"{'all':<28}{files.total():>6}{lines.total():>8}{delta.total():>+8}")


if __name__ == "__main__":
    main()
