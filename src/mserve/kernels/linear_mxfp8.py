"""Rows times weight rows in MXFP8: e4m3 elements, one power of two for each 32 along a row.

    value = element * 2^(scale - 127)        OCP Microscaling Formats 1.0; scale 255 is NaN

Every value is exact in fp32 unless it exceeds its range, and there it is infinite.
Legend: T tokens, N rows, K width.
"""

from __future__ import annotations

import torch

from mserve.kernels.tiles import linear_by_tiles

MXFP8_GROUP = 32
"""Values along a row that share a scale."""


def linear_mxfp8(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """``x`` [T, K] bf16 or fp32 times ``weight`` [N, K] float8_e4m3fn with ``scale`` [N, K / 32]
    uint8, transposed; [T, N] of ``out_dtype`` (x's by default), summed in fp32."""

    def tile(rows: slice) -> torch.Tensor:
        return dequantize_mxfp8(weight[rows], scale[rows])

    return linear_by_tiles(x, weight.shape[0], tile, out_dtype)


def dequantize_mxfp8(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Values [..., K] fp32 of ``weight`` [..., K] float8_e4m3fn and ``scale`` [..., K / 32]."""
    powers = scale.contiguous().view(torch.float8_e8m0fnu).float()
    groups = weight.float().unflatten(-1, (-1, MXFP8_GROUP))
    return (groups * powers[..., None]).flatten(-2)
