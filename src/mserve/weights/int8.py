"""INT8 with activations quantized per token (ModelSlim's W8A8_DYNAMIC): a factor for each row.

In the file ``X.weight`` [N, K] int8, ``X.weight_scale`` [N, 1] and ``X.weight_offset`` [N, 1],
which must be zero: weights are symmetric. A rank cuts rows and columns anywhere; where it cuts
columns, each rank quantizes its part of a token by itself, which is at least as exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch

from mserve.core import CheckpointError
from mserve.kernels import Int8Matrix, uninitialized
from mserve.weights.converting import Converting
from mserve.weights.packed import PackedWeight
from mserve.weights.piece import Piece
from mserve.weights.weight import Assembly, Part

_LARGEST = 127


class Int8Weight(PackedWeight):
    """``packed`` [N, K] int8 and ``scale`` [N] fp32, both with [E, ...] in front for a stack."""

    __slots__ = ()

    @classmethod
    def empty(cls, assembly: Assembly, dtype: torch.dtype, device: torch.device) -> Self:
        return cls(
            uninitialized(assembly.shape, torch.int8, device),
            torch.empty(assembly.shape[:-1], dtype=torch.float32, device=device),
            assembly,
        )

    @property
    def matrix(self) -> Int8Matrix:
        return Int8Matrix(self.packed, self.scale)

    def dequantize(self) -> torch.Tensor:
        return self.packed.float() * self.scale[..., None]

    def pieces(self) -> Iterator[Piece]:
        for at, part in self.assembly.places():
            packed, scale = self.packed[at], self.scale[at].unsqueeze(-1)
            whole = (part.rows, part.columns)
            if self.assembly.convert:
                yield Piece(
                    Converting(packed.shape, (packed, scale), (1, 1), quantize_int8),
                    part.source,
                    whole,
                )
                continue
            yield Piece(packed, part.source, whole)
            yield Piece(scale, f"{part.source}_scale", (part.rows, slice(0, 1)))
            yield zero_offset(part)


def zero_offset(part: Part, *, optional: bool = False) -> Piece:
    """Reads the offsets of a matrix, only to refuse those that are not zero."""
    name = f"{part.source}_offset"
    rows = (part.rows, slice(0, 1))
    return Piece(_Zeros((part.num_rows, 1), name), name, rows, optional=optional)


@dataclass(frozen=True, slots=True)
class _Zeros:
    shape: tuple[int, ...]
    name: str

    @property
    def stores(self) -> tuple[torch.Tensor, ...]:
        return ()

    def __getitem__(self, rows: slice) -> Self:
        return type(self)((len(range(*rows.indices(self.shape[0]))), *self.shape[1:]), self.name)

    def copy_(self, rows: torch.Tensor) -> None:
        if rows.any():
            raise CheckpointError(
                f"{self.name} is not zero: asymmetric INT8 weights are not supported",
                hint="quantize with symmetric weights",
            )


def quantize_int8(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``rows`` [n, K] fp32 as int8 within +-127 and factors [n, 1] fp32."""
    scale = rows.abs().amax(-1, keepdim=True) / _LARGEST
    scale = torch.where(scale == 0, 1.0, scale)
    return (rows / scale).round().clamp(-_LARGEST, _LARGEST).to(torch.int8), scale
