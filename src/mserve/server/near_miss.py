"""Where a prompt left the path of an earlier one, and so the prefix cache.

    earlier   [ same tokens ............... | " 17" ...
    now       [ same tokens ............... | " 16" ...     near miss at this token

Prompts that begin with the same block belong to one *conversation head*: those of one agent with
one set of tools. Of each head the last few prompts are kept, and a new one is compared with that
which it follows longest. Knows token ids and their text. Does not know what is really cached.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict, deque
from collections.abc import Sequence

import msgspec

from mserve.core import BLOCK_TOKENS
from mserve.text import Tokenizer

_MAX_HEADS = 64
_PROMPTS_PER_HEAD = 4
_SHOWN_TOKENS = 12


class NearMiss(msgspec.Struct, frozen=True):
    """A prompt that shares ``num_shared`` tokens with an earlier one of ``num_earlier``."""

    request_id: str
    earlier_id: str
    num_tokens: int
    num_shared: int
    num_earlier: int
    text_before: str
    text: str  # from the first token that differs on
    earlier_text: str

    def __str__(self) -> str:
        return (
            f"{self.request_id}: {self.num_tokens} prompt tokens follow {self.earlier_id} "
            f"({self.num_earlier}) for {self.num_shared}; after {self.text_before!r} comes "
            f"{self.text!r} instead of {self.earlier_text!r}"
        )


class _Kept(msgspec.Struct, frozen=True):
    request_id: str
    tokens: array[int]


class NearMisses:
    """Remembers prompts; memory is bounded by heads x prompts per head, 4 bytes a token."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._heads: OrderedDict[bytes, deque[_Kept]] = OrderedDict()

    def note(self, request_id: str, token_ids: Sequence[int]) -> NearMiss | None:
        """Remember a prompt; what it nearly hit, if it did."""
        tokens = array("I", token_ids)
        if len(tokens) < BLOCK_TOKENS:
            return None
        head = tokens[:BLOCK_TOKENS].tobytes()
        kept = self._heads.setdefault(head, deque(maxlen=_PROMPTS_PER_HEAD))
        self._heads.move_to_end(head)
        if len(self._heads) > _MAX_HEADS:
            self._heads.popitem(last=False)
        nearest = max(kept, key=lambda one: num_shared(one.tokens, tokens), default=None)
        kept.append(_Kept(request_id, tokens))
        if nearest is None:
            return None
        shared = num_shared(nearest.tokens, tokens)
        if shared in (len(nearest.tokens), len(tokens)):
            return None  # the one only continues the other
        return NearMiss(
            request_id=request_id,
            earlier_id=nearest.request_id,
            num_tokens=len(tokens),
            num_shared=shared,
            num_earlier=len(nearest.tokens),
            text_before=self._text(tokens[max(0, shared - _SHOWN_TOKENS) : shared]),
            text=self._text(tokens[shared : shared + _SHOWN_TOKENS]),
            earlier_text=self._text(nearest.tokens[shared : shared + _SHOWN_TOKENS]),
        )

    def _text(self, tokens: array[int]) -> str:
        return self._tokenizer.decode(tokens.tolist(), skip_special_tokens=False)


def num_shared(one: array[int], other: array[int]) -> int:
    """Length of the common beginning: slices are compared at the speed of C, halving what is in
    doubt, so 100,000 tokens take a fifth of a millisecond."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
