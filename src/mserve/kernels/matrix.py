"""A matrix [N, K], or a stack of them [E, N, K], in the forms that linear layers and experts take.

A plain one is a tensor of the activations' dtype; a packed one is its tensors under one name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch

from mserve.kernels.linear_fp8_block import linear_fp8_block
from mserve.kernels.linear_int8 import StaticInputs, linear_int8, linear_int8_static
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


@dataclass(frozen=True, slots=True)
class Int8Matrix:
    """``packed`` [..., N, K] int8 and ``scale`` [..., N] fp32; each token has a factor of its
    own."""

    packed: torch.Tensor
    scale: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return self.packed.shape

    def __getitem__(self, expert: int | None) -> Self:
        """One matrix of a stack; with None a stack of this one."""
        return type(self)(self.packed[expert], self.scale[expert])

    def linear(self, x: torch.Tensor, out_dtype: torch.dtype | None = None) -> torch.Tensor:
        return linear_int8(x, self.packed, self.scale, out_dtype)


@dataclass(frozen=True, slots=True)
class Int8StaticMatrix:
    """``packed`` [..., N, K] int8, whose P parts, of ``part_rows`` rows each, have factors of their
    own for the input. ``words`` [..., 2N + 2P] fp32 are all else that belongs to a matrix, side by
    side so that a kernel needs one address; the properties below tell them apart."""

    packed: torch.Tensor
    words: torch.Tensor
    part_rows: tuple[int, ...]

    @staticmethod
    def num_words(part_rows: tuple[int, ...]) -> int:
        return 2 * (sum(part_rows) + len(part_rows))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.packed.shape

    @property
    def deq_scale(self) -> torch.Tensor:
        """[..., N]"""
        return self.words[..., : self.shape[-2]]

    @property
    def quant_bias(self) -> torch.Tensor:
        """[..., N] int32"""
        rows = self.shape[-2]
        return self.words[..., rows : 2 * rows].view(torch.int32)

    @property
    def inputs(self) -> StaticInputs:
        """Of one matrix; with [..., P] of a stack."""
        scale, offset = self.words[..., 2 * self.shape[-2] :].chunk(2, dim=-1)
        return StaticInputs(scale, offset, self.part_rows)

    def __getitem__(self, expert: int | None) -> Self:
        """One matrix of a stack; with None a stack of this one."""
        return type(self)(self.packed[expert], self.words[expert], self.part_rows)

    def linear(self, x: torch.Tensor, out_dtype: torch.dtype | None = None) -> torch.Tensor:
        return linear_int8_static(
            x, self.packed, self.inputs, self.quant_bias, self.deq_scale, out_dtype
        )


PackedMatrix = Mxfp8Matrix | Fp8BlockMatrix | Int8Matrix | Int8StaticMatrix
Matrix = torch.Tensor | PackedMatrix
