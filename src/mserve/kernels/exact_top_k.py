"""Top-k with an order that does not depend on device, batch or shape: higher score, lower id.

``torch.topk`` leaves the choice among equal scores open; both selections that decide meaning
(blocks and experts) come through here.
"""

from __future__ import annotations

import torch


def exact_top_k(scores: torch.Tensor, k: int) -> torch.Tensor:
    """Ids [R, k] int64, ascending, of the ``k`` best of ``scores`` [R, N], k <= N.

    Equal scores go to the lower id; 0.0 and -0.0 are equal, NaN counts as -inf.
    """
    scores = torch.where(scores.isnan(), -torch.inf, scores)
    last = torch.topk(scores, k, dim=-1, sorted=True).values[:, -1:]
    above = scores > last
    level = scores == last
    room = k - above.sum(-1, keepdim=True)
    chosen = above | (level & (level.cumsum(-1) <= room))
    # Exactly k per row, and nonzero lists them row by row in ascending order.
    return chosen.nonzero()[:, 1].view(-1, k)
