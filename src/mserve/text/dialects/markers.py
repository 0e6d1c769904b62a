"""Finds markers in text that arrives in pieces, and how much of its end must wait for more.

A marker that was generated as its own token is *real*, one that ordinary tokens spell is
*spelled*. In the text that the readers see, a real marker is a single character that no decoded
text contains: a lone surrogate. So one search finds both, a real one is never cut, and what was
real can be told from what only looks like it. Knows characters only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

MAX_TAG_CHARS = 1024
"""A tag that has not ended after so many characters is text."""

_FIRST_SURROGATE = 0xD800

Pattern = re.Pattern[str]


class Spellings:
    """The markers of one dialect, and the character that stands for each when it is real."""

    def __init__(self, markers: Iterable[str]) -> None:
        self.real = {marker: chr(_FIRST_SURROGATE + i) for i, marker in enumerate(markers)}
        self._spelled = {ord(char): marker for marker, char in self.real.items()}

    def both(self, marker: str) -> tuple[str, ...]:
        """How ``marker`` may look: real, or spelled."""
        return self.real[marker], marker

    def text(self, text: str) -> str:
        """``text`` as it is shown: real markers spelled out."""
        if text.isascii():
            return text
        return text.translate(self._spelled)


def search_pattern(literals: Iterable[str]) -> Pattern:
    """Matches the first of ``literals``, or an end of the text that one of them may begin with.

    Where several match at one place the longest wins. Group 1 is set if and only if the match is
    a whole literal; otherwise the text from the match on must wait for more. No literals: no
    match.
    """
    literals = sorted(set(literals), key=len, reverse=True)
    whole = "|".join(map(re.escape, literals)) or "(?!)"
    tree: dict[str, dict[str, object]] = {}
    for literal in literals:
        node: dict[str, object] = tree  # type: ignore[assignment]
        for char in literal[:-1]:
            node = node.setdefault(char, {})  # type: ignore[assignment]
    unfinished = _unfinished(tree)
    return re.compile(f"({whole})|{unfinished}" if unfinished else f"({whole})")


def _unfinished(tree: Mapping[str, object]) -> str:
    """A pattern for every path into ``tree`` that ends where the text ends."""
    branches = []
    for char, subtree in tree.items():
        deeper = _unfinished(subtree)  # type: ignore[arg-type]
        end = rf"(?:\Z|{deeper})" if deeper else r"\Z"
        branches.append(re.escape(char) + end)
    return f"(?:{'|'.join(branches)})" if branches else ""


def could_become(text: str, literals: Iterable[str]) -> bool:
    """Whether ``text`` is a proper beginning of one of ``literals``."""
    return any(len(text) < len(literal) and literal.startswith(text) for literal in literals)
