"""Rows times weight rows in INT8, both sides (W8A8): exact integer sums, then one scaling.

    dynamic    s = amax|x| / 127 per token    y = (round(x / s) . w) * s * weight_scale
    static     q = round(x / input_scale) + input_offset, within int8
                                              y = (q . w + quant_bias) * deq_scale

Rounding goes to the nearest, ties to even. Legend: T tokens, N rows, K width.
"""

from __future__ import annotations

import torch

from mserve.kernels.tiles import row_tiles

_LARGEST = 127


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
    input_scale: torch.Tensor,
    input_offset: torch.Tensor,
    quant_bias: torch.Tensor,
    deq_scale: torch.Tensor,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """``x`` [T, K] bf16 or fp32 times ``weight`` [N, K] int8, transposed; [T, N] of ``out_dtype``
    (x's by default). ``input_scale`` and ``input_offset`` [1] fp32 are of all inputs,
    ``quant_bias`` [N] int32, ``deq_scale`` [N] fp32."""
    quantized = ((x.float() / input_scale).round() + input_offset).clamp(-_LARGEST - 1, _LARGEST)
    sums = _integer_linear(quantized, weight) + quant_bias.double()
    return (sums.float() * deq_scale).to(out_dtype or x.dtype)


def _integer_linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Integers ``x`` [T, K] times int8 ``weight`` [N, K]: the exact sums [T, N], in fp64, whose 53
    bits hold those of any width. NaN stays NaN, where an integer type would make it a number."""
    wide = x.double()
    sums = torch.empty((x.shape[0], weight.shape[0]), dtype=torch.float64, device=x.device)
    for rows in row_tiles(weight.shape[0], x.shape[1]):
        sums[:, rows] = wide @ weight[rows].double().T
    return sums
