"""Which experts a token goes to, and with what weight.

Legend: T tokens, E experts, K chosen.
"""

from __future__ import annotations

import torch
from torch.nn.functional import linear

from mserve.kernels.exact_top_k import exact_top_k


def route(
    hidden: torch.Tensor, gate: torch.Tensor, bias: torch.Tensor, k: int, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Expert ids [T, K] int64, ascending, and weights [T, K] fp32, summing to ``scale``.

    ``hidden`` [T, hidden]; ``gate`` [E, hidden] and ``bias`` [E] fp32. The bias takes part in the
    choice only. All in fp32: a router in bf16 costs accuracy.
    """
    scores = torch.sigmoid(linear(hidden.float(), gate))
    ids = exact_top_k(scores + bias, k)
    chosen = scores.gather(1, ids)
    return ids, chosen * (scale / chosen.sum(-1, keepdim=True))
