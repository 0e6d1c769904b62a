"""The gated MLPs of a layer over weights of any storage: which kernel takes them.

Where all matrices are stored alike, in a form that the fused kernel takes, it is that. A shared
expert stored otherwise than the routed ones is a call of its own; where the routed ones differ
among themselves, each is, by the same routing. Knows storages; does not know layers.
"""

from __future__ import annotations

import torch

from mserve import kernels
from mserve.kernels import GatedActivation, Matrix
from mserve.weights.fp8_block import Fp8BlockWeight
from mserve.weights.int8 import Int8Weight
from mserve.weights.int8_static import Int8StaticWeight
from mserve.weights.mxfp8 import Mxfp8Weight
from mserve.weights.plain import PlainWeight
from mserve.weights.weight import Weight, forms

GatedPair = tuple[Weight, Weight]
"""gate_up [2I, hidden] and down [hidden, I]."""


def run_experts(
    hidden: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    gate_up: Weight,
    down: Weight,
    activation: GatedActivation,
    first_expert: int,
    shared: GatedPair | None,
) -> torch.Tensor:
    """As ``kernels.run_experts``, of the dtype of ``hidden``: stacks ``gate_up`` [E, 2I, hidden]
    and ``down`` [E, hidden, I], and the pair of the shared expert if there is one."""
    if alike := _stored_alike((gate_up, down, *(shared or ()))):
        pair = (alike[2], alike[3]) if shared else None
        return kernels.run_experts(
            hidden, ids, weights, alike[0], alike[1],
            activation, first_expert, pair, hidden.dtype,
        )  # fmt: skip
    total = _run_routed(hidden, ids, weights, gate_up, down, activation, first_expert)
    if shared is not None:
        total += gated_mlp(hidden, *shared, activation)
    return total.to(hidden.dtype)


def _run_routed(
    hidden: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    gate_up: Weight,
    down: Weight,
    activation: GatedActivation,
    first_expert: int,
) -> torch.Tensor:
    """The sum without a shared expert, fp32."""
    if alike := _stored_alike((gate_up, down)):
        return kernels.run_experts(hidden, ids, weights, *alike, activation, first_expert)

    def expert(number: int, rows: torch.Tensor) -> torch.Tensor:
        return gated_mlp(rows, gate_up[number], down[number], activation)

    return kernels.sum_experts(hidden, ids, weights, gate_up.shape[0], expert, first_expert)


def gated_mlp(
    hidden: torch.Tensor, gate_up: Weight, down: Weight, activation: GatedActivation
) -> torch.Tensor:
    """down(activation(gate, up)) of ``hidden`` [T, hidden], of its shape and dtype."""
    if alike := _stored_alike((gate_up, down)):
        return kernels.gated_mlp(hidden, *alike, activation)
    return down.linear(kernels.activate(gate_up.linear(hidden), activation))


def first_experts(
    gate_up: Weight, down: Weight
) -> dict[tuple[frozenset[type], frozenset[type]], int]:
    """The forms that experts have, and of each the number of the first expert that has it."""
    first: dict[tuple[frozenset[type], frozenset[type]], int] = {}
    alike = len(forms(gate_up)) == len(forms(down)) == 1
    for number in range(1 if alike else gate_up.shape[0]):
        first.setdefault((forms(gate_up[number]), forms(down[number])), number)
    return first


def _stored_alike(matrices: tuple[Weight, ...]) -> list[Matrix]:
    """What the kernels take of these weights; nothing unless one kernel takes all."""
    for form in (PlainWeight, Mxfp8Weight, Fp8BlockWeight, Int8Weight, Int8StaticWeight):
        alike = [weight.matrix for weight in matrices if isinstance(weight, form)]
        if len(alike) == len(matrices):
            return alike
    return []
