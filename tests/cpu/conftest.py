"""Which kernels the tests of this folder run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mserve.kernels import use_kernels


@pytest.fixture(scope="module", autouse=True)
def start_with_the_reference() -> Iterator[None]:
    """The choice is one for the whole process: an engine that a module starts makes its own, and
    the next module must not inherit it."""
    use_kernels("reference")
    yield
    use_kernels("reference")


@pytest.fixture(scope="module", params=["reference", "native"])
def both_kernels(request: pytest.FixtureRequest, start_with_the_reference: None) -> str:
    """Runs a module once per implementation."""
    use_kernels(request.param)
    return str(request.param)
