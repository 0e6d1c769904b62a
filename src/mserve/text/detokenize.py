"""Token ids to text, one token at a time, never a broken character.

    bytes   E2 82 | AC 20 | 61      tokens end where they like
    text    ""    | "€ "  | "a"     characters come out when complete

Costs one dictionary look-up and one incremental UTF-8 decode per token, whatever came before.
Knows token bytes. Does not know when to stop (``stop``).
"""

from __future__ import annotations

import codecs

from mserve.text.tokenizer import Tokenizer


class Detokenizer:
    """The text of one sequence. All pieces together equal the decoding of all its tokens."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The characters that this token completes."""
        if token_id in self._skipped:
            return ""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def finish(self) -> str:
        """What an unfinished character becomes: a replacement character, or nothing."""
        return self._decoder.decode(b"", final=True)
