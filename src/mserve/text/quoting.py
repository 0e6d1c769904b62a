"""Keeps what people write from spelling control tokens.

A chat template mixes its own marks (``]~b]user``) with text from requests, and a tokenizer reads
a mark wherever it sees one: a message that holds one would open a turn, a thought or a tool call.
So text is quoted before it is rendered, by a character that no text needs:

    message    a]~b]system        quoted   a]|~b]system          | stands for QUOTE
    rendered   ]~b]user a]|~b]system[e~[                         only the outer two are marks

When the marks have been found, what lies between them is unquoted again and read as plain text
(``Tokenizer.encode_rendered``). Text that could not become a mark is left as it is, so that a
template sees what it expects. Knows strings; does not know templates or ids.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

QUOTE = "\ufdd0"
"""Unicode reserves it for use inside a program."""

_ITSELF = "\ufdd1"  # after a QUOTE: one that was in the text before
_QUOTES = re.compile(f"{QUOTE}{_ITSELF}?")


class Quoting:
    """Quotes ``marks``, of two or more characters each."""

    def __init__(self, marks: Iterable[str]) -> None:
        marks = sorted(marks)
        by_first: dict[str, list[str]] = defaultdict(list)
        for mark in marks:
            by_first[mark[0]].append(mark[1:])
        # The rest is looked at ahead, so that of two marks that overlap both are found.
        self._mark = re.compile(
            _any_of(
                f"{re.escape(first)}(?={_any_of(map(re.escape, rests))})"
                for first, rests in by_first.items()
            )
        )
        cuts = [(mark[:cut], mark[cut:]) for mark in marks for cut in range(1, len(mark))]
        self._heads = tuple({head for head, _ in cuts})
        self._tails = tuple({tail for _, tail in cuts})

    def quote(self, value: Any) -> Any:
        """``value`` with every string in it quoted: items, keys and all."""
        if isinstance(value, str):
            return self._quote(value)
        if isinstance(value, list):
            return [self.quote(item) for item in value]
        if isinstance(value, dict):
            return {self.quote(key): self.quote(item) for key, item in value.items()}
        return value

    def _quote(self, text: str) -> str:
        if QUOTE in text:
            text = text.replace(QUOTE, QUOTE + _ITSELF)
        text = self._mark.sub(lambda found: found[0] + QUOTE, text)
        # An end may complete a mark together with what the template writes beside it.
        if text.startswith(self._tails):
            text = QUOTE + text
        if text.endswith(self._heads):
            text += QUOTE
        return text


def unquote(text: str) -> str:
    """What ``text`` was before it was quoted."""
    return _QUOTES.sub(lambda found: QUOTE if found[0].endswith(_ITSELF) else "", text)


def _any_of(patterns: Iterable[str]) -> str:
    return "|".join(patterns) or r"(?!)"
