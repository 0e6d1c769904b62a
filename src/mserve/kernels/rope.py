"""Rotary position embedding of the first dimensions of each head; the rest pass through.

Half-split pairing: dimension i turns with dimension i + R/2 by ``position * theta^(-2i/R)``.
Legend: T tokens, N heads, D head width, R rotated width, C = R/2 angles.
"""

from __future__ import annotations

import torch


def rope_frequencies(theta: float, rotary_dim: int, device: torch.device) -> torch.Tensor:
    """Radians per position of each angle, [C] fp32."""
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32, device=device)
    return 1.0 / theta ** (exponents / rotary_dim)


def rope_angles(
    positions: torch.Tensor, frequencies: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine [T, C] fp32 of ``positions`` [T] times ``frequencies`` [C].

    Made once per step and shared by all layers: a table for a million positions would hold
    256 MB and be read at random.
    """
    angles = positions.float()[:, None] * frequencies
    return angles.cos(), angles.sin()


def rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """``x`` [T, N, D] turned by the angles [T, C]; fp32 inside, rounded once."""
    half = cos.shape[-1]
    cos, sin = cos[:, None], sin[:, None]
    low, high = x[..., :half].float(), x[..., half : 2 * half].float()
    turned = torch.empty_like(x)
    turned[..., :half] = low * cos - high * sin
    turned[..., half : 2 * half] = high * cos + low * sin
    turned[..., 2 * half :] = x[..., 2 * half :]
    return turned
