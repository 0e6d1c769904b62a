"""MXFP8: one byte per value, and a byte of scale for each 32 values along a row.

In the file ``X.weight`` [N, K] float8_e4m3fn and ``X.weight_scale_inv`` [N, K / 32]; despite its
name the scale multiplies. A rank cuts rows anywhere and columns at multiples of 32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

import torch

from mserve.kernels import MXFP8_GROUP, Mxfp8Matrix, dequantize_mxfp8, uninitialized
from mserve.weights.converting import Converting
from mserve.weights.packed import PackedWeight
from mserve.weights.piece import Piece
from mserve.weights.weight import Assembly

_LARGEST = 448.0  # of e4m3fn
_BIAS = 127
_LARGEST_SCALE = 254
_NOT_A_NUMBER = 255


class Mxfp8Weight(PackedWeight):
    """``packed`` [N, K] float8_e4m3fn and ``scale`` [N, K / 32] uint8, both with [E, ...] in front
    for a stack."""

    __slots__ = ()

    @classmethod
    def empty(cls, assembly: Assembly, dtype: torch.dtype, device: torch.device) -> Self:
        *leading, width = assembly.shape
        return cls(
            uninitialized((*leading, width), torch.float8_e4m3fn, device),
            torch.empty((*leading, width // MXFP8_GROUP), dtype=torch.uint8, device=device),
            assembly,
        )

    @property
    def matrix(self) -> Mxfp8Matrix:
        return Mxfp8Matrix(self.packed, self.scale)

    def dequantize(self) -> torch.Tensor:
        return dequantize_mxfp8(self.packed, self.scale)

    def pieces(self) -> Iterator[Piece]:
        for at, part in self.assembly.places():
            packed, scale = self.packed[at], self.scale[at]
            whole = (part.rows, part.columns)
            if self.assembly.convert:
                to = Converting(packed.shape, (packed, scale), (1, 1), quantize_mxfp8)
                yield Piece(to, part.source, whole)
                continue
            yield Piece(packed, part.source, whole)
            first, last = part.columns.start // MXFP8_GROUP, part.columns.stop // MXFP8_GROUP
            yield Piece(scale, f"{part.source}_scale_inv", (part.rows, slice(first, last)))


def quantize_mxfp8(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``rows`` [n, K] fp32 as float8_e4m3fn [n, K] and scales [n, K / 32] uint8.

    The scale is the smallest power of two with which nothing saturates,
    ``ceil(log2(largest / 448))``; OCP's own rule rounds that down and clips the largest values. A
    group that holds a value which is no finite number becomes NaN.
    """
    groups = rows.unflatten(-1, (-1, MXFP8_GROUP))
    largest = groups.abs().amax(-1)
    # largest / 448 = fraction * 2^exponent with the fraction in [0.5, 1): its exact ceil(log2). In
    # fp64, where the quotient of the smallest fp32 is not zero.
    fraction, exponent = torch.frexp(largest.double() / _LARGEST)
    exponent = exponent - (fraction == 0.5).int()
    scale = (exponent + _BIAS).clamp(0, _LARGEST_SCALE)
    scale = torch.where(largest == 0, 0, scale)
    # A multiplication, since 2^-127 of an all-zero group has no finite inverse power of two.
    scaled = groups * torch.ldexp(torch.ones_like(largest), _BIAS - scale)[..., None]
    packed = scaled.flatten(-2).clamp(-_LARGEST, _LARGEST).to(torch.float8_e4m3fn)
    scale = torch.where(largest.isfinite(), scale, _NOT_A_NUMBER)
    return packed, scale.to(torch.uint8)
