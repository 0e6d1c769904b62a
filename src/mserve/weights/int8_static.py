"""INT8 with activations quantized by factors found beforehand (ModelSlim's W8A8).

In the file, beside what the dynamic form has: ``X.input_scale`` and ``X.input_offset`` [1],
``X.quant_bias`` [N] int32 and ``X.deq_scale`` [N] fp32. Every matrix has factors of its own for
its input, so none shares a store. A rank cuts rows and columns anywhere; of ranks that cut the
columns the first adds the bias, which is of whole rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch

from mserve.kernels import linear_int8_static
from mserve.weights.int8 import zero_offset
from mserve.weights.piece import Piece
from mserve.weights.weight import Assembly, Part

_ONE = slice(0, 1)


@dataclass(frozen=True, slots=True)
class Int8StaticWeight:
    """``packed`` [N, K] int8, ``input_scale`` and ``input_offset`` [1] fp32, ``quant_bias`` [N]
    int32, ``deq_scale`` [N] fp32."""

    packed: torch.Tensor
    input_scale: torch.Tensor
    input_offset: torch.Tensor
    quant_bias: torch.Tensor
    deq_scale: torch.Tensor
    assembly: Assembly

    @classmethod
    def empty(cls, assembly: Assembly, dtype: torch.dtype, device: torch.device) -> Self:
        height = assembly.shape[:1]
        return cls(
            packed=torch.empty(assembly.shape, dtype=torch.int8, device=device),
            input_scale=torch.empty(1, dtype=torch.float32, device=device),
            input_offset=torch.empty(1, dtype=torch.float32, device=device),
            quant_bias=torch.zeros(height, dtype=torch.int32, device=device),
            deq_scale=torch.empty(height, dtype=torch.float32, device=device),
            assembly=assembly,
        )

    @property
    def shape(self) -> tuple[int, ...]:
        return self.packed.shape

    def linear(self, x: torch.Tensor, out_dtype: torch.dtype | None = None) -> torch.Tensor:
        return linear_int8_static(
            x,
            self.packed,
            self.input_scale,
            self.input_offset,
            self.quant_bias,
            self.deq_scale,
            out_dtype,
        )

    def __getitem__(self, expert: int) -> Self:
        raise TypeError("statically quantized matrices are not stacked")

    def dequantize(self) -> torch.Tensor:
        """The weights alone; what the input's quantization does to a sum is not in them."""
        return self.packed.float() * (self.deq_scale / self.input_scale)[:, None]

    def pieces(self) -> Iterator[Piece]:
        part = self._part
        name = part.source.removesuffix(".weight")
        yield Piece(self.packed, part.source, (part.rows, part.columns))
        yield Piece(self.input_scale, f"{name}.input_scale", (_ONE,))
        yield Piece(self.input_offset, f"{name}.input_offset", (_ONE,))
        yield Piece(self.deq_scale, f"{name}.deq_scale", (part.rows,))
        if part.columns.start == 0:
            yield Piece(self.quant_bias, f"{name}.quant_bias", (part.rows,))
        yield zero_offset(part)

    @property
    def _part(self) -> Part:
        ((part,),) = self.assembly.experts
        return part
