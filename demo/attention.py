"""Causal attention of whole batches: to all keys, to chosen blocks, or to what is near.

Legend: B sequences, N tokens of each, H query heads, G KV groups, D head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from demo.pointwise import causal_softmax
from demo.shape import BLOCK_TOKENS

# Up to here all scores of a batch are held; beyond, a chunk of queries at a time.
_SHORT = 1024
_QUERY_CHUNK = 1024
# Queries that see the same keys, those of their own chunk and of the one before.
_NEAR = 512


def attend(query: Tensor, key: Tensor, value: Tensor, chosen: Tensor | None) -> Tensor:
    """Causal attention of [B, N, H, D] to [B, N, G, D]; with ``chosen`` [B, G, N, blocks] (bool) to
    keys of chosen blocks only."""
    num_tokens, num_groups = key.shape[1:3]
    q = query.unflatten(2, (num_groups, -1)).permute(0, 2, 3, 1, 4)  # [B, G, H / G, N, D]
    k, v = key.transpose(1, 2), value.transpose(1, 2)  # [B, G, N, D]
    if chosen is None and num_tokens <= _SHORT:
        scores = q.flatten(2, 3) @ k.transpose(2, 3)
        shares = causal_softmax(scores.unflatten(2, q.shape[2:4]), query.shape[-1] ** -0.5)
        out = (shares.flatten(2, 3) @ v).view(q.shape)
        return out.permute(0, 3, 1, 2, 4).flatten(2, 3)
    per_group = q.shape[2]
    q = q.flatten(1, 2)
    k, v = (x.repeat_interleave(per_group, 1) for x in (k, v))
    if chosen is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
    positions = torch.arange(num_tokens)
    parts = []
    for start in range(0, num_tokens, _QUERY_CHUNK):
        end = min(start + _QUERY_CHUNK, num_tokens)
        seen = chosen[:, :, start:end].repeat_interleave(BLOCK_TOKENS, -1)[..., :end]
        seen = seen & (positions[:end] <= positions[start:end, None])
        mask = seen.repeat_interleave(per_group, 1)
        part = F.scaled_dot_product_attention(
            q[:, :, start:end], k[:, :, :end], v[:, :, :end], attn_mask=mask
        )
        parts.append(part.transpose(1, 2))
    return torch.cat(parts, 1)


def attend_nearby(query: Tensor, key: Tensor, value: Tensor, all_seen_from: int) -> Tensor:
    """Like ``attend``, but queries before ``all_seen_from`` see at most 1,024 tokens back, so that
    the cost of a long text grows with its length and not with its square."""
    per_group = query.shape[2] // key.shape[2]
    q = query.transpose(1, 2)
    k, v = (x.transpose(1, 2).repeat_interleave(per_group, 1) for x in (key, value))

    def part(start: int, end: int, first_key: int) -> Tensor:
        seen = torch.ones(end - start, end - first_key, dtype=torch.bool).tril(start - first_key)
        queries, keys = slice(start, end), slice(first_key, end)
        out = F.scaled_dot_product_attention(
            q[:, :, queries], k[:, :, keys], v[:, :, keys], attn_mask=seen
        )
        return out.transpose(1, 2)

    parts = [
        part(start, min(start + _NEAR, all_seen_from), max(0, start - _NEAR))
        for start in range(0, all_seen_from, _NEAR)
    ]
    return torch.cat([*parts, part(all_seen_from, query.shape[1], 0)], 1)
