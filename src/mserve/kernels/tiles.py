"""A linear over a matrix that exists in fp32 one tile of rows at a time.

For the packed formats' references: scratch is bounded whatever the matrix, and every output is one
fp32 sum over the whole width, rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch.nn.functional import linear

_TILE_BYTES = 8 << 20
_FP32_BYTES = 4


def row_tiles(num_rows: int, width: int, multiple: int = 1) -> Iterator[slice]:
    """Slices of at most 8 MiB in fp32 that cover ``num_rows`` rows of ``width`` values. All but
    the last begin and end at a multiple of ``multiple``, even where that takes more."""
    step = max(1, _TILE_BYTES // (_FP32_BYTES * max(1, width)) // multiple) * multiple
    for start in range(0, num_rows, step):
        yield slice(start, min(start + step, num_rows))


def linear_by_tiles(
    x: torch.Tensor,
    num_rows: int,
    tile: Callable[[slice], torch.Tensor],
    out_dtype: torch.dtype | None,
    multiple: int = 1,
) -> torch.Tensor:
    """``x`` [T, K] times the transpose of the matrix [num_rows, K] whose rows ``tile`` gives in
    fp32; [T, num_rows] of ``out_dtype`` (x's by default)."""
    wide = x.float()
    y = torch.empty((x.shape[0], num_rows), dtype=out_dtype or x.dtype, device=x.device)
    for rows in row_tiles(num_rows, x.shape[1], multiple):
        y[:, rows] = linear(wide, tile(rows))
    return y
