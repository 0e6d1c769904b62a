"""Memory that is read whole again and again: weights and caches.

Knows the system's pages; does not know what is stored in them.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence

import torch

_LARGE_PAGE_BYTES = 2 << 20


def uninitialized(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor nobody has written to yet. On a CPU its pages will be large ones where the system
    grants them on request, as Linux mostly does: the processor fetches ahead within a page only,
    and reading weights in pages of 4 KiB takes a tenth longer. The price: 2 MiB are found and
    cleared at once when the first of their bytes is written to."""
    values = torch.empty(tuple(shape), dtype=dtype, device=device)
    if values.device.type == "cpu":
        _prefer_large_pages(values)
    return values


def _prefer_large_pages(values: torch.Tensor) -> None:
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is None or values.nbytes < _LARGE_PAGE_BYTES:
        return
    # Outwards, so that a large page may begin in one tensor and end in the next.
    begin = values.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    num_bytes = values.data_ptr() + values.nbytes - begin
    # What it answers makes no difference: without such pages everything works as before.
    ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(num_bytes), advice)
