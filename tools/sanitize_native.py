"""Runs the native kernels' tests under the address and undefined-behaviour sanitizers.

    python tools/sanitize_native.py [pytest arguments]

Python itself is not instrumented, so the sanitizers' runtime is preloaded; it then also watches
the tensors that torch allocates, and a read past one's end is reported with its kernel. Kernels for
instruction sets that this machine has not are not run, so they are compiled without.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Counts page faults, of which the sanitizer's own memory causes some.
NOT_COUNTED = "tests/cpu/test_native_placement.py::test_each_worker_gets_the_pages_of_its_rows"
sys.path.insert(0, str(ROOT / "src"))

from mserve.kernels.native import available_isas  # noqa: E402
from mserve.kernels.native.build import SOURCES, build, compiler  # noqa: E402


def runtime(name: str) -> str:
    found = subprocess.run(
        [compiler(), f"-print-file-name={name}"], capture_output=True, text=True, check=True
    )
    return found.stdout.strip()


def runnable() -> list[Path]:
    """All sources but those of other machines' instruction sets."""
    isas = {f"isa_{name}" for name in available_isas()}
    return [s for s in SOURCES.glob("*.cpp") if s.stem in isas or not s.stem.startswith("isa_")]


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        library = build(Path(folder) / "libmserve_native_sanitized.so", sanitized=runnable())
        environment = {
            **os.environ,
            "MSERVE_NATIVE_LIBRARY": str(library),
            "LD_PRELOAD": f"{runtime('libasan.so')} {runtime('libubsan.so')}",
            # CPython keeps memory on purpose; the kernels' own is one scratch for the process
            "ASAN_OPTIONS": "detect_leaks=0",
            "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
            "OMP_NUM_THREADS": "1",
        }
        tests = [str(path) for path in sorted((ROOT / "tests/cpu").glob("test_native_*.py"))]
        command = [sys.executable, "-m", "pytest", "-q", *tests, "--deselect", NOT_COUNTED]
        command += sys.argv[1:]
        return subprocess.run(command, env=environment, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
