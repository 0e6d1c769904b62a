"""The best entries of a row of logits, with ties to the lower id.

torch.topk leaves the order of equal values open, and it differs between devices and between k.
Here every entry has a place of its own. Knows logits; does not know what they are ranked for.
"""

from __future__ import annotations

import torch
from torch import Tensor


def best(logits_RV: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` highest entries of each row, as values and ids [R, count], highest first."""
    values, ids = torch.topk(logits_RV, count, dim=-1)
    # topk may have taken any of the entries equal to the last one. If there are more of them than
    # it took (rare: logits are fp32), all entries are ordered to find the first.
    if count < logits_RV.shape[1]:
        num_candidates = (logits_RV >= values[:, -1:]).sum(dim=-1)
        crowded = torch.nonzero(num_candidates > count)[:, 0]
        if len(crowded):
            ordered = torch.sort(logits_RV[crowded], dim=-1, descending=True, stable=True)
            values[crowded] = ordered.values[:, :count]
            ids[crowded] = ordered.indices[:, :count]
    by_id = ids.argsort(dim=-1)
    values, ids = values.gather(1, by_id), ids.gather(1, by_id)
    values, by_value = torch.sort(values, dim=-1, descending=True, stable=True)
    return values, ids.gather(1, by_value)


def rank_of(logits_RV: Tensor, ids_R: Tensor) -> Tensor:
    """Place of ``ids_R`` in the order of ``best``, counted from 1, int64 [R]."""
    chosen = logits_RV.gather(1, ids_R[:, None])
    higher = (logits_RV > chosen).sum(dim=-1)
    all_ids = torch.arange(logits_RV.shape[1], device=logits_RV.device)
    equal_before = ((logits_RV == chosen) & (all_ids < ids_R[:, None])).sum(dim=-1)
    return 1 + higher + equal_before
