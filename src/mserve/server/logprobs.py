"""Log-probabilities in the shapes that clients read: chat's, completions' and vLLM's for prompts.

Knows token texts. Does not know where the numbers come from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mserve.core import TokenLogprobs
from mserve.text import Tokenizer

_FLOOR = -9999.0  # JSON has no infinity; a forbidden token still needs a number


def token_name(tokenizer: Tokenizer, token_id: int) -> str:
    """The token's text, or its bytes spelled out where they are no whole characters, so that two
    tokens never share a name by being unreadable."""
    data = tokenizer.token_bytes(token_id)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def chat_logprobs(tokenizer: Tokenizer, entries: Sequence[TokenLogprobs]) -> dict[str, Any]:
    return {
        "content": [
            {
                **_chat_entry(tokenizer, entry.token_id, entry.logprob),
                "top_logprobs": [_chat_entry(tokenizer, *pair) for pair in entry.top],
            }
            for entry in entries
        ]
    }


def completion_logprobs(
    tokenizer: Tokenizer,
    token_ids: Sequence[int],
    entries: Sequence[TokenLogprobs | None],
    offsets: Sequence[int],
) -> dict[str, Any]:
    """Parallel lists over tokens. The entry of a token that nothing precedes is ``None``."""
    return {
        "text_offset": list(offsets),
        "token_logprobs": [None if e is None else _finite(e.logprob) for e in entries],
        "tokens": [token_name(tokenizer, token_id) for token_id in token_ids],
        "top_logprobs": [None if e is None else _top_by_name(tokenizer, e) for e in entries],
    }


def prompt_logprobs(
    tokenizer: Tokenizer, entries: Sequence[TokenLogprobs | None]
) -> list[dict[str, Any] | None]:
    """vLLM's extension: per prompt token, by token id."""
    return [None if entry is None else _by_id(tokenizer, entry) for entry in entries]


def _by_id(tokenizer: Tokenizer, entry: TokenLogprobs) -> dict[str, Any]:
    ranked = [(token_id, logprob, rank) for rank, (token_id, logprob) in enumerate(entry.top, 1)]
    if all(token_id != entry.token_id for token_id, _ in entry.top):
        ranked.append((entry.token_id, entry.logprob, entry.rank))
    return {
        str(token_id): {
            "logprob": _finite(logprob),
            "rank": rank,
            "decoded_token": token_name(tokenizer, token_id),
        }
        for token_id, logprob, rank in ranked
    }


def _chat_entry(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    return {
        "token": token_name(tokenizer, token_id),
        "logprob": _finite(logprob),
        "bytes": list(tokenizer.token_bytes(token_id)),
    }


def _top_by_name(tokenizer: Tokenizer, entry: TokenLogprobs) -> dict[str, float]:
    """The alternatives and the chosen token. Ids that share a text keep the likelier value."""
    top: dict[str, float] = {}
    for token_id, logprob in [*entry.top, (entry.token_id, entry.logprob)]:
        name = token_name(tokenizer, token_id)
        top[name] = max(top.get(name, _FLOOR), _finite(logprob))
    return top


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else _FLOOR
