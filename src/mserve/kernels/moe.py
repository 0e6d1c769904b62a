"""The experts of one layer: tokens sorted by expert, one pair of GEMMs per expert hit.

Legend: T tokens, K choices per token, E experts held here, I their width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from mserve.kernels.activation import GatedActivation, activate
from mserve.kernels.linear import linear
from mserve.kernels.matrix import Matrix


def run_experts(
    hidden: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    gate_up: Matrix,
    down: Matrix,
    activation: GatedActivation,
    first_expert: int,
    shared: tuple[Matrix, Matrix] | None = None,
    out_dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Sum over a token's choices of weight * expert(token), and the shared expert if there is
    one, [T, hidden] of ``out_dtype``, summed in fp32.

    ``hidden`` [T, hidden]; ``ids`` [T, K] with ``weights`` [T, K] fp32; ``gate_up``
    [E, 2I, hidden] and ``down`` [E, hidden, I] of the experts ``first_expert`` to
    ``first_expert + E``; ``shared`` the gate_up [2I', hidden] and down [hidden, I'] of one more
    that every token takes with weight 1. A choice held elsewhere adds nothing. The sum runs in
    ascending expert order, the shared one last, whatever else is in the batch.
    """

    def expert(number: int, rows: torch.Tensor) -> torch.Tensor:
        return gated_mlp(rows, gate_up[number], down[number], activation)

    total = sum_experts(hidden, ids, weights, gate_up.shape[0], expert, first_expert)
    if shared is not None:
        total += gated_mlp(hidden, *shared, activation)
    return total.to(out_dtype)


def sum_experts(
    hidden: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    num_experts: int,
    expert: Callable[[int, torch.Tensor], torch.Tensor],
    first_expert: int,
) -> torch.Tensor:
    """Sum over a token's choices of weight * expert(token), [T, hidden] fp32, in ascending expert
    order; ``expert`` computes one of the ``num_experts`` held here for the rows that chose it."""
    k = ids.shape[1]
    total = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
    local = ids.flatten() - first_expert
    local = torch.where((local >= 0) & (local < num_experts), local, num_experts)
    order = local.argsort(stable=True)
    tokens = order // k
    shares = weights.flatten()[order, None]
    end = 0
    for number, count in enumerate(torch.bincount(local, minlength=num_experts).tolist()):
        start, end = end, end + count
        if count == 0 or number == num_experts:
            continue
        rows = tokens[start:end]
        output = expert(number, hidden.index_select(0, rows))
        total.index_add_(0, rows, output * shares[start:end])
    return total


def gated_mlp(
    hidden: torch.Tensor, gate_up: Matrix, down: Matrix, activation: GatedActivation
) -> torch.Tensor:
    """down(activation(gate, up)) of ``hidden`` [T, hidden], of its shape and dtype."""
    return linear(activate(linear(hidden, gate_up), activation), down)
