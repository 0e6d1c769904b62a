"""Rows times weight rows."""

from __future__ import annotations

import torch
from torch.nn import functional


def linear(
    x: torch.Tensor, weight: torch.Tensor, out_dtype: torch.dtype | None = None
) -> torch.Tensor:
    """``x`` [T, K] times ``weight`` [N, K] transposed, [T, N] of ``out_dtype`` (x's by default)."""
    return functional.linear(x, weight).to(out_dtype or x.dtype)
