"""INT8 with activations quantized by factors found beforehand (ModelSlim's W8A8).

In the file ``X.weight`` [N, K] int8, ``X.input_scale`` and ``X.input_offset`` [1], ``X.quant_bias``
[N] int32 and ``X.deq_scale`` [N] fp32, or int64 whose low half is the fp32 number. What else the
dynamic form has may be there: the scale says nothing new, the offset must be zero. Matrices that
share a store keep factors of their own for the input, which then becomes integers once for each. A
rank cuts rows and columns anywhere; of ranks that cut the columns the first adds the bias, which is
of whole rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch

from mserve.kernels import Int8StaticMatrix, linear, uninitialized
from mserve.weights.int8 import zero_offset
from mserve.weights.piece import Piece
from mserve.weights.weight import Assembly

_ONE = slice(0, 1)


@dataclass(frozen=True, slots=True)
class Int8StaticWeight:
    """The integers and factors, in the kernels' form, of one matrix or a stack."""

    matrix: Int8StaticMatrix
    assembly: Assembly

    @classmethod
    def empty(cls, assembly: Assembly, dtype: torch.dtype, device: torch.device) -> Self:
        *leading, _, _ = assembly.shape
        num_words = Int8StaticMatrix.num_words(assembly.part_rows)
        return cls(
            Int8StaticMatrix(
                uninitialized(assembly.shape, torch.int8, device),
                torch.zeros((*leading, num_words), dtype=torch.float32, device=device),
                assembly.part_rows,
            ),
            assembly,
        )

    @property
    def shape(self) -> tuple[int, ...]:
        return self.matrix.shape

    def linear(self, x: torch.Tensor, out_dtype: torch.dtype | None = None) -> torch.Tensor:
        return linear(x, self.matrix, out_dtype)

    def __getitem__(self, expert: int) -> Self:
        return type(self)(self.matrix[expert], self.assembly.expert(expert))

    def dequantize(self) -> torch.Tensor:
        """The weights alone; what the input's quantization does to a sum is not in them."""
        matrix = self.matrix
        heights = torch.tensor(matrix.part_rows, device=matrix.words.device)
        input_scale = matrix.inputs.scale.repeat_interleave(heights, dim=-1)
        return matrix.packed.float() * (matrix.deq_scale / input_scale)[..., None]

    def pieces(self) -> Iterator[Piece]:
        matrix, inputs = self.matrix, self.matrix.inputs
        num_parts = len(matrix.part_rows)
        for count, (at, part) in enumerate(self.assembly.places()):
            name = part.source.removesuffix(".weight")
            number = count % num_parts
            input_at = (*at[:-1], slice(number, number + 1))
            yield Piece(matrix.packed[at], part.source, (part.rows, part.columns))
            yield Piece(inputs.scale[input_at], f"{name}.input_scale", (_ONE,))
            yield Piece(inputs.offset[input_at], f"{name}.input_offset", (_ONE,))
            yield Piece(_Factors(matrix.deq_scale[at]), f"{name}.deq_scale", (part.rows,))
            if part.columns.start == 0:
                yield Piece(matrix.quant_bias[at], f"{name}.quant_bias", (part.rows,))
            yield zero_offset(part, optional=True)


@dataclass(frozen=True, slots=True)
class _Factors:
    """``kept`` [N] fp32, filled from such numbers or from the low halves of int64."""

    kept: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return self.kept.shape

    @property
    def stores(self) -> tuple[torch.Tensor, ...]:
        return (self.kept,)

    def __getitem__(self, rows: slice) -> Self:
        return type(self)(self.kept[rows])

    def copy_(self, rows: torch.Tensor) -> None:
        if rows.dtype == torch.int64:
            rows = rows.view(torch.float32)[::2]  # little-endian: the low half comes first
        self.kept.copy_(rows)
