"""A matrix as layers see it, whatever form it is stored in, and what it is put together from.

    assembly   one column of parts      a matrix [N, K]: the parts' rows one below the other
               several such columns     a stack [E, N, K], one matrix per expert

Knows rows, columns and tensor names. Does not know any one format (a file each) or the layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple, Protocol

import torch

from mserve.weights.piece import Piece

At = tuple[int | slice, ...]


class Part(NamedTuple):
    """The rows and columns of one matrix of the checkpoint that this rank holds. Both slices
    have a start and a stop."""

    source: str  # hub name without ``language_model.``; ends in ``.weight``
    rows: slice
    columns: slice

    @property
    def num_rows(self) -> int:
        return int(self.rows.stop - self.rows.start)

    @property
    def num_columns(self) -> int:
        return int(self.columns.stop - self.columns.start)


@dataclass(frozen=True, slots=True)
class Assembly:
    """What a weight is made of. Every column has parts of the same shapes."""

    experts: tuple[tuple[Part, ...], ...]
    stacked: bool
    convert: bool  # the file holds plain values, which the format takes on while they are loaded

    @property
    def shape(self) -> tuple[int, ...]:
        matrix = (sum(self.part_rows), self.experts[0][0].num_columns)
        return (len(self.experts), *matrix) if self.stacked else matrix

    @property
    def part_rows(self) -> tuple[int, ...]:
        return tuple(part.num_rows for part in self.experts[0])

    def places(self, part_rows: tuple[int, ...] | None = None) -> Iterator[tuple[At, Part]]:
        """Where each part's rows begin and end in a tensor that has ``part_rows`` for each part,
        by default those of the matrix itself."""
        heights = part_rows or self.part_rows
        ends = list(accumulate(heights))
        for number, parts in enumerate(self.experts):
            for part, height, end in zip(parts, heights, ends, strict=True):
                rows = slice(end - height, end)
                yield (number, rows) if self.stacked else (rows,), part

    def expert(self, number: int) -> Assembly:
        """What matrix ``number`` of the stack is made of."""
        return Assembly((self.experts[number],), False, self.convert)


class Weight(Protocol):
    """A matrix [N, K], or a stack of them [E, N, K]."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def linear(self, x: torch.Tensor, out_dtype: torch.dtype | None = None) -> torch.Tensor:
        """``x`` [T, K] times the matrix transposed, [T, N] of ``out_dtype`` (x's by default)."""
        ...

    def __getitem__(self, expert: int) -> Weight:
        """One matrix of a stack, sharing its memory."""
        ...

    def dequantize(self) -> torch.Tensor:
        """All values in fp32, in memory of their own: for tests and tools, not for serving."""
        ...

    def pieces(self) -> Iterator[Piece]:
        """Every part of every stored tensor and where it comes from."""
        ...


@dataclass(frozen=True, slots=True)
class Joined:
    """Matrices one below the other that cannot share a store: a checkpoint may leave some of the
    matrices that read the same input unquantized. The price is one call for each."""

    members: tuple[Weight, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(member.shape[0] for member in self.members), self.members[0].shape[1])

    def linear(self, x: torch.Tensor, out_dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.cat([member.linear(x, out_dtype) for member in self.members], dim=-1)

    def __getitem__(self, expert: int) -> Weight:
        raise TypeError("matrices one below the other are no stack")

    def dequantize(self) -> torch.Tensor:
        return torch.cat([member.dequantize() for member in self.members])

    def pieces(self) -> Iterator[Piece]:
        for member in self.members:
            yield from member.pieces()


@dataclass(frozen=True, slots=True)
class Separate:
    """A stack whose matrices do not all have one format, each in a store of its own."""

    members: tuple[Weight, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.members), *self.members[0].shape)

    def linear(self, x: torch.Tensor, out_dtype: torch.dtype | None = None) -> torch.Tensor:
        raise TypeError("a stack is indexed before it is multiplied")

    def __getitem__(self, expert: int) -> Weight:
        return self.members[expert]

    def dequantize(self) -> torch.Tensor:
        return torch.stack([member.dequantize() for member in self.members])

    def pieces(self) -> Iterator[Piece]:
        for member in self.members:
            yield from member.pieces()


def forms(weight: Weight) -> frozenset[type]:
    """What ``weight`` is stored in: one class for each form among its parts."""
    if isinstance(weight, Joined | Separate):
        return frozenset[type]().union(*map(forms, weight.members))
    return frozenset((type(weight),))
