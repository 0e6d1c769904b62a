"""Scatter the new tokens' keys or values into their slots of a plane."""

from __future__ import annotations

import torch

from mserve.core import BLOCK_TOKENS
from mserve.kernels.cache_plane import CachePlane, packed


def write_kv(plane: CachePlane, slots: torch.Tensor, values: torch.Tensor) -> None:
    """``plane`` [blocks, G, BLOCK_TOKENS, W] takes ``values`` [T, G, W] at ``slots`` [T] int64
    (block * BLOCK_TOKENS + offset), in the form it stores. Slots are distinct."""
    blocks, offsets = slots // BLOCK_TOKENS, slots % BLOCK_TOKENS
    for store, stored in packed(plane, values):
        store[blocks, :, offsets] = stored
