"""The highest score of each row: a greedy choice, and the test whether a row holds numbers."""

from __future__ import annotations

import torch


def highest(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Values [R] and places [R] int64 of ``scores`` [R, V] fp32: the first of equal ones, and the
    first NaN of a row that has one."""
    values, places = scores.max(dim=-1)
    return values, places
