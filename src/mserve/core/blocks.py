"""Names of KV blocks: a hash chain over tokens, so that equal prefixes have equal names.

    root(salt) ── tokens[0:128] ──> name_0 ── tokens[128:256] ──> name_1 ── ...

A name covers every token before it, the weights' identity and the caller's salt. Knows tokens;
does not know block ids, who holds a block or where its bytes are.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from typing import NewType

BLOCK_TOKENS = 128
"""Tokens per block. Equal to MSA's selection block, so one block is one unit of selection,
reuse and transport."""

BlockName = NewType("BlockName", bytes)

# Collisions would serve one user's cache to another, so the hash is cryptographic. It costs
# about 1.5 us per block of 128 tokens, packing included.
_DIGEST_BYTES = 20


def root_name(salt: str = "", model_id: str = "") -> BlockName:
    """The parent of every first block. Different salts or models never share blocks."""
    seed = f"{model_id}\0{salt}".encode()
    return BlockName(hashlib.blake2b(seed, digest_size=_DIGEST_BYTES).digest())


def next_name(parent: BlockName, token_ids: Sequence[int]) -> BlockName:
    """Name of the block after ``parent`` that holds ``token_ids``, BLOCK_TOKENS of them."""
    if len(token_ids) != BLOCK_TOKENS:
        raise ValueError(f"a named block holds {BLOCK_TOKENS} tokens, not {len(token_ids)}")
    digest = hashlib.blake2b(parent, digest_size=_DIGEST_BYTES)
    digest.update(array("I", token_ids).tobytes())
    return BlockName(digest.digest())


def blocks_for(num_tokens: int) -> int:
    """Blocks that hold ``num_tokens`` tokens."""
    return -(-num_tokens // BLOCK_TOKENS)
