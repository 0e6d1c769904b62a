"""Block FP8: one byte per value, and an fp32 factor for each block of 128 x 128.

In the file ``X.weight`` [N, K] float8_e4m3fn and ``X.weight_scale_inv`` [N / 128, K / 128] fp32,
both counts rounded up; despite its name the factor multiplies. A rank cuts rows and columns at
multiples of 128.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

import torch

from mserve.kernels import FP8_BLOCK, Fp8BlockMatrix, dequantize_fp8_block, uninitialized
from mserve.weights.converting import Converting
from mserve.weights.packed import PackedWeight
from mserve.weights.piece import Piece
from mserve.weights.weight import Assembly

_LARGEST = 448.0  # of e4m3fn


class Fp8BlockWeight(PackedWeight):
    """``packed`` [N, K] float8_e4m3fn and ``scale`` [S, K / 128] fp32, both with [E, ...] in front
    for a stack. Each part has block rows of its own, S in all."""

    __slots__ = ()

    @classmethod
    def empty(cls, assembly: Assembly, dtype: torch.dtype, device: torch.device) -> Self:
        *experts, _, width = assembly.shape
        scales = (*experts, sum(_block_rows(assembly)), -(-width // FP8_BLOCK))
        return cls(
            uninitialized(assembly.shape, torch.float8_e4m3fn, device),
            torch.empty(scales, dtype=torch.float32, device=device),
            assembly,
        )

    @property
    def matrix(self) -> Fp8BlockMatrix:
        return Fp8BlockMatrix(self.packed, self.scale, self.assembly.part_rows)

    def dequantize(self) -> torch.Tensor:
        values = torch.empty(self.shape, dtype=torch.float32, device=self.packed.device)
        for (at, _), scales in zip(self.assembly.places(), self._scale_places(), strict=True):
            values[at] = dequantize_fp8_block(self.packed[at], self.scale[scales])
        return values

    def pieces(self) -> Iterator[Piece]:
        for (at, part), scales in zip(self.assembly.places(), self._scale_places(), strict=True):
            packed, scale = self.packed[at], self.scale[scales]
            whole = (part.rows, part.columns)
            if self.assembly.convert:
                to = Converting(packed.shape, (packed, scale), (1, FP8_BLOCK), quantize_fp8_block)
                yield Piece(to, part.source, whole, rows_together=FP8_BLOCK)
                continue
            yield Piece(packed, part.source, whole)
            yield Piece(scale, f"{part.source}_scale_inv", (_blocks(whole[0]), _blocks(whole[1])))

    def _scale_places(self) -> Iterator[tuple[int | slice, ...]]:
        return (at for at, _ in self.assembly.places(_block_rows(self.assembly)))


def _block_rows(assembly: Assembly) -> tuple[int, ...]:
    return tuple(-(-height // FP8_BLOCK) for height in assembly.part_rows)


def _blocks(values: slice) -> slice:
    """The blocks of some rows or columns, which begin with a block."""
    return slice(values.start // FP8_BLOCK, -(-values.stop // FP8_BLOCK))


def quantize_fp8_block(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``rows`` [n, K] fp32, from the beginning of a block on, as float8_e4m3fn [n, K] and factors
    [n / 128, K / 128] fp32: a block's largest value becomes 448, e4m3's largest."""
    num_rows, width = rows.shape
    padding = (0, -width % FP8_BLOCK, 0, -num_rows % FP8_BLOCK)
    blocks = torch.nn.functional.pad(rows, padding)
    blocks = blocks.unflatten(0, (-1, FP8_BLOCK)).unflatten(-1, (-1, FP8_BLOCK))
    scale = blocks.abs().amax((1, 3)) / _LARGEST
    scale = torch.where(scale == 0, 1.0, scale)
    scaled = (blocks / scale[:, None, :, None]).flatten(2).flatten(0, 1)[:num_rows, :width]
    return scaled.clamp(-_LARGEST, _LARGEST).to(torch.float8_e4m3fn), scale
