"""Rows times weight rows in INT8, both sides (W8A8): exact integer sums, then one scaling.

    dynamic    s = amax|x| / 127 per token    y = (round(x / s) . w) * s * weight_scale
    static     q = round(x / input_scale) + input_offset, within int8
                                              y = (q . w + quant_bias) * deq_scale
               the input's scale and offset are of a part of the rows, as matrices have them

Rounding goes to the nearest, ties to even. Legend: T tokens, N rows, K width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from mserve.kernels.tiles import row_tiles

_LARGEST = 127


class StaticInputs(NamedTuple):
    """``scale`` and ``offset`` [P] fp32 by which the input of each part of a matrix, of
    ``part_rows`` rows, becomes integers."""

    scale: torch.Tensor
    offset: torch.Tensor
    part_rows: tuple[int, ...]


def linear_int8(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """``x`` [T, K] bf16 or fp32 times ``weight`` [N, K] int8 with ``scale`` [N] fp32, transposed;
    [T, N] of ``out_dtype`` (x's by default). A token that is all zeros gives zeros."""
    quantized, token_scale = quantize_tokens(x)
    sums = _integer_linear(quantized, weight).float()
    return (sums * (token_scale[:, None] * scale)).to(out_dtype or x.dtype)


def quantize_tokens(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``x`` [T, K] as integers [T, K] fp32 within +-127 and their factors [T] fp32."""
    wide = x.float()
    scale = wide.abs().amax(-1) / _LARGEST
    divisor = torch.where(scale == 0, 1.0, scale)
    # A subnormal factor may be rounded to less than amax / 127.
    return (wide / divisor[:, None]).round().clamp(-_LARGEST, _LARGEST), scale


def linear_int8_static(
    x: torch.Tensor,
    weight: torch.Tensor,
    inputs: StaticInputs,
    quant_bias: torch.Tensor,
    deq_scale: torch.Tensor,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """``x`` [T, K] bf16 or fp32 times ``weight`` [N, K] int8, transposed; [T, N] of ``out_dtype``
    (x's by default). ``quant_bias`` [N] int32, ``deq_scale`` [N] fp32."""
    sums = torch.empty((x.shape[0], weight.shape[0]), dtype=torch.float64, device=x.device)
    first = 0
    for scale, offset, rows in zip(inputs.scale, inputs.offset, inputs.part_rows, strict=True):
        part = slice(first, first + rows)
        quantized = ((x.float() / scale).round() + offset).clamp(-_LARGEST - 1, _LARGEST)
        sums[:, part] = _integer_linear(quantized, weight[part])
        first += rows
    sums += quant_bias.double()
    return (sums.float() * deq_scale).to(out_dtype or x.dtype)


def _integer_linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Integers ``x`` [T, K] times int8 ``weight`` [N, K]: the exact sums [T, N], in fp64, whose 53
    bits hold those of any width. NaN stays NaN, where an integer type would make it a number."""
    wide = x.double()
    sums = torch.empty((x.shape[0], weight.shape[0]), dtype=torch.float64, device=x.device)
    for rows in row_tiles(weight.shape[0], x.shape[1]):
        sums[:, rows] = wide @ weight[rows].double().T
    return sums
