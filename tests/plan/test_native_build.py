"""An installation without a compiler, and what is said of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# What the build backend runs for a wheel, with the folders of the test's own.
BUILD = (
    "import sys, runpy; sys.argv[1:] = ['build_py', '-d', sys.argv[1]]; runpy.run_path('setup.py')"
)


@pytest.fixture
def no_compiler(tmp_path: Path) -> dict[str, str]:
    """An environment in which no program can be found."""
    (tmp_path / "bin").mkdir()
    kept = {name: value for name, value in os.environ.items() if name != "CXX"}
    return kept | {"PATH": str(tmp_path / "bin")}


def run(*command: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )


def test_the_package_is_built_without_its_kernels(
    tmp_path: Path, no_compiler: dict[str, str]
) -> None:
    done = run("-c", BUILD, str(tmp_path / "out"), env=no_compiler)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("mserve:")]
    assert "torch will be used" in line and "install g++" in line
    folder = tmp_path / "out/mserve/kernels/native"
    assert (folder / "library.py").is_file() and (folder / "cpp/abi.cpp").is_file()
    assert not list(folder.glob("*.so"))


def test_a_build_by_hand_says_what_to_install(no_compiler: dict[str, str]) -> None:
    done = run("src/mserve/kernels/native/build.py", env=no_compiler)
    assert done.returncode == 1
    assert done.stderr.strip() == "no C++ compiler found: install g++ 11 or newer, or set CXX"
