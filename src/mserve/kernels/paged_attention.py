"""Causal attention of spans over all of their context, block by block through a table.

    blocks     0 .. 255          256 .. 511        ...       segments: bounded scratch
    queries    every chunk of rows that sees the segment, joined by log-sum-exp

Legend: S spans, L tokens of each, H query heads, G KV heads, D head width, N blocks.
"""

from __future__ import annotations

import torch

from mserve.core import BLOCK_TOKENS, blocks_for
from mserve.kernels.attend import attend, join
from mserve.kernels.gather_blocks import gather_blocks

_SEGMENT_BLOCKS = 256  # 64 MiB of bf16 keys and values for 4 KV heads of 128
_CHUNK_ROWS = 128  # query rows (tokens x heads of a group) whose scores exist at once


def paged_attention(
    query: torch.Tensor,
    key_plane: torch.Tensor,
    value_plane: torch.Tensor,
    blocks: torch.Tensor,
    positions: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """``query`` [S, L, H, D] against planes [blocks, G, BLOCK_TOKENS, D]; gives [S, L, H, D].

    ``blocks`` [S, N] int64 lists each span's blocks in order, padded with any of its own;
    ``positions`` [S, L] int64 are consecutive. Query head h reads KV head h // (H / G).
    """
    num_spans, length, num_heads, width = query.shape
    groups = key_plane.shape[1]
    per_group = num_heads // groups
    # [G, S, L * heads of a group, D]: one GEMM per group reads its keys once.
    rows = query.view(num_spans, length, groups, per_group, width).permute(2, 0, 1, 3, 4)
    rows = rows.reshape(groups, num_spans, length * per_group, width)
    chunk = max(1, _CHUNK_ROWS // per_group)
    output = torch.empty(rows.shape, dtype=torch.float32, device=query.device)
    log_sum = torch.full(rows.shape[:-1], -torch.inf, device=query.device)
    first, last = int(positions[:, 0].min()), int(positions[:, 0].max())

    for start_block in range(0, blocks.shape[1], _SEGMENT_BLOCKS):
        segment = blocks[:, start_block : start_block + _SEGMENT_BLOCKS]
        keys = gather_blocks(key_plane, segment)
        values = gather_blocks(value_plane, segment)
        start_key = start_block * BLOCK_TOKENS
        key_positions = torch.arange(start_key, start_key + keys.shape[2], device=query.device)
        for start in range(0, length, chunk):
            end = min(start + chunk, length)
            num_keys = min(keys.shape[2], blocks_for(last + end) * BLOCK_TOKENS - start_key)
            if num_keys <= 0:
                continue
            visible = None
            if first + start < start_key + num_keys - 1:
                seen = key_positions[:num_keys] <= positions[:, start:end, None]
                visible = seen.repeat_interleave(per_group, dim=1)[None]
            here = slice(start * per_group, end * per_group)
            # A batched GEMM over a strided slice would copy it transposed, at ten times the price.
            partial = attend(
                rows[:, :, here],
                keys[:, :, :num_keys].contiguous(),
                values[:, :, :num_keys].contiguous(),
                visible,
                scale,
            )
            if start_block:
                partial = join((output[:, :, here], log_sum[:, :, here]), partial)
            output[:, :, here], log_sum[:, :, here] = partial
    output = output.view(groups, num_spans, length, per_group, width).permute(1, 2, 0, 3, 4)
    return output.reshape(query.shape).to(query.dtype)
