"""Root-mean-square norms. The two families round at different places, which decides their bits.

Legend: D the normed width; leading dimensions are free.
"""

from __future__ import annotations

import torch


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """M2's norm of ``x`` [..., D] by ``weight`` [D] of its dtype: normalise in fp32, round,
    then multiply."""
    wide = x.float()
    return rms_norm_given(wide, wide.square().mean(-1, keepdim=True), weight, eps)


def rms_norm_given(
    x: torch.Tensor, mean_square: torch.Tensor, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    """``rms_norm`` of fp32 ``x`` [..., D] whose ``mean_square`` [..., 1] covers more than this
    rank's D values. The result has the dtype of ``weight``."""
    return weight * (x * torch.rsqrt(mean_square + eps)).to(weight.dtype)


def gemma_rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """M3's norm of ``x`` [..., D] by fp32 ``weight`` [D], centred on zero: all in fp32, rounded
    once at the end."""
    wide = x.float()
    mean_square = wide.square().mean(-1, keepdim=True)
    return (wide * torch.rsqrt(mean_square + eps) * (1.0 + weight)).to(x.dtype)


def mean_squares(x: torch.Tensor, split: int, counts: tuple[int, int]) -> torch.Tensor:
    """This rank's part [T, 2] fp32 of the mean squares before and from column ``split`` of ``x``
    [T, D], over ``counts`` values on all ranks: what ranks add up to norm all of their columns."""
    squares = x.float().square()
    return torch.stack(
        [squares[:, :split].sum(-1) / counts[0], squares[:, split:].sum(-1) / counts[1]], dim=-1
    )
