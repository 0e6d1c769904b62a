"""bf16 and fp32: values as they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch

from mserve.kernels import linear, uninitialized
from mserve.weights.piece import Piece
from mserve.weights.weight import Assembly


@dataclass(frozen=True, slots=True)
class PlainWeight:
    """``tensor`` [N, K] or [E, N, K] of the model's dtype."""

    tensor: torch.Tensor
    assembly: Assembly

    @classmethod
    def empty(cls, assembly: Assembly, dtype: torch.dtype, device: torch.device) -> Self:
        return cls(uninitialized(assembly.shape, dtype, device), assembly)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    @property
    def matrix(self) -> torch.Tensor:
        return self.tensor

    def linear(self, x: torch.Tensor, out_dtype: torch.dtype | None = None) -> torch.Tensor:
        return linear(x, self.tensor, out_dtype)

    def __getitem__(self, expert: int) -> Self:
        return type(self)(self.tensor[expert], self.assembly.expert(expert))

    def dequantize(self) -> torch.Tensor:
        return self.tensor.float()

    def pieces(self) -> Iterator[Piece]:
        for at, part in self.assembly.places():
            yield Piece(self.tensor[at], part.source, (part.rows, part.columns))
