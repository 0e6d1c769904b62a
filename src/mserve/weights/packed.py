"""What formats of one byte per value have in common: the values and their factors, two tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

import torch

from mserve.kernels import Matrix, linear
from mserve.weights.weight import Assembly


@dataclass(frozen=True, slots=True)
class PackedWeight(ABC):
    """``packed`` [N, K] and ``scale``, of a shape that the format tells, both with [E, ...] in
    front for a stack."""

    packed: torch.Tensor
    scale: torch.Tensor
    assembly: Assembly

    @property
    def shape(self) -> tuple[int, ...]:
        return self.packed.shape

    @property
    @abstractmethod
    def matrix(self) -> Matrix:
        """The form that kernels take."""

    def linear(self, x: torch.Tensor, out_dtype: torch.dtype | None = None) -> torch.Tensor:
        return linear(x, self.matrix, out_dtype)

    def __getitem__(self, expert: int) -> Self:
        return type(self)(self.packed[expert], self.scale[expert], self.assembly.expert(expert))
