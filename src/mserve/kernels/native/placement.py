"""Where memory lies on a machine with several NUMA nodes.

    weights     each worker's share of rows on the worker's own node, by touching it first
    KV blocks   page by page over all nodes, since any worker may read any block

The first needs no permission; the second is a system call that containers often forbid.
Knows memory and nodes; does not know models, or which worker is pinned where.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
from collections.abc import Sequence

import torch

from mserve.kernels.native.demands import contiguous
from mserve.kernels.native.library import library

_MBIND = {"x86_64": 237, "aarch64": 235}
_INTERLEAVE = 3


def touch_rows(values: torch.Tensor) -> None:
    """Have each worker write to the pages of its even share of the rows of ``values`` [N, ...],
    contiguous; nothing changes but where pages lie that nobody has written to yet."""
    contiguous(values)
    if values.numel():
        rows = values.shape[0]
        library().mserve_touch_rows(values.data_ptr(), rows, values.nbytes // rows)


def interleave(values: torch.Tensor, nodes: Sequence[int]) -> bool:
    """Spread the pages of ``values`` that nobody has written to yet over ``nodes``. False if the
    system does not do it."""
    number = _MBIND.get(platform.machine())
    if number is None:
        return False
    first = -(-values.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    num_bytes = values.data_ptr() + values.nbytes - first
    mask = ctypes.c_uint64(sum(1 << node for node in nodes if node < 64))
    arguments = (number, first, num_bytes, _INTERLEAVE, ctypes.addressof(mask), 64 + 1, 0)
    call = ctypes.CDLL(None).syscall
    return num_bytes <= 0 or call(*map(ctypes.c_long, arguments)) == 0
