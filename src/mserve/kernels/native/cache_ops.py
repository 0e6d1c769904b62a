"""Native ops on cache planes: writing, choosing blocks, attending.

Each function has the arguments and the result of the reference of its name in ``mserve.kernels``.
Knows planes in every form and block tables; does not know who a block belongs to.
"""

from __future__ import annotations

import ctypes

import torch

from mserve.kernels.cache_plane import CachePlane, ScaledPlane
from mserve.kernels.native.bounds import MAX_CHOSEN_BLOCKS, MAX_HEAD_WIDTH, MAX_INDEX_GROUPS
from mserve.kernels.native.demands import (
    block_stride,
    contiguous,
    heads_contiguous,
    same_dtype,
    token_stride,
    typed,
)
from mserve.kernels.native.library import NativeError, check, library

# Forms of a plane other than the op's own dtype, by their numbers in cpp/.
_FORMS = {torch.float8_e4m3fn: 1, torch.int8: 2, torch.bfloat16: 3}


class _Plane(ctypes.Structure):
    """``Plane`` of cpp/types.h."""

    _fields_ = (
        ("values", ctypes.c_void_p),
        ("factors", ctypes.c_void_p),
        ("block_stride", ctypes.c_int64),
        ("factor_stride", ctypes.c_int64),
        ("form", ctypes.c_int),
    )


def _described(plane: CachePlane, like: torch.Tensor) -> ctypes._CArgObject:
    """``plane`` for the library, in an op on activations of ``like``'s dtype."""
    values = plane.values if isinstance(plane, ScaledPlane) else plane
    factors = plane.scales if isinstance(plane, ScaledPlane) else None
    if (values.dtype == torch.int8) != (factors is not None):
        raise NativeError("a cache plane of integers needs factors, and no other has any")
    if values.dtype == like.dtype:
        form = 0
    elif values.dtype in _FORMS:
        form = _FORMS[values.dtype]
    else:
        raise NativeError(f"a cache plane of {values.dtype} under {like.dtype}")
    factors_at, factor_stride = 0, 0
    if factors is not None:
        typed(factors, torch.float32)
        factors_at, factor_stride = factors.data_ptr(), block_stride(factors)
    struct = _Plane(values.data_ptr(), factors_at, block_stride(values), factor_stride, form)
    return ctypes.byref(struct)


def _form(plane: CachePlane) -> torch.dtype:
    return plane.values.dtype if isinstance(plane, ScaledPlane) else plane.dtype


def write_kv(plane: CachePlane, slots: torch.Tensor, values: torch.Tensor) -> None:
    """``plane`` [blocks, G, BLOCK_TOKENS, W] takes ``values`` [T, G, W] at ``slots`` [T] int64
    (block * BLOCK_TOKENS + offset), in the form it stores. W is at most 1024."""
    tokens, heads, width = values.shape
    heads_contiguous(values)
    contiguous(slots), typed(slots, torch.int64)
    if width > MAX_HEAD_WIDTH:
        raise NativeError(f"write_kv: heads are at most {MAX_HEAD_WIDTH} wide, not {width}")
    check(
        library().mserve_write_kv(
            _described(plane, values), values.data_ptr(), slots.data_ptr(),
            tokens, heads, width, values.stride(0), same_dtype(values),
        )
    )  # fmt: skip


def select_blocks(
    index_query: torch.Tensor,
    index_plane: CachePlane,
    blocks: torch.Tensor,
    positions: torch.Tensor,
    *,
    topk_blocks: int,
    local_blocks: int,
    init_blocks: int,
) -> torch.Tensor:
    """Logical block numbers [S, L, G, K], ascending, then -1; K = min(topk_blocks, N). The index
    width is even.

    Scores have the same bits whatever the span's length, so any chunking chooses alike.
    """
    spans, length, groups, width = index_query.shape
    chosen_width = min(topk_blocks, blocks.shape[1])
    if groups > MAX_INDEX_GROUPS or chosen_width > MAX_CHOSEN_BLOCKS:
        raise NativeError(f"select_blocks: {groups} groups, {chosen_width} blocks are too many")
    if width % 2:
        raise NativeError(f"select_blocks: the index width must be even, not {width}")
    query_stride = token_stride(index_query)
    contiguous(blocks, positions)
    typed(blocks, torch.int64), typed(positions, torch.int64)
    chosen = torch.empty((spans, length, groups, chosen_width), dtype=torch.int64)
    if not chosen.numel():
        return chosen
    check(
        library().mserve_select_blocks(
            index_query.data_ptr(), _described(index_plane, index_query),
            blocks.data_ptr(), positions.data_ptr(), chosen.data_ptr(),
            spans, length, blocks.shape[1], query_stride, groups, width, chosen_width,
            local_blocks, init_blocks, same_dtype(index_query),
        )
    )  # fmt: skip
    return chosen


def paged_attention(
    query: torch.Tensor,
    key_plane: CachePlane,
    value_plane: CachePlane,
    blocks: torch.Tensor,
    positions: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """``query`` [S, L, H, D] against planes [blocks, G, BLOCK_TOKENS, D], causal over all blocks;
    gives [S, L, H, D]. D is even. A row has the same bits alone and in any batch or chunk."""
    return _attention(query, key_plane, value_plane, blocks, positions, None, scale)


def sparse_attention(
    query: torch.Tensor,
    key_plane: CachePlane,
    value_plane: CachePlane,
    blocks: torch.Tensor,
    positions: torch.Tensor,
    chosen: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """The same over the ``chosen`` [S, L, G, K] logical blocks: ascending, then -1."""
    return _attention(query, key_plane, value_plane, blocks, positions, chosen, scale)


def _attention(
    query: torch.Tensor,
    key_plane: CachePlane,
    value_plane: CachePlane,
    blocks: torch.Tensor,
    positions: torch.Tensor,
    chosen: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    spans, length, heads, width = query.shape
    if width % 2:
        raise NativeError(f"attention: the head width must be even, not {width}")
    if _form(key_plane) != _form(value_plane):
        raise NativeError("attention: keys and values must be stored in the same form")
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
            query.data_ptr(), _described(key_plane, query), _described(value_plane, query),
            blocks.data_ptr(), positions.data_ptr(), chosen_pointer, out.data_ptr(),
            spans, length, blocks.shape[1], query_stride, heads, key_plane.shape[1], width,
            chosen_width, scale, same_dtype(query),
        )
    )  # fmt: skip
    return out
