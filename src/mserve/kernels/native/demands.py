"""What every native op demands of its tensors, and how they are described to the library.

Knows dtypes, strides and contiguity. A tensor that the library cannot take is a ``NativeError``,
never a silent detour through torch.
"""

from __future__ import annotations

import torch

from mserve.kernels.native.library import NativeError

DTYPES = {torch.bfloat16: 0, torch.float32: 1}
"""Their numbers in cpp/."""
ACTIVATIONS = {"silu": 0, "swiglu_oai": 1}


def same_dtype(*tensors: torch.Tensor) -> int:
    first = tensors[0].dtype
    for tensor in tensors:
        if tensor.dtype is not first or first not in DTYPES:
            kinds = ", ".join(str(tensor.dtype) for tensor in tensors)
            raise NativeError(f"native kernels take bfloat16 or float32 throughout, not {kinds}")
    return DTYPES[first]


def typed(tensor: torch.Tensor, dtype: torch.dtype) -> None:
    if tensor.dtype != dtype:
        raise NativeError(f"expected {dtype}, got {tensor.dtype}")


def contiguous(*tensors: torch.Tensor) -> None:
    for tensor in tensors:
        if not tensor.is_contiguous():
            raise NativeError(f"a tensor of shape {tuple(tensor.shape)} is not contiguous")


def heads_contiguous(x: torch.Tensor) -> None:
    """Tokens may lie apart; a token's heads must not."""
    _, heads, width = x.shape
    if x.stride(2) != 1 or (heads > 1 and x.stride(1) != width):
        raise NativeError("the heads of a token must lie side by side")


def token_stride(query: torch.Tensor) -> int:
    """Elements between the tokens of ``query`` [S, L, H, D], which may lie apart, evenly."""
    spans, length, heads, width = query.shape
    stride = query.stride()
    apart = stride[1] if length > 1 else stride[0]
    uneven = spans > 1 and stride[0] != length * apart
    if uneven or stride[3] != 1 or (heads > 1 and stride[2] != width):
        raise NativeError("tokens must lie evenly apart, and a token's heads side by side")
    return apart


def block_stride(plane: torch.Tensor) -> int:
    """Elements between blocks of a plane whose part of each block is contiguous."""
    _, heads, tokens, width = plane.shape
    stride = plane.stride()
    if stride[3] != 1 or stride[2] != width or (heads > 1 and stride[1] != tokens * width):
        raise NativeError("a cache plane's part of a block is not contiguous")
    return stride[0]
