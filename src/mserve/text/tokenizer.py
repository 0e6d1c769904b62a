"""Strings to token ids and back, for byte-level BPE tokenizers as the family ships them.

Knows the checkpoint's ``tokenizer.json``. Does not know templates, requests or sampling. A
checkpoint may come without a tokenizer: ``NoTokenizer`` then stands in and refuses text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import tokenizers

from mserve.core import CheckpointError, RequestError
from mserve.text.quoting import QUOTE, Quoting, unquote


class Tokenizer(Protocol):
    """What the front end needs of a tokenizer."""

    vocab_size: int
    special_ids: frozenset[int]
    longest_token_chars: int

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def encode_rendered(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """As ``encode``, for text with quoted parts: in those, marks are plain text."""
        ...

    def quote(self, value: Any, *, hidden_only: bool = False) -> Any:
        """``value`` with every string in it quoted against spelling added tokens; with
        ``hidden_only``, against those alone that never show in a decoded text."""
        ...

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str: ...

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token adds to the text; empty for an id the tokenizer lacks."""


class ByteLevelTokenizer:
    """A ``tokenizers`` tokenizer whose tokens are byte strings.

    That every token has its own bytes is what makes streaming exact: text is the UTF-8 decoding
    of concatenated token bytes, whatever the pieces.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        # The same model without the added tokens: it reads every mark as plain text.
        self._plain = tokenizers.Tokenizer(backend.model)
        if backend.normalizer is not None:
            self._plain.normalizer = backend.normalizer
        if backend.pre_tokenizer is not None:
            self._plain.pre_tokenizer = backend.pre_tokenizer
        self.vocab_size = backend.get_vocab_size(with_added_tokens=True)
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self._added_ids = frozenset(added)
        self._quoting = Quoting(token.content for token in added.values())
        self._hidden = Quoting(token.content for token in added.values() if token.special)
        self.longest_token_chars = max(map(len, backend.get_vocab()), default=1)
        self._bytes_of: dict[int, bytes] = {}

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        ids: list[int] = _encoded(self._backend, text, add_special_tokens=add_special_tokens).ids
        return ids

    def encode_rendered(self, text: str, *, add_special_tokens: bool) -> list[int]:
        if QUOTE not in text:
            return self.encode(text, add_special_tokens=add_special_tokens)
        found = _encoded(self._backend, text)
        ids: list[int] = []
        start = 0  # of the text after the last mark
        for token_id, (begin, end) in zip(found.ids, found.offsets, strict=True):
            if token_id in self._added_ids:
                ids += [*self._encode_plain(text[start:begin]), token_id]
                start = end
        ids += self._encode_plain(text[start:])
        if not add_special_tokens:
            return ids
        around = self._backend.post_process(found, add_special_tokens=True)
        first = around.special_tokens_mask.index(0)
        return [*around.ids[:first], *ids, *around.ids[first + len(found.ids) :]]

    def _encode_plain(self, text: str) -> list[int]:
        ids: list[int] = _encoded(self._plain, unquote(text)).ids
        return ids

    def quote(self, value: Any, *, hidden_only: bool = False) -> Any:
        return (self._hidden if hidden_only else self._quoting).quote(value)

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        kept = (i for i in token_ids if not (skip_special_tokens and i in self.special_ids))
        return b"".join(map(self.token_bytes, kept)).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        known = self._bytes_of.get(token_id)
        if known is None:
            token = self._backend.id_to_token(token_id)
            known = self._bytes_of[token_id] = b"" if token is None else _bytes_of_token(token)
        return known


class NoTokenizer:
    """A checkpoint without ``tokenizer.json``: prompts are token ids and answers have no text."""

    vocab_size = 0
    special_ids: frozenset[int] = frozenset()
    longest_token_chars = 1

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        raise RequestError(
            "this checkpoint has no tokenizer.json: send the prompt as token ids",
            param="prompt",
            code="no_tokenizer",
        )

    def encode_rendered(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return self.encode(text, add_special_tokens=add_special_tokens)

    def quote(self, value: Any, *, hidden_only: bool = False) -> Any:
        return value

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        return ""

    def token_bytes(self, token_id: int) -> bytes:
        return b""


def load_tokenizer(checkpoint: Path) -> Tokenizer:
    """The tokenizer of a checkpoint folder. Raises ``CheckpointError`` if it is there and
    cannot be used."""
    path = checkpoint / "tokenizer.json"
    if not path.exists():
        return NoTokenizer()
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for every defect
        raise CheckpointError(
            f"{path}: {error}", hint="copy tokenizer.json from the published checkpoint again"
        ) from None
    decoder = type(backend.decoder).__name__
    if decoder != "ByteLevel":
        raise CheckpointError(
            f"{path}: decoder is {decoder}, supported: ByteLevel",
            hint="use the tokenizer.json that the MiniMax checkpoint was published with",
        )
    return ByteLevelTokenizer(backend)


def _encoded(
    backend: tokenizers.Tokenizer, text: str, *, add_special_tokens: bool = False
) -> tokenizers.Encoding:
    """Of the library's ways to encode, only those for batches let other threads run meanwhile."""
    (found,) = backend.encode_batch([text], add_special_tokens=add_special_tokens)
    return found


def _byte_alphabet() -> dict[str, int]:
    """The byte-level convention: printable Latin-1 characters stand for themselves, the other
    68 byte values for the characters from U+0100 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in set(printable)]
    alphabet = {chr(value): value for value in printable}
    alphabet.update({chr(0x100 + i): value for i, value in enumerate(others)})
    return alphabet


_BYTE_OF = _byte_alphabet()


def _bytes_of_token(token: str) -> bytes:
    # An added token may hold characters outside the alphabet (a plain blank, say); it then stands
    # for its own text.
    if all(char in _BYTE_OF for char in token):
        return bytes(_BYTE_OF[char] for char in token)
    return token.encode()
