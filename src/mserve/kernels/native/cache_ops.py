"""Native ops on cache planes: writing, choosing blocks, attending.

Each function has the arguments and the result of the reference of its name in ``mserve.kernels``.
Knows planes and block tables; does not know who a block belongs to.
"""

from __future__ import annotations

import torch

from mserve.kernels.native.demands import (
    block_stride,
    contiguous,
    heads_contiguous,
    same_dtype,
    token_stride,
    typed,
)
from mserve.kernels.native.library import NativeError, check, library

# Bounds of fixed tables in cpp/.
_MAX_CHOSEN = 64
_MAX_GROUPS = 16


def write_kv(plane: torch.Tensor, slots: torch.Tensor, values: torch.Tensor) -> None:
    """``plane`` [blocks, G, BLOCK_TOKENS, W] takes ``values`` [T, G, W] of its dtype at ``slots``
    [T] int64 (block * BLOCK_TOKENS + offset)."""
    tokens, heads, width = values.shape
    heads_contiguous(values)
    contiguous(slots), typed(slots, torch.int64)
    check(
        library().mserve_write_kv(
            plane.data_ptr(), values.data_ptr(), slots.data_ptr(), block_stride(plane),
            tokens, heads, width, values.stride(0), same_dtype(plane, values),
        )
    )  # fmt: skip


def select_blocks(
    index_query: torch.Tensor,
    index_plane: torch.Tensor,
    blocks: torch.Tensor,
    positions: torch.Tensor,
    *,
    topk_blocks: int,
    local_blocks: int,
    init_blocks: int,
) -> torch.Tensor:
    """Logical block numbers [S, L, G, K], ascending, then -1; K = min(topk_blocks, N).

    Scores have the same bits whatever the span's length, so any chunking chooses alike.
    """
    spans, length, groups, width = index_query.shape
    chosen_width = min(topk_blocks, blocks.shape[1])
    if groups > _MAX_GROUPS or chosen_width > _MAX_CHOSEN:
        raise NativeError(f"select_blocks: {groups} groups, {chosen_width} blocks are too many")
    query_stride = token_stride(index_query)
    contiguous(blocks, positions)
    typed(blocks, torch.int64), typed(positions, torch.int64)
    chosen = torch.empty((spans, length, groups, chosen_width), dtype=torch.int64)
    if not chosen.numel():
        return chosen
    check(
        library().mserve_select_blocks(
            index_query.data_ptr(), index_plane.data_ptr(), block_stride(index_plane),
            blocks.data_ptr(), positions.data_ptr(), chosen.data_ptr(),
            spans, length, blocks.shape[1], query_stride, groups, width, chosen_width,
            local_blocks, init_blocks, same_dtype(index_query, index_plane),
        )
    )  # fmt: skip
    return chosen


def paged_attention(
    query: torch.Tensor,
    key_plane: torch.Tensor,
    value_plane: torch.Tensor,
    blocks: torch.Tensor,
    positions: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """``query`` [S, L, H, D] against planes [blocks, G, BLOCK_TOKENS, D], causal over all blocks;
    gives [S, L, H, D]. D is even. A row has the same bits alone and in any batch or chunk."""
    return _attention(query, key_plane, value_plane, blocks, positions, None, scale)


def sparse_attention(
    query: torch.Tensor,
    key_plane: torch.Tensor,
    value_plane: torch.Tensor,
    blocks: torch.Tensor,
    positions: torch.Tensor,
    chosen: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """The same over the ``chosen`` [S, L, G, K] logical blocks: ascending, then -1."""
    return _attention(query, key_plane, value_plane, blocks, positions, chosen, scale)


def _attention(
    query: torch.Tensor,
    key_plane: torch.Tensor,
    value_plane: torch.Tensor,
    blocks: torch.Tensor,
    positions: torch.Tensor,
    chosen: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    spans, length, heads, width = query.shape
    if width % 2:
        raise NativeError(f"attention: the head width must be even, not {width}")
    query_stride = token_stride(query)
    contiguous(blocks, positions)
    typed(blocks, torch.int64), typed(positions, torch.int64)
    chosen_width, chosen_pointer = 0, 0
    if chosen is not None:
        contiguous(chosen), typed(chosen, torch.int64)
        chosen_width, chosen_pointer = chosen.shape[3], chosen.data_ptr()
    out = torch.empty(query.shape, dtype=query.dtype)
    if not out.numel():
        return out
    check(
        library().mserve_attention(
            query.data_ptr(), key_plane.data_ptr(), block_stride(key_plane),
            value_plane.data_ptr(), block_stride(value_plane),
            blocks.data_ptr(), positions.data_ptr(), chosen_pointer, out.data_ptr(),
            spans, length, blocks.shape[1], query_stride, heads, key_plane.shape[1], width,
            chosen_width, scale, same_dtype(query, key_plane, value_plane),
        )
    )  # fmt: skip
    return out
