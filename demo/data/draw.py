"""Random choices, kept apart: what tests ask is never what was taught.

Contents (numbers, keys, names, phrasings) belong to the held-out part or to the taught part by a
hash of the content itself, so the two stay apart whatever the seeds are. Where a skill cannot
generalise over something (a capital must have been taught), it draws with ``any``.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

_HELD_OUT_IN = 8  # one content in so many is held out
_START = 27  # of the checksum: with it, cities that people ask for first are all taught


def is_held_out(content: object) -> bool:
    return zlib.crc32(repr(content).encode(), _START) % _HELD_OUT_IN == 0


class Draw:
    """``held_out``: draw contents for tests instead of those for training."""

    def __init__(self, rng: random.Random, *, held_out: bool = False) -> None:
        self.rng = rng
        self.held_out = held_out

    def any(self, pool: Sequence[T]) -> T:
        """One of ``pool``, taught or held out."""
        return self.rng.choice(pool)

    def some(self, pool: Sequence[T], count: int) -> list[T]:
        """``count`` different ones, taught or held out."""
        return self.rng.sample(pool, count)

    def own(self, make: Callable[[], T]) -> T:
        """What ``make`` makes, again until it is of this side."""
        while True:
            made = make()
            if is_held_out(made) == self.held_out:
                return made

    def one(self, pool: Sequence[T]) -> T:
        """One of those in ``pool`` that are of this side; there must be such."""
        return self.own(lambda: self.rng.choice(pool))

    def phrase(self, phrasings: Sequence[str]) -> str:
        """A way to say it. The last of three or more is held out."""
        if len(phrasings) < 3:
            return self.rng.choice(phrasings)
        return phrasings[-1] if self.held_out else self.rng.choice(phrasings[:-1])

    def number(self, low: int, high: int) -> int:
        """``low`` to ``high``, both included, taught or held out."""
        return self.rng.randint(low, high)

    def happens(self, probability: float) -> bool:
        return self.rng.random() < probability
