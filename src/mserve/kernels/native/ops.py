"""The native ops on tensors: shapes and types are checked here, pointers are passed on.

Each function has the arguments and the result of the reference of its name in ``mserve.kernels``.
A tensor that the library cannot take (wrong dtype, not contiguous) is an error, never a silent
detour through torch. Knows tensors; does not know layers or when to use which implementation.
"""

from __future__ import annotations

import ctypes
from functools import cache

import torch

from mserve.kernels.activation import GatedActivation
from mserve.kernels.linear_fp8_block import FP8_BLOCK
from mserve.kernels.linear_mxfp8 import MXFP8_GROUP
from mserve.kernels.matrix import Fp8BlockMatrix, Matrix
from mserve.kernels.native.library import NativeError, library
from mserve.kernels.native.library import check as _check

_DTYPES = {torch.bfloat16: 0, torch.float32: 1}
_ACTIVATIONS = {"silu": 0, "swiglu_oai": 1}

# Bounds of fixed tables in cpp/.
_MAX_HEAD_WIDTH = 1024
_MAX_CHOSEN = 64
_MAX_GROUPS = 16


def read(x: torch.Tensor) -> None:
    """Read all of ``x`` on all threads and forget it: timing this gives the read bandwidth."""
    _contiguous(x)
    _check(library().mserve_read(x.data_ptr(), x.numel() * x.element_size() // 4))


def linear(x: torch.Tensor, weight: Matrix, out_dtype: torch.dtype | None = None) -> torch.Tensor:
    """``x`` [T, K] times ``weight`` [N, K] transposed, [T, N] of ``out_dtype`` (x's by default).

    A row's result has the same bits whatever other rows are there.
    """
    rows, inner = x.shape
    outer = weight.shape[0]
    values, scales, storage = _stored(x, weight)
    parts = weight.part_rows if isinstance(weight, Fp8BlockMatrix) else ()
    if inner > 1 and rows and x.stride(1) != 1:
        raise NativeError("linear: the rows of x must be contiguous")
    if weight.shape[1] != inner:
        raise NativeError(f"linear: x has width {inner}, the weight {weight.shape[1]}")
    y = torch.empty((rows, outer), dtype=out_dtype or x.dtype)
    _check(
        library().mserve_linear(
            x.data_ptr(), values, scales, _heights(parts), y.data_ptr(), len(parts),
            rows, outer, inner, x.stride(0), outer, _same_dtype(x), _DTYPES[y.dtype], storage,
        )
    )  # fmt: skip
    return y


def run_experts(
    hidden: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    gate_up: Matrix,
    down: Matrix,
    activation: GatedActivation,
    first_expert: int,
    shared: tuple[Matrix, Matrix] | None = None,
    out_dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Sum over a token's choices of weight * expert(token), plus the shared expert's output,
    [T, hidden] of ``out_dtype``.

    ``hidden`` [T, hidden]; ``ids`` [T, K] int64 with ``weights`` [T, K] fp32; ``gate_up``
    [E, 2I, hidden] and ``down`` [E, hidden, I] of the experts ``first_expert`` to
    ``first_expert + E``; ``shared`` is the gate_up [2I', hidden] and down [hidden, I'] of one more
    expert that every token takes with weight 1. A choice held elsewhere adds nothing.
    """
    rows, width = hidden.shape
    experts, _, inner = down.shape
    _contiguous(hidden, ids, weights)
    _typed(ids, torch.int64), _typed(weights, torch.float32)
    matrices = (gate_up, down, *(shared or ()))
    for matrix in (gate_up, *(shared or ())[:1]):
        if isinstance(matrix, Fp8BlockMatrix) and matrix.part_rows != _halves(matrix):
            raise NativeError(f"run_experts: gate and up have {matrix.part_rows} rows, not halves")
    stored = [_stored(hidden, matrix) for matrix in matrices]
    storage = stored[0][2]
    if any(one[2] != storage for one in stored):
        raise NativeError("run_experts: all matrices must be stored alike")
    places = [place for values, scales, _ in stored for place in (values, scales)]
    places += [0] * (8 - len(places))
    shared_inner = 0 if shared is None else shared[1].shape[1]
    out = torch.empty((rows, width), dtype=out_dtype)
    _check(
        library().mserve_moe(
            hidden.data_ptr(), *places, ids.data_ptr(), weights.data_ptr(), out.data_ptr(),
            rows, width, inner, shared_inner, experts, first_expert, ids.shape[1],
            _same_dtype(hidden), _DTYPES[out_dtype], storage, _ACTIVATIONS[activation.kind],
            activation.alpha, activation.limit, activation.beta,
        )
    )  # fmt: skip
    return out


def gated_mlp(
    hidden: torch.Tensor, gate_up: Matrix, down: Matrix, activation: GatedActivation
) -> torch.Tensor:
    """down(activation(gate, up)) of ``hidden`` [T, hidden], of its shape and dtype: a layer with a
    shared expert and no others."""
    rows = hidden.shape[0]
    return run_experts(
        hidden,
        torch.empty((rows, 0), dtype=torch.int64),
        torch.empty((rows, 0), dtype=torch.float32),
        gate_up[None],
        down[None],
        activation,
        0,
        (gate_up, down),
        hidden.dtype,
    )


def _stored(x: torch.Tensor, matrix: Matrix) -> tuple[int, int, int]:
    """Where the values and the scales of a matrix or stack are that meets ``x``, and the number
    of its form."""
    if isinstance(matrix, torch.Tensor):
        _same_dtype(x, matrix)
        _contiguous(matrix)
        return matrix.data_ptr(), 0, 0
    _contiguous(matrix.packed, matrix.scale)
    _typed(matrix.packed, torch.float8_e4m3fn)
    *experts, height, width = matrix.shape
    if isinstance(matrix, Fp8BlockMatrix):
        block_rows = sum(-(-rows // FP8_BLOCK) for rows in matrix.part_rows)
        scales, kind, number = (block_rows, -(-width // FP8_BLOCK)), torch.float32, 2
    else:
        scales, kind, number = (height, width // MXFP8_GROUP), torch.uint8, 1
    _typed(matrix.scale, kind)
    if tuple(matrix.scale.shape) != (*experts, *scales) or (number == 1 and width % MXFP8_GROUP):
        raise NativeError(
            f"scales of shape {tuple(matrix.scale.shape)} do not fit values {matrix.shape}"
        )
    return matrix.packed.data_ptr(), matrix.scale.data_ptr(), number


def _halves(gate_up: Matrix) -> tuple[int, int]:
    return gate_up.shape[-2] // 2, gate_up.shape[-2] // 2


@cache
def _heights(parts: tuple[int, ...]) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(parts))(*parts)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """M2's norm of ``x`` [..., D] by ``weight`` [D] of its dtype."""
    return _norm(x, weight, eps, 0, _same_dtype(x, weight))


def gemma_rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """M3's norm of ``x`` [..., D] by fp32 ``weight`` [D], centred on zero."""
    _typed(weight, torch.float32)
    return _norm(x, weight, eps, 1, _same_dtype(x))


def _norm(x: torch.Tensor, weight: torch.Tensor, eps: float, kind: int, dtype: int) -> torch.Tensor:
    _contiguous(x, weight)
    width = weight.shape[0]
    out = torch.empty_like(x)
    _check(
        library().mserve_rms_norm(
            x.data_ptr(), weight.data_ptr(), out.data_ptr(),
            x.numel() // width, width, eps, kind, dtype,
        )
    )  # fmt: skip
    return out


def norm_rope(
    x: torch.Tensor, weight: torch.Tensor, eps: float, cos: torch.Tensor, sin: torch.Tensor
) -> torch.Tensor:
    """``x`` [T, N, D], whose tokens may lie apart, normed by fp32 ``weight`` [N, D] and turned by
    the angles [T, C]. D is at most 1024."""
    _typed(weight, torch.float32)
    return _norm_rope(x, 0, 0, weight, eps, cos, sin, 1)


def rms_norm_rope(
    x: torch.Tensor,
    mean_square: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    cos: torch.Tensor,
    sin: torch.Tensor,
) -> torch.Tensor:
    """The same by M2's norm of known ``mean_square`` [T]; ``weight`` [N * D] has x's dtype."""
    _typed(weight, x.dtype), _typed(mean_square, torch.float32)
    pointer, stride = mean_square.data_ptr(), mean_square.stride(0)
    return _norm_rope(x, pointer, stride, weight, eps, cos, sin, 0)


def _norm_rope(
    x: torch.Tensor,
    mean_square: int,
    mean_square_stride: int,
    weight: torch.Tensor,
    eps: float,
    cos: torch.Tensor,
    sin: torch.Tensor,
    kind: int,
) -> torch.Tensor:
    tokens, heads, width = x.shape
    _heads_contiguous(x)
    if width > _MAX_HEAD_WIDTH:
        raise NativeError(f"norm_rope: heads are at most {_MAX_HEAD_WIDTH} wide, not {width}")
    _contiguous(weight, cos, sin)
    _typed(cos, torch.float32), _typed(sin, torch.float32)
    out = torch.empty((tokens, heads, width), dtype=x.dtype)
    _check(
        library().mserve_norm_rope(
            x.data_ptr(), weight.data_ptr(), mean_square, cos.data_ptr(), sin.data_ptr(),
            out.data_ptr(), tokens, heads, width, cos.shape[1], x.stride(0), mean_square_stride,
            eps, kind, _same_dtype(x),
        )
    )  # fmt: skip
    return out


def mean_squares(x: torch.Tensor, split: int, counts: tuple[int, int]) -> torch.Tensor:
    """Sums of squares of ``x`` [T, D] before and from column ``split``, over ``counts``: [T, 2]
    fp32."""
    tokens, width = x.shape
    if width > 1 and x.stride(1) != 1:
        raise NativeError("mean_squares: the rows of x must be contiguous")
    means = torch.empty((tokens, 2), dtype=torch.float32)
    _check(
        library().mserve_mean_squares(
            x.data_ptr(), means.data_ptr(), tokens, split, width, x.stride(0), *counts,
            _same_dtype(x),
        )
    )  # fmt: skip
    return means


def embedding(token_ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Rows [T, hidden] of ``weight`` [V, hidden]. ``IndexError`` if an id is not below V."""
    tokens, (height, width) = len(token_ids), weight.shape
    _contiguous(token_ids, weight), _typed(token_ids, torch.int64)
    out = torch.empty((tokens, width), dtype=weight.dtype)
    _check(
        library().mserve_embedding(
            token_ids.data_ptr(), weight.data_ptr(), out.data_ptr(), tokens, height, width,
            _same_dtype(weight),
        )
    )  # fmt: skip
    return out


def rope_angles(
    positions: torch.Tensor, frequencies: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine [T, C] fp32 of ``positions`` [T] int64 times ``frequencies`` [C] fp32."""
    _contiguous(positions, frequencies)
    _typed(positions, torch.int64), _typed(frequencies, torch.float32)
    shape = (len(positions), len(frequencies))
    cosine = torch.empty(shape, dtype=torch.float32)
    sine = torch.empty(shape, dtype=torch.float32)
    _check(
        library().mserve_rope_angles(
            positions.data_ptr(), frequencies.data_ptr(), cosine.data_ptr(), sine.data_ptr(), *shape
        )
    )
    return cosine, sine


def residual_sum(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """``x`` [T, hidden] plus ``y`` of the same shape and dtype."""
    _contiguous(x, y)
    dtype, (rows, width) = _same_dtype(x, y), x.shape
    out = torch.empty((rows, width), dtype=x.dtype)
    _check(
        library().mserve_residual_sum(
            x.data_ptr(), y.data_ptr(), out.data_ptr(), rows, width, dtype
        )
    )
    return out


def highest(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Values [R] and places [R] int64 of ``scores`` [R, V] fp32, V at least 1."""
    _contiguous(scores), _typed(scores, torch.float32)
    rows, width = scores.shape
    values = torch.empty(rows, dtype=torch.float32)
    places = torch.empty(rows, dtype=torch.int64)
    _check(
        library().mserve_highest(
            scores.data_ptr(), values.data_ptr(), places.data_ptr(), rows, width
        )
    )
    return values, places


def write_kv(plane: torch.Tensor, slots: torch.Tensor, values: torch.Tensor) -> None:
    """``plane`` [blocks, G, BLOCK_TOKENS, W] takes ``values`` [T, G, W] of its dtype at ``slots``
    [T] int64 (block * BLOCK_TOKENS + offset)."""
    tokens, heads, width = values.shape
    _heads_contiguous(values)
    _contiguous(slots), _typed(slots, torch.int64)
    _check(
        library().mserve_write_kv(
            plane.data_ptr(), values.data_ptr(), slots.data_ptr(), _block_stride(plane),
            tokens, heads, width, values.stride(0), _same_dtype(plane, values),
        )
    )  # fmt: skip


def _heads_contiguous(x: torch.Tensor) -> None:
    """Tokens may lie apart; a token's heads must not."""
    _, heads, width = x.shape
    if x.stride(2) != 1 or (heads > 1 and x.stride(1) != width):
        raise NativeError("the heads of a token must lie side by side")


def route(
    hidden: torch.Tensor, gate: torch.Tensor, bias: torch.Tensor, k: int, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Expert ids [T, k] int64, ascending, and weights [T, k] fp32, summing to ``scale``."""
    tokens, width = hidden.shape
    _contiguous(hidden, gate, bias)
    _typed(gate, torch.float32), _typed(bias, torch.float32)
    if k > _MAX_CHOSEN:
        raise NativeError(f"route: at most {_MAX_CHOSEN} experts per token, not {k}")
    ids = torch.empty((tokens, k), dtype=torch.int64)
    weights = torch.empty((tokens, k), dtype=torch.float32)
    _check(
        library().mserve_route(
            hidden.data_ptr(), gate.data_ptr(), bias.data_ptr(), ids.data_ptr(),
            weights.data_ptr(), tokens, width, gate.shape[0], k, scale, _same_dtype(hidden),
        )
    )  # fmt: skip
    return ids, weights


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
    query_stride = _token_stride(index_query)
    _contiguous(blocks, positions)
    _typed(blocks, torch.int64), _typed(positions, torch.int64)
    chosen = torch.empty((spans, length, groups, chosen_width), dtype=torch.int64)
    if not chosen.numel():
        return chosen
    _check(
        library().mserve_select_blocks(
            index_query.data_ptr(), index_plane.data_ptr(), _block_stride(index_plane),
            blocks.data_ptr(), positions.data_ptr(), chosen.data_ptr(),
            spans, length, blocks.shape[1], query_stride, groups, width, chosen_width,
            local_blocks, init_blocks, _same_dtype(index_query, index_plane),
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
    query_stride = _token_stride(query)
    _contiguous(blocks, positions)
    _typed(blocks, torch.int64), _typed(positions, torch.int64)
    chosen_width, chosen_pointer = 0, 0
    if chosen is not None:
        _contiguous(chosen), _typed(chosen, torch.int64)
        chosen_width, chosen_pointer = chosen.shape[3], chosen.data_ptr()
    out = torch.empty(query.shape, dtype=query.dtype)
    if not out.numel():
        return out
    _check(
        library().mserve_attention(
            query.data_ptr(), key_plane.data_ptr(), _block_stride(key_plane),
            value_plane.data_ptr(), _block_stride(value_plane),
            blocks.data_ptr(), positions.data_ptr(), chosen_pointer, out.data_ptr(),
            spans, length, blocks.shape[1], query_stride, heads, key_plane.shape[1], width,
            chosen_width, scale, _same_dtype(query, key_plane, value_plane),
        )
    )  # fmt: skip
    return out


def _token_stride(query: torch.Tensor) -> int:
    """Elements between the tokens of ``query`` [S, L, H, D], which may lie apart, evenly."""
    spans, length, heads, width = query.shape
    stride = query.stride()
    apart = stride[1] if length > 1 else stride[0]
    uneven = spans > 1 and stride[0] != length * apart
    if uneven or stride[3] != 1 or (heads > 1 and stride[2] != width):
        raise NativeError("tokens must lie evenly apart, and a token's heads side by side")
    return apart


def _block_stride(plane: torch.Tensor) -> int:
    """Elements between blocks of a plane whose part of each block is contiguous."""
    _, heads, tokens, width = plane.shape
    stride = plane.stride()
    if stride[3] != 1 or stride[2] != width or (heads > 1 and stride[1] != tokens * width):
        raise NativeError("a cache plane's part of a block is not contiguous")
    return stride[0]


def _same_dtype(*tensors: torch.Tensor) -> int:
    first = tensors[0].dtype
    for tensor in tensors:
        if tensor.dtype is not first or first not in _DTYPES:
            kinds = ", ".join(str(tensor.dtype) for tensor in tensors)
            raise NativeError(f"native kernels take bfloat16 or float32 throughout, not {kinds}")
    return _DTYPES[first]


def _typed(tensor: torch.Tensor, dtype: torch.dtype) -> None:
    if tensor.dtype != dtype:
        raise NativeError(f"expected {dtype}, got {tensor.dtype}")


def _contiguous(*tensors: torch.Tensor) -> None:
    for tensor in tensors:
        if not tensor.is_contiguous():
            raise NativeError(f"a tensor of shape {tuple(tensor.shape)} is not contiguous")
