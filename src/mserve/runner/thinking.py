"""How long a row has been thinking, and when its budget forces the end.

    prompt | t t t t ...  t | closer      ``max_tokens`` tokens of thinking, then the closer

The count is a function of the row's output alone, so a preempted row comes back with the same.
Knows three numbers of a vocabulary; does not know markup or text.
"""

from __future__ import annotations

from collections.abc import Iterable

from mserve.core import ThinkingBudget


class ThinkingClock:
    """Counts the thinking tokens of one row."""

    def __init__(self, budget: ThinkingBudget, output_ids: Iterable[int]) -> None:
        self._budget = budget
        self._is_open = budget.is_open
        self._num_tokens = 0
        for token_id in output_ids:
            self.add(token_id)

    @property
    def forced_id(self) -> int | None:
        """The token that must come next, if the budget is spent."""
        spent = self._is_open and self._num_tokens >= self._budget.max_tokens
        return self._budget.close_id if spent else None

    def add(self, token_id: int) -> None:
        """One more output token. Markers do not count."""
        if token_id == self._budget.close_id:
            self._is_open = False
        elif token_id == self._budget.open_id:
            self._is_open = True
        elif self._is_open:
            self._num_tokens += 1
