"""Those who wait, in the order in which they will be admitted. Bounded.

Knows order and length. Does not know why the first one cannot run yet (``plan``).
"""

from __future__ import annotations

from bisect import bisect_left, insort

from mserve.core import QueueFullError
from mserve.scheduler.live import LiveRequest
from mserve.scheduler.policy import turn


class WaitingQueue:
    """Sorted by ``policy.turn``. Moves are O(n) memory moves of pointers: at the bounds that make
    sense for a queue, cheaper than any tree."""

    def __init__(self, max_waiting: int) -> None:
        self.max_waiting = max_waiting
        self._waiting: list[LiveRequest] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def check_room(self) -> None:
        if len(self._waiting) >= self.max_waiting:
            raise QueueFullError(
                f"the queue is full: {self.max_waiting} requests are waiting; try again later"
            )

    def put(self, live: LiveRequest) -> None:
        """Its place follows from its turn. The bound is for arrivals only (``check_room``): a
        preempted request must never be lost."""
        insort(self._waiting, live, key=turn)

    def first(self, count: int) -> list[LiveRequest]:
        """The next ``count``, without removing them."""
        return self._waiting[:count]

    def remove(self, live: LiveRequest) -> None:
        del self._waiting[bisect_left(self._waiting, turn(live), key=turn)]
