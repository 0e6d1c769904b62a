"""The best entries of a row of logits, with ties to the lower id.

torch.topk leaves the order of equal values open, and it differs between devices and between k.
Here every entry has a place of its own. Knows logits; does not know what they are ranked for.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ID_BITS = 32
_ID_MASK = (1 << _ID_BITS) - 1


def best(logits_RV: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` highest entries of each fp32 row, as values and ids [R, count], highest first.

    Costs 8 bytes of scratch per logit: value and id are packed into one integer key, so that an
    ordinary top-k has no ties left to decide.
    """
    vocab = logits_RV.shape[1]
    # Two floats compare like their bits read as integers, once the negative half is mirrored.
    # Adding zero turns -0.0 into 0.0, which is equal and must rank equal.
    bits = (logits_RV + 0.0).view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    descending_ids = torch.arange(vocab - 1, -1, -1, device=logits_RV.device)
    keys = (ordered.long() << _ID_BITS) | descending_ids
    top_keys = torch.topk(keys, count, dim=-1).values
    ids = (vocab - 1) - (top_keys & _ID_MASK)
    return logits_RV.gather(1, ids), ids


def rank_of(logits_RV: Tensor, ids_R: Tensor) -> Tensor:
    """Place of ``ids_R`` in the order of ``best``, counted from 1, int64 [R]."""
    chosen = logits_RV.gather(1, ids_R[:, None])
    higher = (logits_RV > chosen).sum(dim=-1)
    all_ids = torch.arange(logits_RV.shape[1], device=logits_RV.device)
    equal_before = ((logits_RV == chosen) & (all_ids < ids_R[:, None])).sum(dim=-1)
    return 1 + higher + equal_before
