"""Log-probabilities of tokens under the model's own distribution.

Natural log, from raw logits: before temperature, penalties and every other rule of sampling.
Knows logits; does not know which tokens were sampled and which are a prompt's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mserve.core import TokenLogprobs
from mserve.kernels import best, rank_of


def score(logits_RV: Tensor, token_ids_R: Tensor, num_top: list[int]) -> list[TokenLogprobs]:
    """Score ``token_ids_R`` under fp32 ``logits_RV``, with the ``num_top[r]`` best ids of row r."""
    normaliser = torch.logsumexp(logits_RV, dim=-1, keepdim=True)
    chosen = (logits_RV.gather(1, token_ids_R[:, None]) - normaliser)[:, 0]
    count = min(max(num_top, default=0), logits_RV.shape[1])
    top_values, top_ids = best(logits_RV, count) if count else (logits_RV[:, :0],) * 2
    columns = (
        token_ids_R.tolist(),
        chosen.tolist(),
        rank_of(logits_RV, token_ids_R).tolist(),
        top_ids.tolist(),
        (top_values - normaliser).tolist(),
        num_top,
    )
    return [
        TokenLogprobs(
            token_id, logprob, rank, list(zip(ids[:wanted], values[:wanted], strict=True))
        )
        for token_id, logprob, rank, ids, values, wanted in zip(*columns, strict=True)
    ]
