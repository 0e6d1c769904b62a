"""Builds the library from ``cpp/`` with whatever C++17 compiler is there, in two minutes or so.

One object per source file, no flags for this machine: the instruction set is chosen when the
library runs. Imports nothing but the standard library, so that ``setup.py`` can use it before the
package is installed. By hand, after changing a source: ``python -m mserve.kernels.native.build``.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).parent / "cpp"
LIBRARY = Path(__file__).parent / "libmserve_native.so"

_FLAGS = [
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-pthread",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    # gcc 12's own vector headers read variables before setting them, on purpose
    "-Wno-uninitialized",
    "-Wno-maybe-uninitialized",
    # a fused multiply-add is written where it is meant: results must not hang on the optimiser
    "-ffp-contract=off",
]

_SANITIZERS = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]


class BuildError(Exception):
    """No compiler, or one that refuses the sources; the message says which and why."""


def source_digest(sources: Path = SOURCES) -> str:
    """Of all sources, so that a library can be told from one built before an edit."""
    digest = hashlib.sha256()
    for path in sorted(sources.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def compiler() -> str:
    """``$CXX``, else the first of the usual names."""
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        if name and shutil.which(name):
            return name
    raise BuildError("no C++ compiler found: install g++ 11 or newer, or set CXX")


def build(library: Path = LIBRARY, *, sanitized: Collection[Path] = ()) -> Path:
    """Compile into ``library``, replacing it in one step. The ``sanitized`` of the sources get the
    address and undefined-behaviour sanitizers, whose runtime the process that loads it must
    preload."""
    command = compiler()
    flags = [*_FLAGS, f'-DMSERVE_SOURCE_DIGEST="mserve-sources:{source_digest()}"']
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        objects: list[str] = []
        commands: list[list[str]] = []
        for source in sorted(SOURCES.glob("*.cpp")):
            objects.append(str(Path(folder) / f"{source.stem}.o"))
            checks = _SANITIZERS if source in sanitized else []
            commands.append([command, *flags, *checks, "-c", str(source), "-o", objects[-1]])
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(_run, commands))
        linked = Path(folder) / library.name
        checks = _SANITIZERS if sanitized else []
        _run([command, *flags, *checks, "-shared", *objects, "-o", str(linked)])
        linked.replace(library)
    return library


def ensure_built() -> None:
    """Build unless a library made from these very sources is there."""
    if built_digest() != source_digest():
        build()


def built_digest(library: Path = LIBRARY) -> str | None:
    """The digest of the sources that ``library`` was built from, None if there is none.

    Read from the file's bytes: loading it here would keep an old version in the process.
    """
    if not library.exists():
        return None
    found = re.search(rb"mserve-sources:([0-9a-f]{16})\0", library.read_bytes())
    return found.group(1).decode() if found else None


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        first_lines = "\n".join(done.stderr.splitlines()[:5])
        raise BuildError(f"{command[0]} failed on {command[-3]}:\n{first_lines}")


if __name__ == "__main__":
    try:
        sys.stdout.write(f"built {build()}\n")
    except BuildError as error:
        sys.exit(str(error))
