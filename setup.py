"""Builds the C++ kernels while the package is installed; everything else is in pyproject.toml.

Without a compiler the install still succeeds: the torch reference runs, and start-up says so.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

NATIVE = Path("mserve/kernels/native")


def native_build() -> ModuleType:
    """The package's own build script, before there is a package to import it from."""
    spec = importlib.util.spec_from_file_location("native_build", "src" / NATIVE / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BuildWithKernels(build_py):
    """Puts the library beside its loader: in the source tree for an editable install."""

    def run(self) -> None:
        super().run()
        build = native_build()
        root = Path("src") if self.editable_mode else Path(self.build_lib)
        try:
            build.build(root / NATIVE / build.LIBRARY.name)
        except build.BuildError as error:
            sys.stderr.write(f"mserve: C++ kernels not built, torch will be used: {error}\n")


class PlatformDistribution(Distribution):
    """The wheel holds machine code, so it is for one platform."""

    def has_ext_modules(self) -> bool:
        return True


setup(cmdclass={"build_py": BuildWithKernels}, distclass=PlatformDistribution)
