"""The tokens of a checkpoint as the grammar library wants them.

Control tokens (markers, roles, end of text) are no text: a grammar reaches them only by id, so no
string in a grammar, however free, can be continued by one. Knows token bytes. Does not know
where they come from.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np


class VocabularyFacts(msgspec.Struct, frozen=True):
    """All tokens by id, as bytes; a process can be given these."""

    tokens: list[bytes]
    control_ids: tuple[int, ...]
    eos_ids: tuple[int, ...]  # at least one


class Vocabulary:
    """Made once per process: half a second for 200,000 tokens."""

    def __init__(
        self, facts: VocabularyFacts, encode: Callable[[str], list[int]] | None = None
    ) -> None:
        """``encode``: the tokenizer. With it, text that the grammar leaves no choice about comes
        in the tokens that the model was trained on; without, in any tokens that spell it."""
        from llguidance import LLTokenizer, TokenizerWrapper

        self.facts = facts
        self.size = max(len(facts.tokens), *(token_id + 1 for token_id in facts.eos_ids))
        self.num_mask_words = (self.size + 31) // 32
        self.tokenizer = LLTokenizer(
            TokenizerWrapper(_Tokens(facts, encode)),
            n_vocab=self.size,
            eos_token=list(facts.eos_ids),
        )
        self._overruns: dict[str, dict[int, np.ndarray]] = {}

    def token_bytes(self, token_id: int) -> bytes:
        """Empty for an id that the tokenizer lacks."""
        tokens = self.facts.tokens
        return tokens[token_id] if token_id < len(tokens) else b""

    def ids_of(self, text: str) -> list[int]:
        """Control tokens with this text."""
        wanted = text.encode()
        return [i for i in self.facts.control_ids if self.token_bytes(i) == wanted]

    def overruns(self, marker: str) -> dict[int, np.ndarray]:
        """Tokens that would end ``marker`` and go on with something else.

        By the number of bytes of the marker that stand before the token; int64 ids.
        """
        known = self._overruns.get(marker)
        if known is None:
            known = self._overruns[marker] = self._find_overruns(marker.encode())
        return known

    def _find_overruns(self, marker: bytes) -> dict[int, np.ndarray]:
        last = marker[-1:]
        found: dict[int, list[int]] = {}
        for token_id, token in enumerate(self.facts.tokens):
            end = token.find(last, 0, -1)
            while end >= 0:
                head = token[: end + 1]
                if marker.endswith(head):
                    found.setdefault(len(marker) - len(head), []).append(token_id)
                elif head.endswith(marker):
                    found.setdefault(0, []).append(token_id)
                end = token.find(last, end + 1, -1)
        return {before: np.asarray(ids, dtype=np.int64) for before, ids in found.items()}


class _Tokens:
    """What the library asks of a tokenizer."""

    bos_token_id = None

    def __init__(self, facts: VocabularyFacts, encode: Callable[[str], list[int]] | None) -> None:
        self.tokens = facts.tokens
        self.special_token_ids = list(facts.control_ids)
        self.eos_token_id = facts.eos_ids[0]
        self._encode = encode
        self._byte_ids = {token: i for i, token in enumerate(facts.tokens) if len(token) == 1}

    def __call__(self, text: str | bytes) -> list[int]:
        if self._encode is not None:
            if isinstance(text, bytes):
                raise TypeError("this tokenizer takes characters")  # the library then sends them
            return self._encode(text)
        data = text if isinstance(text, bytes) else text.encode()
        return [self._byte_ids[data[i : i + 1]] for i in range(len(data))]
