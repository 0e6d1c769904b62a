"""Engine, kernels and models import nothing of the HTTP side: they run where torch is installed
and msgspec, and nothing else of ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import mserve

FOLDERS = ("kernels", "parallel", "layers", "sampler", "weights", "models", "runner", "engine")
NEEDED = {"msgspec", "numpy", "torch"}
SCRIPT = """
import importlib, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name in sys.argv[1].split():
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
for name in sys.argv[2:]:
    importlib.import_module(name)
"""


def requirements() -> set[str]:
    """Import names of what a full installation brings and the compute side does without."""
    text = (Path(mserve.__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    wanted = text.partition("dependencies = [")[2].partition("]\n")[0]
    names = {line.strip(' ",').partition(">")[0] for line in wanted.split()}
    imported_as = {"markdown-it-py": "markdown_it", "pyzmq": "zmq"}
    return {imported_as.get(name, name.replace("-", "_")) for name in names if name} - NEEDED


def test_the_compute_side_needs_only_torch_and_msgspec() -> None:
    assert {"zmq", "tokenizers", "starlette"} <= requirements()
    root = Path(mserve.__file__).parent
    modules = [
        ".".join(file.relative_to(root.parent).with_suffix("").parts).removesuffix(".__init__")
        for folder in FOLDERS
        for file in sorted((root / folder).rglob("*.py"))
        if file.name != "main.py"  # the engine's process, which talks to a front end
    ]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, " ".join(requirements()), *modules],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root.parent)},
    )
    assert done.returncode == 0, done.stderr
