"""Those who wait, in the order in which they will be admitted.

Knows order and length. Does not know why the first one cannot run yet (``plan``), or how many may
wait (``scheduler``).
"""

from __future__ import annotations

from bisect import bisect_left, insort

from mserve.scheduler.live import LiveRequest
from mserve.scheduler.policy import turn


class WaitingQueue:
    """Sorted by ``policy.turn``. Moves are O(n) memory moves of pointers: at the bounds that make
    sense for a queue, cheaper than any tree."""

    def __init__(self) -> None:
        self._waiting: list[LiveRequest] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, live: LiveRequest) -> None:
        """Its place follows from its turn."""
        insort(self._waiting, live, key=turn)

    def first(self, count: int) -> list[LiveRequest]:
        """The next ``count``, without removing them."""
        return self._waiting[:count]

    def remove(self, live: LiveRequest) -> None:
        del self._waiting[bisect_left(self._waiting, turn(live), key=turn)]
