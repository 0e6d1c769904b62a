"""A matrix [N, K], or a stack of them [E, N, K], in the forms that linear layers and experts take.

A plain one is a tensor of the activations' dtype; a packed one is its tensors under one name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch

from mserve.kernels.linear_fp8_block import linear_fp8_block
from mserve.kernels.linear_mxfp8 import linear_mxfp8


@dataclass(frozen=True, slots=True)
class Mxfp8Matrix:
    """``packed`` [..., N, K] float8_e4m3fn and ``scale`` [..., N, K / 32] uint8."""

    packed: torch.Tensor
    scale: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return self.packed.shape

    def __getitem__(self, expert: int | None) -> Self:
        """One matrix of a stack; with None a stack of this one."""
        return type(self)(self.packed[expert], self.scale[expert])

    def linear(self, x: torch.Tensor, out_dtype: torch.dtype | None = None) -> torch.Tensor:
        return linear_mxfp8(x, self.packed, self.scale, out_dtype)


@dataclass(frozen=True, slots=True)
class Fp8BlockMatrix:
    """``packed`` [..., N, K] float8_e4m3fn and ``scale`` [..., S, K / 128] fp32; the parts, of
    ``part_rows`` rows each, have block rows of their own, S in all."""

    packed: torch.Tensor
    scale: torch.Tensor
    part_rows: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.packed.shape

    def __getitem__(self, expert: int | None) -> Self:
        """One matrix of a stack; with None a stack of this one."""
        return type(self)(self.packed[expert], self.scale[expert], self.part_rows)

    def linear(self, x: torch.Tensor, out_dtype: torch.dtype | None = None) -> torch.Tensor:
        return linear_fp8_block(x, self.packed, self.scale, self.part_rows, out_dtype)


PackedMatrix = Mxfp8Matrix | Fp8BlockMatrix
Matrix = torch.Tensor | PackedMatrix
