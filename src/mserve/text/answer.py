"""The text of one answer as it grows: detokenize, look for stop strings, parse.

    token ids ── Detokenizer ──> text ── StopStrings ──> text ── OutputParser ──> Delta

``OutputParser`` is the seam where thinking and tool calls will be told from plain content; today
everything is content. Knows one sequence. Does not know HTTP or how many choices there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from mserve.core import SamplingParams
from mserve.text.detokenize import Detokenizer
from mserve.text.stop import StopStrings
from mserve.text.tokenizer import Tokenizer


class Delta(msgspec.Struct, frozen=True):
    """A piece of an answer, by kind."""

    content: str = ""


class OutputParser(Protocol):
    """Sorts an answer's text into kinds as it streams."""

    def push(self, text: str) -> Delta: ...

    def finish(self) -> Delta:
        """Release what was held back for want of more text."""


class PlainParser:
    """All text is content."""

    def push(self, text: str) -> Delta:
        return Delta(text)

    def finish(self) -> Delta:
        return Delta()


class AnswerPiece(msgspec.Struct, frozen=True):
    """What some tokens added: ``num_tokens`` of them count; a ``stop`` string ended the answer."""

    delta: Delta
    num_tokens: int
    texts: list[str]  # characters that each counted token completed, for text offsets
    stop: str | None = None


class Answer:
    """Feed it a sequence's new tokens; it gives the text to show."""

    def __init__(
        self, tokenizer: Tokenizer, sampling: SamplingParams, parser: OutputParser | None = None
    ) -> None:
        self._detokenizer = Detokenizer(tokenizer, skip_special_tokens=sampling.skip_special_tokens)
        self._stops = StopStrings(sampling.stop, include=sampling.include_stop_str_in_output)
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
        shown: list[str] = []
        for number, token_id in enumerate(token_ids, start=1):
            self._num_tokens += 1
            ends_it = stop_token_id is not None and number == len(token_ids)
            if ends_it and not self._shows_stop_token:
                texts.append("")
                continue
            text = self._detokenizer.push(token_id)
            texts.append(text)
            scan = self._stops.push(text, may_stop=self._num_tokens >= self._min_tokens)
            shown.append(scan.text)
            if scan.stop is not None:
                return AnswerPiece(self._close(shown), number, texts, scan.stop)
        if not last:
            return AnswerPiece(self._parser.push("".join(shown)), len(token_ids), texts)
        scan = self._stops.push(self._detokenizer.finish())
        shown.append(scan.text)
        if scan.stop is None:
            shown.append(self._stops.finish())
        return AnswerPiece(self._close(shown), len(token_ids), texts, scan.stop)

    def _close(self, shown: list[str]) -> Delta:
        pushed, rest = self._parser.push("".join(shown)), self._parser.finish()
        return Delta(pushed.content + rest.content)
