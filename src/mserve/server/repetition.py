"""Notices an answer that goes round in circles.

The last ``num_tokens`` tokens are a loop when they are one piece, at most an eighth as long, again
and again. Checked once per quarter of them, so that a token costs a few list operations. Knows
token ids only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

_FEWEST_TIMES = 8


class RepetitionWatch:
    """Over one sequence; ``num_tokens`` 0 watches nothing."""

    def __init__(self, num_tokens: int) -> None:
        self._num_tokens = num_tokens
        self._last: deque[int] = deque(maxlen=num_tokens)
        self._unchecked = 0

    def push(self, token_ids: Sequence[int]) -> bool:
        """Whether the sequence is in a loop now."""
        if not self._num_tokens:
            return False
        self._last.extend(token_ids)
        self._unchecked += len(token_ids)
        if len(self._last) < self._num_tokens or 4 * self._unchecked < self._num_tokens:
            return False
        self._unchecked = 0
        return shortest_period(list(self._last)) * _FEWEST_TIMES <= self._num_tokens


def shortest_period(values: Sequence[int]) -> int:
    """The least p > 0 with ``values[i] == values[i - p]`` throughout, by the prefix function of
    Knuth, Morris and Pratt."""
    border = [0] * len(values)
    length = 0
    for i in range(1, len(values)):
        while length and values[i] != values[length]:
            length = border[length - 1]
        if values[i] == values[length]:
            length += 1
        border[i] = length
    return len(values) - length
