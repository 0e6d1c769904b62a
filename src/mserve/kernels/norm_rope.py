"""M3's per-head norm and rotary embedding in one fp32 pass with one rounding.

Rounding between the two, as a plain composition would, changes about one selected block in 200.
Legend: T tokens, N heads, D head width, C rotated pairs.
"""

from __future__ import annotations

import torch

from mserve.kernels.rms_norm import gemma_rms_norm
from mserve.kernels.rope import rope


def norm_rope(
    x: torch.Tensor, weight: torch.Tensor, eps: float, cos: torch.Tensor, sin: torch.Tensor
) -> torch.Tensor:
    """``x`` [T, N, D] normed over D by the heads' fp32 weights [N, D], centred on zero, then
    turned by the angles [T, C]."""
    return rope(gemma_rms_norm(x.float(), weight, eps), cos, sin).to(x.dtype)
