"""Token ids to their rows of the embedding."""

from __future__ import annotations

import torch
from torch.nn import functional


def embedding(token_ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Rows [T, hidden] of ``weight`` [V, hidden] for ``token_ids`` [T] int64. ``IndexError`` if one
    is not below V."""
    return functional.embedding(token_ids, weight)
