"""Rules about single files that no linter knows.

    python tools/check_files.py [FILE ...]        (default: every tracked file)

- no pickle, and nothing that pickles by default: what arrives on a socket or lies in a checkpoint
  is data, never code
- triton is imported in ``kernels`` only, so that a machine without it misses one folder
- transformers is an oracle of the tests; of the package only ``testing`` may import it
- no file above 1 MiB, unless it is listed here

Exit 1 and one line per breach.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAX_BYTES = 1 << 20
LARGE_FILES = frozenset(
    {"src/mserve/demo/model-00001-of-00001.safetensors", "demo/draft/checkpoint/model.safetensors"}
)

_PICKLES = {"pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve"}


def breaches(path: Path, name: str) -> Iterator[str]:
    """What is wrong with the file ``path``, called ``name`` from the root on."""
    size = path.stat().st_size
    if size > MAX_BYTES and name not in LARGE_FILES:
        yield f"{name}: {size / MAX_BYTES:.1f} MiB; at most 1"
    if path.suffix != ".py":
        return
    for line, module in _imports(path.read_text(encoding="utf-8")):
        top = module.partition(".")[0]
        if top in _PICKLES:
            yield f"{name}:{line}: imports {top}; use msgspec"
        if top == "triton" and not name.startswith("src/mserve/kernels/"):
            yield f"{name}:{line}: imports triton outside of kernels"
        if top == "transformers" and _serves(name):
            yield f"{name}:{line}: imports transformers, which is for tests only"


def _serves(name: str) -> bool:
    return name.startswith("src/mserve/") and not name.startswith("src/mserve/testing/")


def _imports(source: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.lineno, node.module


def tracked() -> list[str]:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True)
    return [name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


def main(names: list[str]) -> int:
    found = [line for name in names or tracked() for line in breaches(ROOT / name, name)]
    print("\n".join(found) or "no file breaks a rule")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
