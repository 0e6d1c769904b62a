"""What every model offers to the runner and the loader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch

from mserve.layers import Batch, KVCache
from mserve.weights import Piece


class Model(Protocol):
    """One rank's share of a model. Built with unset parameters; usable once every piece is
    filled."""

    def pieces(self) -> Iterator[Piece]:
        """Every part of every parameter on this rank and the tensor it comes from."""
        ...

    def forward(self, batch: Batch, cache: KVCache) -> torch.Tensor:
        """Compute ``batch``, writing its keys and values to ``cache``; returns the hidden states
        [T, hidden] after the final norm, the same on every rank."""
        ...

    def logits(self, hidden: torch.Tensor) -> torch.Tensor | None:
        """Next-token scores [R, vocab] fp32 for rows ``hidden`` [R, hidden], on rank 0. Other
        ranks take part and get None."""
        ...
