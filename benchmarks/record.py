"""What every record of a measurement names: the commit, the machine, the command.

Knows git and ``mserve doctor``; does not know what is measured.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
# Taken before mserve is imported, which changes how OpenMP waits: a peer must not inherit that.
ENVIRONMENT = dict(os.environ)


def mserve(*arguments: str) -> str:
    """What the command prints. Raises ``CalledProcessError`` when it fails."""
    command = [sys.executable, "-m", "mserve.cli.main", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def machine() -> dict[str, str]:
    """What ``mserve doctor`` says that decides speed."""
    found = json.loads(mserve("doctor", "--json"))
    return {
        "cpu": found["cpu"],
        "cores": str(found["cores"]["granted"]),
        "memory": f"{found['memory']['total_bytes'] / (1 << 30):.0f} GiB",
        "gpu": ", ".join(gpu["name"] for gpu in found["gpus"]),
        "torch": found["torch"],
    }


def slug(found: dict[str, str]) -> str:
    """A short file name part for the machine: its GPU, or its processor and cores."""
    name = found["gpu"] or f"{found['cpu']} {found['cores']} cores"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40]


def commit() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip()

    return git("rev-parse", "--short", "HEAD") + (" with changes" if git("diff", "HEAD") else "")


def command() -> str:
    """This process's command line."""
    words = [without_folders(word) for word in sys.argv[1:]]
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])


def without_folders(word: str) -> str:
    """A path's last part: where a file lay on this machine says nothing elsewhere."""
    return re.sub(r"(?:/[\w.-]+)+/", "", word)


def publish(content: dict[str, Any], out: Path | None) -> None:
    """Print the ``medians`` of a measurement, and write all of it to ``out`` with what it names."""
    print(json.dumps(content["medians"], indent=1))
    if out is not None:
        named = {"commit": commit(), "command": command(), "machine": machine()}
        out.write_text(json.dumps({**named, **content}, indent=1) + "\n")
