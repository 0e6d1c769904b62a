"""Recognising that a device ran out of memory, whatever the device."""

from __future__ import annotations

import torch

# The CPU allocator has no exception type of its own, only this text.
_CPU_ALLOCATOR = "DefaultCPUAllocator"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that an allocation failed, and nothing worse."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and _CPU_ALLOCATOR in str(error)
