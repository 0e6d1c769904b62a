"""Scatter the new tokens' keys or values into their slots of a plane."""

from __future__ import annotations

import torch

from mserve.core import BLOCK_TOKENS


def write_kv(plane: torch.Tensor, slots: torch.Tensor, values: torch.Tensor) -> None:
    """``plane`` [blocks, G, BLOCK_TOKENS, W] takes ``values`` [T, G, W] at ``slots`` [T] int64
    (block * BLOCK_TOKENS + offset), converted to its dtype. Slots are distinct."""
    plane[slots // BLOCK_TOKENS, :, slots % BLOCK_TOKENS] = values.to(plane.dtype)
