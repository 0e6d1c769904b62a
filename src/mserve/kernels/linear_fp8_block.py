"""Rows times weight rows in block FP8: e4m3 elements, one fp32 factor for each 128 x 128 of them.

    value = element * scale[row / 128, column / 128]

A fused matrix is put together from parts whose blocks each begin anew, so a part's last block may
be lower than 128 rows. Legend: T tokens, N rows, K width, S block rows, C block columns.
"""

from __future__ import annotations

import torch

from mserve.kernels.tiles import linear_by_tiles

FP8_BLOCK = 128
"""Rows, and columns, that share a factor."""


def linear_fp8_block(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    part_rows: tuple[int, ...],
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """``x`` [T, K] bf16 or fp32 times ``weight`` [N, K] float8_e4m3fn with ``scale`` [S, C] fp32,
    transposed; [T, N] of ``out_dtype`` (x's by default), summed in fp32.

    ``part_rows`` are the heights of the parts of ``weight``, N in all.
    """
    parts = []
    first_row = first_block = 0
    for height in part_rows:
        end_row, end_block = first_row + height, first_block + -(-height // FP8_BLOCK)
        packed, factors = weight[first_row:end_row], scale[first_block:end_block]
        parts.append(_linear_of_part(x, packed, factors, out_dtype))
        first_row, first_block = end_row, end_block
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def _linear_of_part(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, out_dtype: torch.dtype | None
) -> torch.Tensor:
    def tile(rows: slice) -> torch.Tensor:
        blocks = slice(rows.start // FP8_BLOCK, -(-rows.stop // FP8_BLOCK))
        return dequantize_fp8_block(weight[rows], scale[blocks])

    return linear_by_tiles(x, weight.shape[0], tile, out_dtype, FP8_BLOCK)


def dequantize_fp8_block(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Values [N, K] fp32 of ``weight`` [N, K] float8_e4m3fn, one part, and ``scale`` [S, C]: one
    fp32 product each."""
    num_rows, width = weight.shape
    factors = scale.repeat_interleave(FP8_BLOCK, 0)[:num_rows]
    factors = factors.repeat_interleave(FP8_BLOCK, 1)[:, :width]
    return weight.float() * factors
