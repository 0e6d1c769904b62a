"""The shared library as ctypes functions: found, checked and given its argument types once.

Knows the C interface of ``cpp/abi.cpp``; does not know shapes or tensors (the ``_ops`` files).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from ctypes import c_char_p, c_float, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path

from mserve.kernels.native.build import (
    LIBRARY,
    BuildError,
    built_digest,
    compiler,
    source_digest,
)

_BUILD = "python -m mserve.kernels.native.build"

_P, _N, _I, _F = c_void_p, c_int64, c_int, c_float

_OPS = {
    "mserve_read": [_P, _N],
    "mserve_linear": [_P] * 5 + [_N] * 6 + [_I] * 3,
    "mserve_moe": [_P] * 12 + [_N] * 7 + [_I] * 4 + [_F] * 3,
    "mserve_rms_norm": [_P] * 3 + [_N] * 2 + [_F] + [_I] * 2,
    "mserve_norm_rope": [_P] * 6 + [_N] * 6 + [_F, _I, _I],
    "mserve_mean_squares": [_P] * 2 + [_N] * 6 + [_I],
    "mserve_embedding": [_P] * 3 + [_N] * 3 + [_I],
    "mserve_rope_angles": [_P] * 4 + [_N] * 2,
    "mserve_activate": [_P] * 2 + [_N] * 2 + [_I] * 2 + [_F] * 3,
    "mserve_residual_sum": [_P] * 3 + [_N] * 2 + [_I],
    "mserve_draw": [_P] * 9 + [_N] * 2,
    "mserve_tape_begin": [],
    "mserve_tape_play": [_P],
    "mserve_write_kv": [_P] * 3 + [_N] * 4 + [_I],
    "mserve_route": [_P] * 5 + [_N] * 4 + [_F, _I],
    "mserve_select_blocks": [_P] * 5 + [_N] * 9 + [_I],
    "mserve_attention": [_P] * 7 + [_N] * 8 + [_F, _I],
}


class NativeError(RuntimeError):
    """A native op could not run."""


class NativeUnavailable(Exception):  # noqa: N818 - a state of the installation, not a failure
    """Why the library cannot be used here, in one line."""


@cache
def library() -> ctypes.CDLL:
    """The loaded library. Raises ``NativeUnavailable``."""
    path = Path(os.environ.get("MSERVE_NATIVE_LIBRARY", LIBRARY))
    digest = built_digest(path)
    if digest is None:
        raise NativeUnavailable(f"not built: {_remedy()}")
    if digest != source_digest():
        raise NativeUnavailable(f"built from other sources: {_remedy()}")
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeUnavailable(f"{path.name} cannot be loaded: {error}") from None
    for name, argument_types in _OPS.items():
        getattr(loaded, name).argtypes = argument_types
    loaded.mserve_tape_end.restype = c_void_p
    loaded.mserve_tape_free.argtypes = [c_void_p]
    loaded.mserve_tape_free.restype = None
    loaded.mserve_touch_rows.argtypes = [c_void_p, c_int64, c_int64]
    loaded.mserve_touch_rows.restype = None
    loaded.mserve_isa.restype = c_char_p
    loaded.mserve_use_isa.argtypes = [c_char_p]
    loaded.mserve_set_num_threads.argtypes = [c_int, c_void_p]
    wanted = os.environ.get("MSERVE_ISA")
    if wanted and loaded.mserve_use_isa(wanted.encode()):
        raise NativeUnavailable(f"MSERVE_ISA={wanted} is not an instruction set of this machine")
    return loaded


def _remedy() -> str:
    try:
        compiler()
    except BuildError:
        return f"install g++ 11 or newer and run `{_BUILD}`"
    return f"run `{_BUILD}`"


def check(status: int) -> None:
    """What an op returned. Raises ``NativeError``, or ``IndexError`` as torch does."""
    if status == 2:
        raise IndexError("a token id is not in the vocabulary")
    if status:
        raise NativeError("no memory for a native kernel's intermediate values")


def isa() -> str:
    """Name of the instruction set in use."""
    name: bytes = library().mserve_isa()
    return name.decode()


def use_isa(name: str) -> None:
    """Switch all ops to ``avx512_bf16``, ``avx512``, ``avx2`` or ``plain``."""
    if library().mserve_use_isa(name.encode()):
        raise NativeUnavailable(f"{name} is not an instruction set of this machine")


def available_isas() -> list[str]:
    """Names that this machine can run, best first."""
    current, found = isa(), []
    for name in ("avx512_bf16", "avx512", "avx2", "plain"):
        if not library().mserve_use_isa(name.encode()):
            found.append(name)
    use_isa(current)
    return found


def set_num_threads(count: int, cpus: Sequence[int] = ()) -> bool:
    """Threads of every later op, the caller included, which is never pinned. With ``cpus``, one for
    each, the others are; False if the system did not let them."""
    if count < 1 or len(cpus) not in (0, count):
        raise ValueError(f"{count} threads on {len(cpus)} processors")
    places = (c_int * count)(*cpus) if cpus else None
    return library().mserve_set_num_threads(count, places) == 0


def num_threads() -> int:
    count: int = library().mserve_num_threads()
    return count
