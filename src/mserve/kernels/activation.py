"""The gated activations of the families: fp32 inside, rounded once.

``gate_up`` [..., 2I] holds the gate in its first half and the up projection in its second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.functional import silu


@dataclass(frozen=True, slots=True)
class GatedActivation:
    """Which of the two, with its numbers."""

    kind: Literal["silu", "swiglu_oai"]
    alpha: float = 0.0
    limit: float = 0.0
    beta: float = 0.0


def activate(gate_up: torch.Tensor, activation: GatedActivation) -> torch.Tensor:
    """From [..., 2I] to [..., I] of the same dtype."""
    if activation.kind == "silu":
        return silu_gated(gate_up)
    return swiglu_oai(gate_up, activation.alpha, activation.limit, activation.beta)


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
