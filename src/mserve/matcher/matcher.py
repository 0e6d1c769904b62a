"""A grammar and how far it has been followed.

All work is bounded by the library's own fuel, which is spent alike wherever the same grammar
meets the same tokens: what the front end could try, the engine can follow. Knows grammars and
tokens. Does not know where in an answer the grammar begins (``follower``).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from mserve.core import RequestError
from mserve.matcher.vocabulary import Vocabulary

if TYPE_CHECKING:
    from llguidance import LLParserLimits

_MAX_MESSAGE_CHARS = 200


@functools.cache
def _limits() -> LLParserLimits:
    """What a row of the parser holds is squared by an ambiguous grammar: at 700 a hostile one
    takes up to 60 ms for a token, at the library's 2000 it takes seconds. An object with 150
    optional properties and 500 tools still fit."""
    from llguidance import LLParserLimits

    return LLParserLimits(
        max_items_in_row=700,
        max_lexer_states=20_000,  # up to 2 kB each, and a request may hold them for minutes
        max_grammar_size=200_000,
        verbose_errors=False,
    )


class Matcher:
    """Follows one answer. The library drops the interpreter's lock while it works."""

    def __init__(self, grammar: str, vocabulary: Vocabulary) -> None:
        """``grammar``: as ``text.grammar`` writes it. Raises ``RequestError`` if it is none."""
        self._num_words = vocabulary.num_mask_words
        self._eos_ids = vocabulary.facts.eos_ids
        self._num_past_end = 0  # ends of text after the library had stopped by itself
        # Imported late, here and below: an engine that meets no grammar runs without the library.
        from llguidance import LLMatcher

        self._matcher = LLMatcher(vocabulary.tokenizer, grammar, log_level=0, limits=_limits())
        self._check()

    def allowed(self) -> np.ndarray:
        """The tokens that may come next, as bits: int32 [num_mask_words], id i is bit i % 32 of
        word i // 32. At least one is set. End of text is among them where the grammar may end.

        Raises ``RequestError`` if following it takes too much, or nothing can follow.
        """
        mask = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.int32)
        self._check()
        mask = mask[: self._num_words]
        if not mask.any():
            raise _refused("no text follows it")
        return mask

    def accept(self, token_id: int) -> None:
        """Go on by one token. Raises ``RequestError`` if it may not come here, or following it
        takes too much; the matcher is of no use then."""
        if self._matcher.is_stopped() and token_id in self._eos_ids:
            self._num_past_end += 1
            return
        self._matcher.consume_token(token_id)
        self._check()

    def rollback(self, num_tokens: int) -> None:
        """Take back the last tokens."""
        past_end = min(num_tokens, self._num_past_end)
        self._num_past_end -= past_end
        num_tokens -= past_end
        if num_tokens and not self._matcher.rollback(num_tokens):
            self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise _refused(_brief(self._matcher.get_error()))


def _refused(reason: str) -> RequestError:
    return RequestError(f"the grammar cannot be used: {reason}", code="invalid_schema")


def _brief(message: str) -> str:
    """The library's reports have many lines, of which one says what is wrong."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    telling = next((line for line in lines if line.startswith("error:")), lines[0] if lines else "")
    return telling.removeprefix("error:").strip()[:_MAX_MESSAGE_CHARS]
