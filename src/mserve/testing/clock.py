"""A clock that stands still until it is told to move."""

from __future__ import annotations


class ManualClock:
    """Called like ``time.monotonic``; seconds pass only through ``advance``."""

    def __init__(self, now_s: float = 0.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds
