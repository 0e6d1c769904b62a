"""Native products with weight matrices, plain or packed: one matrix, or a layer's experts.

Each function has the arguments and the result of the reference of its name in ``mserve.kernels``.
Knows tensors and storages; does not know layers or when to use which implementation.
"""

from __future__ import annotations

import ctypes
from functools import cache

import torch

from mserve.kernels.activation import GatedActivation
from mserve.kernels.linear_fp8_block import FP8_BLOCK
from mserve.kernels.linear_mxfp8 import MXFP8_GROUP
from mserve.kernels.matrix import Fp8BlockMatrix, Int8Matrix, Int8StaticMatrix, Matrix
from mserve.kernels.native.demands import ACTIVATIONS, DTYPES, contiguous, same_dtype, typed
from mserve.kernels.native.library import NativeError, check, library

_WIDEST_INT8 = 2**17 - 1
"""Of wider rows a sum of products of bytes may not fit 32 bits."""


def linear(x: torch.Tensor, weight: Matrix, out_dtype: torch.dtype | None = None) -> torch.Tensor:
    """``x`` [T, K] times ``weight`` [N, K] transposed, [T, N] of ``out_dtype`` (x's by default).

    A row's result has the same bits whatever other rows are there.
    """
    rows, inner = x.shape
    outer = weight.shape[0]
    values, scales, storage = _stored(x, weight)
    parts = weight.part_rows if isinstance(weight, Fp8BlockMatrix | Int8StaticMatrix) else ()
    if inner > 1 and rows and x.stride(1) != 1:
        raise NativeError("linear: the rows of x must be contiguous")
    if weight.shape[1] != inner:
        raise NativeError(f"linear: x has width {inner}, the weight {weight.shape[1]}")
    y = torch.empty((rows, outer), dtype=out_dtype or x.dtype)
    check(
        library().mserve_linear(
            x.data_ptr(), values, scales, _heights(parts), y.data_ptr(), len(parts),
            rows, outer, inner, x.stride(0), outer, same_dtype(x), DTYPES[y.dtype], storage,
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
    contiguous(hidden, ids, weights)
    typed(ids, torch.int64), typed(weights, torch.float32)
    matrices = (gate_up, down, *(shared or ()))
    for matrix in (gate_up, *(shared or ())[:1]):
        parts = getattr(matrix, "part_rows", _halves(matrix))
        if parts != _halves(matrix):
            raise NativeError(f"run_experts: gate and up have {parts} rows, not halves")
    stored = [_stored(hidden, matrix) for matrix in matrices]
    storage = stored[0][2]
    if any(one[2] != storage for one in stored):
        raise NativeError("run_experts: all matrices must be stored alike")
    places = [place for values, scales, _ in stored for place in (values, scales)]
    places += [0] * (8 - len(places))
    shared_inner = 0 if shared is None else shared[1].shape[1]
    out = torch.empty((rows, width), dtype=out_dtype)
    check(
        library().mserve_moe(
            hidden.data_ptr(), *places, ids.data_ptr(), weights.data_ptr(), out.data_ptr(),
            rows, width, inner, shared_inner, experts, first_expert, ids.shape[1],
            same_dtype(hidden), DTYPES[out_dtype], storage, ACTIVATIONS[activation.kind],
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
        same_dtype(x, matrix)
        contiguous(matrix)
        return matrix.data_ptr(), 0, 0
    if isinstance(matrix, Int8Matrix | Int8StaticMatrix):
        return _stored_int8(matrix)
    contiguous(matrix.packed, matrix.scale)
    typed(matrix.packed, torch.float8_e4m3fn)
    *experts, height, width = matrix.shape
    if isinstance(matrix, Fp8BlockMatrix):
        block_rows = sum(-(-rows // FP8_BLOCK) for rows in matrix.part_rows)
        scales, kind, number = (block_rows, -(-width // FP8_BLOCK)), torch.float32, 2
    else:
        scales, kind, number = (height, width // MXFP8_GROUP), torch.uint8, 1
    typed(matrix.scale, kind)
    if tuple(matrix.scale.shape) != (*experts, *scales) or (number == 1 and width % MXFP8_GROUP):
        raise NativeError(
            f"scales of shape {tuple(matrix.scale.shape)} do not fit values {matrix.shape}"
        )
    return matrix.packed.data_ptr(), matrix.scale.data_ptr(), number


def _stored_int8(matrix: Int8Matrix | Int8StaticMatrix) -> tuple[int, int, int]:
    *experts, height, width = matrix.shape
    if isinstance(matrix, Int8StaticMatrix):
        factors, number = matrix.words, 4
        num_factors = matrix.num_words(matrix.part_rows)
    else:
        factors, num_factors, number = matrix.scale, height, 3
    contiguous(matrix.packed, factors)
    typed(matrix.packed, torch.int8), typed(factors, torch.float32)
    if tuple(factors.shape) != (*experts, num_factors):
        raise NativeError(
            f"scales of shape {tuple(factors.shape)} do not fit values {matrix.shape}"
        )
    if width > _WIDEST_INT8:
        raise NativeError(f"INT8 rows of {width} values are wider than {_WIDEST_INT8}")
    return matrix.packed.data_ptr(), factors.data_ptr(), number


def _halves(gate_up: Matrix) -> tuple[int, int]:
    return gate_up.shape[-2] // 2, gate_up.shape[-2] // 2


@cache
def _heights(parts: tuple[int, ...]) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(parts))(*parts)
