"""Rows times weight rows, whatever form these are stored in."""

from __future__ import annotations

import torch
from torch.nn import functional

from mserve.kernels.matrix import Matrix


def linear(x: torch.Tensor, weight: Matrix, out_dtype: torch.dtype | None = None) -> torch.Tensor:
    """``x`` [T, K] times ``weight`` [N, K] transposed, [T, N] of ``out_dtype`` (x's by default)."""
    if isinstance(weight, torch.Tensor):
        return functional.linear(x, weight).to(out_dtype or x.dtype)
    return weight.linear(x, out_dtype)
