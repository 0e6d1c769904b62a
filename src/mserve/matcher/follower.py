"""One answer under a ``Constraint``: free text first, then the grammar.

    part 0 ──its marker──> part 1 ──its marker──> ... ──> grammar

A marker ends a part whether it came as one token or was spelled out, but always at the end of a
token: one that would go on after the marker is forbidden, so that the grammar begins where the
next token does. Knows tokens as bytes. Does not know thinking or calls, of which the parts are
made.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple, TypeAlias

import numpy as np

from mserve.core import Constraint, FreeText
from mserve.matcher.matcher import Matcher
from mserve.matcher.vocabulary import Vocabulary

MAX_ROLLBACK = 64


class Only(NamedTuple):
    """Bits of the tokens that may come, int32 words; see ``Matcher.allowed``."""

    mask: np.ndarray


class AllBut(NamedTuple):
    """Ids of the tokens that may not come, int64."""

    token_ids: np.ndarray


Choice: TypeAlias = Only | AllBut


class _Place(NamedTuple):
    """How far an answer is. ``tail``: the last bytes of the present part, less than its marker."""

    part: int
    open: bool  # the part has begun; if not, its first token may still skip it
    tail: bytes
    num_matched: int  # tokens that the matcher has taken


class Follower:
    """Says which tokens may come, and takes the one that did."""

    def __init__(self, constraint: Constraint, vocabulary: Vocabulary) -> None:
        """Raises ``RequestError`` if the grammar is none."""
        self._parts = constraint.after
        self._vocabulary = vocabulary
        self._matcher = Matcher(constraint.grammar, vocabulary)
        self._eos_ids = np.asarray(vocabulary.facts.eos_ids, dtype=np.int64)
        self._place = self._begun(0, 0)
        self._history: deque[_Place] = deque(maxlen=MAX_ROLLBACK)

    def choice(self) -> Choice:
        """Which tokens may come next. Raises ``RequestError`` if the grammar is too much."""
        place = self._place
        if place.part == len(self._parts):
            return Only(self._matcher.allowed())
        part = self._parts[place.part]
        if place.open:
            return AllBut(self._forbidden(part, place.tail))
        if place.part + 1 < len(self._parts):
            return AllBut(self._forbidden(self._parts[place.part + 1], b""))
        mask = self._matcher.allowed().copy()
        for marker in (part.begins_with, part.ends_with):
            for token_id in self._vocabulary.ids_of(marker):
                mask[token_id // 32] |= np.array(1 << (token_id % 32), np.uint32).view(np.int32)
        return Only(mask)

    def accept(self, token_id: int) -> None:
        """The next token. Raises ``RequestError`` if the grammar does not allow it."""
        before = self._place
        self._place = self._after(before, token_id)
        self._history.append(before)

    def rollback(self, num_tokens: int) -> None:
        """Take back the last tokens, at most ``MAX_ROLLBACK``."""
        before = self._place
        for _ in range(num_tokens):
            self._place = self._history.pop()
        self._matcher.rollback(before.num_matched - self._place.num_matched)

    def _begun(self, part: int, num_matched: int) -> _Place:
        optional = part < len(self._parts) and bool(self._parts[part].begins_with)
        return _Place(part, not optional, b"", num_matched)

    def _after(self, place: _Place, token_id: int) -> _Place:
        if place.part == len(self._parts):
            self._matcher.accept(token_id)
            return place._replace(num_matched=place.num_matched + 1)
        part = self._parts[place.part]
        text = place.tail + self._vocabulary.token_bytes(token_id)
        marker = part.ends_with.encode()
        if not place.open and text != marker:
            if text != part.begins_with.encode():
                return self._after(self._begun(place.part + 1, 0), token_id)
            return place._replace(open=True)
        if marker in text:
            return self._begun(place.part + 1, 0)
        return place._replace(tail=text[max(0, len(text) - len(marker) + 1) :])

    def _forbidden(self, part: FreeText, tail: bytes) -> np.ndarray:
        marker = part.ends_with.encode()
        ids = [np.asarray(part.forbidden_ids, dtype=np.int64)]
        if not part.may_end:
            ids.append(self._eos_ids)
        for before, overrunning in self._vocabulary.overruns(part.ends_with).items():
            if tail.endswith(marker[:before]):
                ids.append(overrunning)
        return np.unique(np.concatenate(ids))
