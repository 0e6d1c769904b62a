"""Work that would hold up the streams beside it, moved off the event loop.

Knows sizes only. A thread shares the interpreter's lock, so streams still wait for a few
milliseconds at a time, but not for the whole of the work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

_LONG_CHARS = 20_000  # about 10 ms of tokenizing, against some 0.2 ms for a thread switch

T = TypeVar("T")


async def off_loop_if_long(num_chars: int, work: Callable[[], T]) -> T:
    """``work()``, whose cost grows with ``num_chars``."""
    return await asyncio.to_thread(work) if num_chars > _LONG_CHARS else work()
