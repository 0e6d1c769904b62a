"""Reasoning that a client carries from turn to turn, in fields made for ciphertext.

Anthropic's clients return a thinking block with its ``signature``, and clients of the Responses API
that keep nothing on the server return ``encrypted_content`` and nothing else of the reasoning. Both
are ours to define. The signature is a digest of the text, so that we can tell whether the block
came back byte for byte; it proves no origin, and needs no secret that servers would have to share.
The content is the text itself, compressed: the client has read it already.

Knows strings only.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import zlib

_PREFIX = "mserve1."
_MAX_TEXT_BYTES = 32 << 20


def signature_of(text: str) -> str:
    """Of a thinking block: 24 characters after the prefix."""
    digest = hashlib.sha256(text.encode()).digest()[:18]
    return _PREFIX + base64.b64encode(digest).decode()


def is_replayed_exactly(text: str, signature: str) -> bool | None:
    """``None`` for a signature that is none of ours: nothing can be said."""
    return signature == signature_of(text) if signature.startswith(_PREFIX) else None


def packed(text: str) -> str:
    """``text`` as an opaque string."""
    data = zlib.compress(text.encode())
    return _PREFIX + base64.b64encode(data).decode()


def unpacked(content: str) -> str | None:
    """The text, or ``None`` if ``content`` is none of ours."""
    if not content.startswith(_PREFIX):
        return None
    unpacker = zlib.decompressobj()
    try:
        data = base64.b64decode(content.removeprefix(_PREFIX), validate=True)
        text = unpacker.decompress(data, _MAX_TEXT_BYTES).decode()
    except (binascii.Error, zlib.error, ValueError):
        return None
    return text if unpacker.eof else None
