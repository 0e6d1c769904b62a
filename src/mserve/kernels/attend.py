"""Softmax attention over some of the keys, and how partial results join.

An attention over all keys is any number of partial ones, each with the log of its softmax
denominator, so no kernel holds more than a bounded piece of keys or scores.
Legend: B batch dimensions, M query rows, N keys, D head width.
"""

from __future__ import annotations

import torch

# Above this many query rows torch's fused CPU kernel wins over two GEMMs and a softmax
# (M = 2048, N = 4096: 95 against 154 ms); below it loses (M = 16: 1.2 against 0.65 ms).
_FUSED_ROWS = 64


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    visible: torch.Tensor | None,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output [B, B, M, D] fp32 and log-sum-exp of the scores [B, B, M] fp32.

    ``query`` [B, B, M, D], ``key`` and ``value`` [B, B, N, D]; ``visible`` bool, broadcastable to
    [B, B, M, N], or None for all. Softmax in fp32. A row that sees no key gives zeros and -inf.
    """
    if query.device.type == "cpu" and query.shape[-2] >= _FUSED_ROWS:
        return _attend_fused(query, key, value, visible, scale)
    scores = torch.matmul(query, key.transpose(-1, -2)).float().mul_(scale)
    if visible is not None:
        scores.masked_fill_(~visible, -torch.inf)
    peak = scores.amax(-1, keepdim=True).clamp_min_(torch.finfo(torch.float32).min)
    weights = scores.sub_(peak).exp_()
    total = weights.sum(-1, keepdim=True)
    output = torch.matmul(weights.to(value.dtype), value).float()
    # A row without keys has total 0, output 0: 0 / tiny is 0, and log(0) is the -inf wanted.
    output /= total.clamp_min(torch.finfo(torch.float32).tiny)
    return output, (total.log() + peak).squeeze(-1)


def _attend_fused(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    visible: torch.Tensor | None,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    mask = None
    if visible is not None:
        mask = torch.zeros(visible.shape, dtype=query.dtype, device=query.device)
        mask.masked_fill_(~visible, -torch.inf)
    output, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, attn_mask=mask, scale=scale
    )
    if visible is not None:
        log_sum = log_sum.masked_fill(~visible.any(-1), -torch.inf)
    return output.float(), log_sum


def join(
    first: tuple[torch.Tensor, torch.Tensor], second: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over two disjoint sets of keys from the partial (output, log-sum-exp) of each."""
    log_sum = torch.logaddexp(first[1], second[1])
    share = torch.exp(first[1] - log_sum).nan_to_num_(0.0)[..., None]
    other = torch.exp(second[1] - log_sum).nan_to_num_(0.0)[..., None]
    return first[0] * share + second[0] * other, log_sum
