"""Norm and rotary embedding of queries and keys together.

M3 norms per head, in one fp32 pass with one rounding: rounding between the two, as a plain
composition would, changes about one selected block in 200. M2 norms over all heads, rounding each
step.
Legend: T tokens, N heads, D head width, C rotated pairs.
"""

from __future__ import annotations

import torch

from mserve.kernels.rms_norm import gemma_rms_norm, rms_norm_given
from mserve.kernels.rope import rope


def norm_rope(
    x: torch.Tensor, weight: torch.Tensor, eps: float, cos: torch.Tensor, sin: torch.Tensor
) -> torch.Tensor:
    """``x`` [T, N, D] normed over D by the heads' fp32 weights [N, D], centred on zero, then
    turned by the angles [T, C]."""
    return rope(gemma_rms_norm(x.float(), weight, eps), cos, sin).to(x.dtype)


def rms_norm_rope(
    x: torch.Tensor,
    mean_square: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    cos: torch.Tensor,
    sin: torch.Tensor,
) -> torch.Tensor:
    """``x`` [T, N, D] with a known ``mean_square`` [T] fp32, normed as M2 does by ``weight``
    [N * D], then turned by the angles [T, C]."""
    normed = rms_norm_given(x.float(), mean_square[:, None, None], weight.view(x.shape[1:]), eps)
    return rope(normed, cos, sin)
