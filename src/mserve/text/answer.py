"""The text of one answer as it grows: detokenize, look for stop strings, tell thinking and calls.

    token ids ── Detokenizer ──> text ── StopStrings ──> text ── OutputParser ──> events

A parser gets text token by token with the id beside it, since a marker that was generated as one
token counts for more than one that is spelled. Knows one sequence. Does not know HTTP or how many
choices there are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

import msgspec

from mserve.core import SamplingParams
from mserve.text.detokenize import Detokenizer
from mserve.text.dialects import State
from mserve.text.events import ArgumentsDelta, ContentDelta, Event, ReasoningDelta
from mserve.text.stop import StopStrings
from mserve.text.tokenizer import Tokenizer


class OutputParser(Protocol):
    """Sorts an answer's text into events as it streams."""

    state: State

    def push(self, token_id: int, text: str) -> Sequence[Event]:
        """A token, and the text that it completed."""

    def push_text(self, text: str) -> Sequence[Event]:
        """Text that is no whole token's."""

    def finish(self) -> Sequence[Event]:
        """The answer is over: release what was held back for want of more text."""


class PlainParser:
    """All text is content."""

    state = State.CONTENT

    def push(self, token_id: int, text: str) -> Sequence[Event]:
        return (ContentDelta(text),) if text else ()

    def push_text(self, text: str) -> Sequence[Event]:
        return (ContentDelta(text),) if text else ()

    def finish(self) -> Sequence[Event]:
        return ()


class AnswerPiece(msgspec.Struct, frozen=True):
    """What some tokens added: ``num_tokens`` of them count; a ``stop`` string ended the answer."""

    events: list[Event]
    num_tokens: int
    num_reasoning_tokens: int
    texts: list[str]  # characters that each counted token completed, for text offsets
    stop: str | None = None

    @property
    def content(self) -> str:
        """All that is said, thinking and calls apart."""
        return "".join(event.text for event in self.events if isinstance(event, ContentDelta))


class Answer:
    """Feed it a sequence's new tokens; it gives what to show."""

    def __init__(
        self, tokenizer: Tokenizer, sampling: SamplingParams, parser: OutputParser | None = None
    ) -> None:
        self._detokenizer = Detokenizer(tokenizer, skip_special_tokens=sampling.skip_special_tokens)
        self._stops = StopStrings(sampling.stop, include=sampling.include_stop_str_in_output)
        self._has_stops = bool(sampling.stop)
        self._unread: deque[tuple[int | None, str]] = deque()  # held back by the stop scan
        self._parser: OutputParser = PlainParser() if parser is None else parser
        self._min_tokens = sampling.min_tokens
        self._shows_stop_token = sampling.include_stop_str_in_output
        self._num_tokens = 0

    def push(
        self, token_ids: Sequence[int], *, last: bool = False, stop_token_id: int | None = None
    ) -> AnswerPiece:
        """``last``: the sequence ends with these. ``stop_token_id``: the last of them ended it
        and is not part of the text, unless stop strings are to be included too."""
        texts: list[str] = []
        events: list[Event] = []
        parser = self._parser
        num_reasoning = 0
        for number, token_id in enumerate(token_ids, start=1):
            self._num_tokens += 1
            num_reasoning += parser.state is State.THINKING
            ends_it = stop_token_id is not None and number == len(token_ids)
            if ends_it and not self._shows_stop_token:
                texts.append("")
                continue
            text = self._detokenizer.push(token_id)
            texts.append(text)
            if not self._has_stops:
                events += parser.push(token_id, text)
                continue
            stop = self._scan(token_id, text, events)
            if stop is not None:
                events += parser.finish()
                return AnswerPiece(joined(events), number, num_reasoning, texts, stop)
        stop = self._close(events) if last else None
        return AnswerPiece(joined(events), len(token_ids), num_reasoning, texts, stop)

    def finish(self) -> list[Event]:
        """The sequence was ended from outside: what was held back."""
        events: list[Event] = []
        self._close(events)
        return joined(events)

    def _scan(self, token_id: int | None, text: str, events: list[Event]) -> str | None:
        """Look for stop strings; what may be shown goes to the parser."""
        self._unread.append((token_id, text))
        scan = self._stops.push(text, may_stop=self._num_tokens >= self._min_tokens)
        self._release(len(scan.text), events)
        return scan.stop

    def _close(self, events: list[Event]) -> str | None:
        stop = self._scan(None, self._detokenizer.finish(), events)
        if stop is None:
            self._release(len(self._stops.finish()), events)
        events += self._parser.finish()
        return stop

    def _release(self, num_chars: int, events: list[Event]) -> None:
        """Give the parser the next ``num_chars`` of what is unread, token by token."""
        while self._unread and (num_chars or not self._unread[0][1]):
            token_id, text = self._unread.popleft()
            if len(text) > num_chars:
                self._unread.appendleft((None, text[num_chars:]))
                token_id, text = None, text[:num_chars]
            num_chars -= len(text)
            if token_id is None:
                events += self._parser.push_text(text)
            else:
                events += self._parser.push(token_id, text)


def joined(events: list[Event]) -> list[Event]:
    """Neighbours of one kind as one: a reader that lags gets few events, not many small ones."""
    if len(events) < 2:
        return events
    out = [events[0]]
    for event in events[1:]:
        last = out[-1]
        match last, event:
            case (ReasoningDelta(text=a), ReasoningDelta(text=b)):
                out[-1] = ReasoningDelta(a + b)
            case (ContentDelta(text=a), ContentDelta(text=b)):
                out[-1] = ContentDelta(a + b)
            case (ArgumentsDelta(index=i, text=a), ArgumentsDelta(index=j, text=b)) if i == j:
                out[-1] = ArgumentsDelta(i, a + b)
            case _:
                out.append(event)
    return out
