"""A destination that quantizes the rows it is given: bf16 in the file, packed in memory.

Knows that a format turns some rows into some tensors. Does not know any format.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch

Quantize = Callable[[torch.Tensor], tuple[torch.Tensor, ...]]


@dataclass(frozen=True, slots=True)
class Converting:
    """``quantize`` turns rows [n, K] fp32 into one tensor for each of ``stores``; a row of store i
    is made of ``rows_of[i]`` rows that are given."""

    shape: tuple[int, ...]
    stores: tuple[torch.Tensor, ...]
    rows_of: tuple[int, ...]
    quantize: Quantize

    def __getitem__(self, rows: slice) -> Self:
        start, stop, _ = rows.indices(self.shape[0])
        stores = tuple(
            store[start // each : -(-stop // each)]
            for store, each in zip(self.stores, self.rows_of, strict=True)
        )
        return type(self)((stop - start, *self.shape[1:]), stores, self.rows_of, self.quantize)

    def copy_(self, rows: torch.Tensor) -> None:
        for store, values in zip(self.stores, self.quantize(rows.float()), strict=True):
            store.copy_(values)
