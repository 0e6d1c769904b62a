"""A step recorded once and played back: the ops it ran, with nothing of Python between them.

    record     runs the step as usual; every native op is written down with its arguments
    play       runs the same ops over the same memory, in one call

A tape is only worth something if the step was native ops throughout, so the recorder watches what
torch is asked for: views are free, empty tensors come from an arena that keeps their memory, and
anything that computes makes the step unrecordable. Inputs are tensors that the caller keeps and
writes into between plays.
Knows ops and memory; does not know what a step is.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mserve.kernels.native.library import check, library

_EMPTY = (torch.ops.aten.empty.memory_format, torch.ops.aten.empty_like.default)
_SMALLEST = 64  # bytes


class Arena:
    """Memory of intermediate values. What a recording lets go of, its later ops and other
    recordings take over, since no two play at once; nothing goes back to the system."""

    def __init__(self) -> None:
        self._slabs: dict[int, torch.Tensor] = {}  # all, by address
        self._free: list[torch.Tensor] = []  # ascending in size

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        num_bytes = max(1, prod(shape)) * dtype.itemsize
        slab = self._slab(num_bytes)
        # An array of its own, which lives as long as any tensor over it.
        array = slab.numpy()
        weakref.finalize(array, self._give_back, slab).atexit = False
        values = torch.from_numpy(array)[: prod(shape) * dtype.itemsize]
        return values.view(dtype).view(shape)

    def _slab(self, num_bytes: int) -> torch.Tensor:
        for number, slab in enumerate(self._free):
            if len(slab) >= num_bytes:
                return self._free.pop(number)
        rounded = 1 << max(num_bytes - 1, _SMALLEST).bit_length()
        slab = torch.empty(rounded, dtype=torch.uint8)
        self._slabs[slab.data_ptr()] = slab
        return slab

    def lent(self, values: torch.Tensor) -> torch.Tensor:
        """``values``, made here, without keeping later recordings from using their memory: right
        from a play to the next play or recording."""
        slab = self._slabs[values.data_ptr()]
        return slab[: values.nbytes].view(values.dtype).view(values.shape)

    def _give_back(self, slab: torch.Tensor) -> None:
        self._free.append(slab)
        self._free.sort(key=len)


class Tape:
    """Recorded ops. ``kept`` is what must stay alive for them: inputs, weights, memory."""

    def __init__(self, handle: int, kept: object) -> None:
        self._handle = ctypes.c_void_p(handle)
        self._kept = kept
        self._play = library().mserve_tape_play
        weakref.finalize(self, library().mserve_tape_free, self._handle).atexit = False

    def play(self) -> None:
        """Compute the results anew from what the inputs hold now."""
        if status := self._play(self._handle):
            check(status)


def record(
    step: Callable[[], tuple[torch.Tensor, ...]], arena: Arena
) -> tuple[tuple[torch.Tensor, ...], Tape | None]:
    """What ``step`` returns, and its tape, whose every play writes the same tensors; no tape if
    torch computed any part of the step."""
    watch = _Watch(arena)
    check(library().mserve_tape_begin())
    try:
        with watch:
            results = step()
    finally:
        tape = Tape(library().mserve_tape_end(), (step, arena))
    if watch.torch_computed:
        return results, None
    return tuple(arena.lent(values) for values in results), tape


class _Watch(TorchDispatchMode):
    def __init__(self, arena: Arena) -> None:
        super().__init__()
        self._arena = arena
        self.torch_computed = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _EMPTY:
            like = args[0] if isinstance(args[0], torch.Tensor) else None
            shape = tuple(args[0] if like is None else like.shape)
            default = torch.get_default_dtype() if like is None else like.dtype
            return self._arena.empty(shape, kwargs.get("dtype") or default)
        if not func.is_view:
            self.torch_computed = True
        return func(*args, **kwargs)
