"""Stop strings in streamed text: found across token borders, nothing shown too early.

For each stop string an automaton (Knuth-Morris-Pratt) holds the longest of its prefixes that the
text ends with. The longest of those is exactly what must be held back, and each character costs
one step per string. Knows characters only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class StopScan(NamedTuple):
    """``text`` may be shown. ``stop`` is the string that ended it, if one did."""

    text: str
    stop: str | None


class StopStrings:
    """Watches one sequence for the first of ``stops`` to complete.

    When two complete with the same character the longer wins, so that the text ends as early as
    it can. With ``include`` the stop string itself is part of the text.
    """

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        self._automata = [
            _Automaton(stop) for stop in sorted(stops, key=lambda stop: len(stop), reverse=True)
        ]
        self._include = include
        self._held = ""

    def push(self, text: str, *, may_stop: bool = True) -> StopScan:
        """Take more text. Without ``may_stop`` (fewer than ``min_tokens`` so far) a string that
        completes is passed over."""
        if not self._automata:
            return StopScan(text, None)
        self._held += text
        for end, char in enumerate(text, start=len(self._held) - len(text) + 1):
            for automaton in self._automata:
                if automaton.step(char) and may_stop:
                    keep = end if self._include else end - len(automaton.stop)
                    return StopScan(self._held[:keep], automaton.stop)
        held_chars = max(automaton.matched for automaton in self._automata)
        safe = self._held[: len(self._held) - held_chars]
        self._held = self._held[len(self._held) - held_chars :]
        return StopScan(safe, None)

    def finish(self) -> str:
        """The sequence ended otherwise: release what was held back."""
        held, self._held = self._held, ""
        return held


class _Automaton:
    """``matched``: length of the longest proper prefix of ``stop`` that the text ends with."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.matched = 0
        self._fallback = _borders(stop)

    def step(self, char: str) -> bool:
        """Advance by one character; true if the whole string has just completed."""
        matched = self.matched
        while matched and self.stop[matched] != char:
            matched = self._fallback[matched - 1]
        if self.stop[matched] == char:
            matched += 1
        complete = matched == len(self.stop)
        self.matched = self._fallback[matched - 1] if complete else matched
        return complete


def _borders(word: str) -> list[int]:
    """For each prefix of ``word``, the length of its longest proper prefix that is its suffix."""
    borders = [0] * len(word)
    length = 0
    for i in range(1, len(word)):
        while length and word[i] != word[length]:
            length = borders[length - 1]
        if word[i] == word[length]:
            length += 1
        borders[i] = length
    return borders
