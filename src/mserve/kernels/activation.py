"""The gated activations of the families: fp32 inside, rounded once.

``gate_up`` [..., 2I] holds the gate in its first half and the up projection in its second.
"""

from __future__ import annotations

import torch
from torch.nn.functional import silu


def silu_gated(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, [..., I]."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (silu(gate) * up).to(gate_up.dtype)


def swiglu_oai(gate_up: torch.Tensor, alpha: float, limit: float, beta: float) -> torch.Tensor:
    """(clamp(up) + beta) * g * sigmoid(alpha * g) with g = min(gate, limit), [..., I].

    The gate has no lower clamp; up is clamped to +-limit.
    """
    gate, up = gate_up.float().chunk(2, dim=-1)
    gate = gate.clamp(max=limit)
    glu = gate * torch.sigmoid(gate * alpha)
    return ((up.clamp(-limit, limit) + beta) * glu).to(gate_up.dtype)
