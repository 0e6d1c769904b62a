"""The native ops on tensors: shapes and types are checked here, pointers are passed on.

Each function has the arguments and the result of the reference of its name in ``mserve.kernels``.
A tensor that the library cannot take (wrong dtype, not contiguous) is an error, never a silent
detour through torch. Knows tensors; does not know layers or when to use which implementation.
"""

from __future__ import annotations

import torch

from mserve.kernels.native.library import library

_DTYPES = {torch.bfloat16: 0, torch.float32: 1}


class NativeError(RuntimeError):
    """A native op could not run."""


def linear(
    x: torch.Tensor, weight: torch.Tensor, out_dtype: torch.dtype | None = None
) -> torch.Tensor:
    """``x`` [T, K] times ``weight`` [N, K] transposed, [T, N] of ``out_dtype`` (x's by default).

    A row's result has the same bits whatever other rows are there.
    """
    rows, inner = x.shape
    outer = weight.shape[0]
    dtype = _same_dtype(x, weight)
    _contiguous(weight)
    if x.stride(1) != 1:
        raise NativeError("linear: the rows of x must be contiguous")
    if weight.shape[1] != inner:
        raise NativeError(f"linear: x has width {inner}, the weight {weight.shape[1]}")
    y = torch.empty((rows, outer), dtype=out_dtype or x.dtype)
    _check(
        library().mserve_linear(
            x.data_ptr(), weight.data_ptr(), y.data_ptr(), rows, outer, inner,
            x.stride(0), outer, dtype, _DTYPES[y.dtype],
        )
    )  # fmt: skip
    return y


def run_experts(
    hidden: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    activation: tuple[int, float, float, float],
    first_expert: int,
    shared: tuple[torch.Tensor, torch.Tensor] | None = None,
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
    tensors = [hidden, gate_up, down, *(shared or ())]
    dtype = _same_dtype(*tensors)
    _contiguous(*tensors, ids, weights)
    _typed(ids, torch.int64), _typed(weights, torch.float32)
    shared_gate_up, shared_down, shared_inner = 0, 0, 0
    if shared is not None:
        shared_gate_up, shared_down = shared[0].data_ptr(), shared[1].data_ptr()
        shared_inner = shared[1].shape[1]
    out = torch.empty((rows, width), dtype=out_dtype)
    _check(
        library().mserve_moe(
            hidden.data_ptr(), gate_up.data_ptr(), down.data_ptr(), shared_gate_up, shared_down,
            ids.data_ptr(), weights.data_ptr(), out.data_ptr(),
            rows, width, inner, shared_inner, experts, first_expert, ids.shape[1],
            dtype, _DTYPES[out_dtype], *activation,
        )
    )  # fmt: skip
    return out


def _same_dtype(*tensors: torch.Tensor) -> int:
    first = tensors[0].dtype
    if first not in _DTYPES or any(tensor.dtype != first for tensor in tensors):
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


def _check(status: int) -> None:
    if status:
        raise NativeError("no memory for a native kernel's intermediate values")
