"""The native library for tests: built from the sources at hand, one instruction set at a time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mserve.kernels.native import (
    BuildError,
    available_isas,
    ensure_built,
    isa,
    num_threads,
    set_num_threads,
    use_isa,
)

ISAS = ("avx512_bf16", "avx512", "avx2", "plain")


@pytest.fixture(scope="session")
def native_library() -> None:
    """Builds what is missing or older than the sources; a machine without a compiler skips."""
    try:
        ensure_built()
    except BuildError as error:
        pytest.skip(str(error))


@pytest.fixture(params=ISAS)
def each_isa(request: pytest.FixtureRequest, native_library: None) -> Iterator[str]:
    """Runs the test once per instruction set of this machine, on two threads."""
    if request.param not in available_isas():
        pytest.skip(f"this machine has no {request.param}")
    before = isa(), num_threads()
    use_isa(request.param)
    set_num_threads(2)
    yield request.param
    use_isa(before[0])
    set_num_threads(before[1])
