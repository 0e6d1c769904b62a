"""How a plane of the KV cache stores vectors, and the two ways through which kernels touch it.

    bf16, fp32    values as they are             fp8     e4m3 without a scale, saturating at 448
    int8          integers within +-127, and one fp32 factor per token and head beside them

Keys are normed, so their values stay far below e4m3's largest. Legend: G heads, W width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

_LARGEST_E4M3 = 448.0
_LARGEST_INT8 = 127


class ScaledPlane(NamedTuple):
    """``values`` int8 [blocks, G, BLOCK_TOKENS, W] and ``scales`` fp32, the same with a width of
    1, of one layer and kind."""

    values: torch.Tensor
    scales: torch.Tensor

    @property
    def shape(self) -> torch.Size:
        return self.values.shape


CachePlane = torch.Tensor | ScaledPlane
"""[blocks, G, BLOCK_TOKENS, W]."""


def packed(
    plane: CachePlane, vectors: torch.Tensor
) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    """Each tensor of ``plane`` with what ``vectors`` [..., W] become in it."""
    if isinstance(plane, ScaledPlane):
        wide = vectors.float()
        scales = wide.abs().amax(-1, keepdim=True) / _LARGEST_INT8
        divisor = torch.where(scales == 0, 1.0, scales)
        integers = (wide / divisor).round().clamp(-_LARGEST_INT8, _LARGEST_INT8)
        # What is no number has no integer; its factor makes it one that is no number again.
        values = integers.nan_to_num(1.0).to(torch.int8)
        return (plane.values, values), (plane.scales, scales)
    if plane.dtype == torch.float8_e4m3fn:
        codes = vectors.float().clamp(-_LARGEST_E4M3, _LARGEST_E4M3).to(plane.dtype)
        # As bytes: not every device indexes a tensor of this type.
        return ((plane.view(torch.uint8), codes.view(torch.uint8)),)
    return ((plane, vectors.to(plane.dtype)),)


def unpacked(values: torch.Tensor, scales: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """Vectors [..., W] of ``dtype`` from stored ``values`` and their factors, if there are any."""
    if scales is None:
        return values.to(dtype)
    return (values.float() * scales).to(dtype)
