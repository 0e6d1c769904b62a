"""Feed-forward halves: a gated MLP, and routed experts with an optional shared one.

Each returns this rank's part of a sum over ranks, so a layer half costs one all-reduce whatever
is inside. Legend: T tokens, E experts on this rank, I their width on this rank.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from mserve.checkpoint.spec import ActivationSpec, ModelSpec
from mserve.kernels import GatedActivation, gated_mlp, route, run_experts
from mserve.layers.shard import EVERY, even_share
from mserve.parallel import Group, Groups, SoloGroup
from mserve.weights import Piece


def gated_activation(spec: ActivationSpec) -> GatedActivation:
    return GatedActivation(spec.kind, spec.alpha, spec.limit, spec.beta)


class GatedMlp:
    """down(activation(gate, up)), its width split over ``group``."""

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        activation: GatedActivation,
        group: Group,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.activation = activation
        self.columns = even_share(intermediate_size, group, "intermediate size")
        self.width = self.columns.stop - self.columns.start
        self.gate_up = torch.empty((2 * self.width, hidden_size), dtype=dtype, device=device)
        self.down = torch.empty((hidden_size, self.width), dtype=dtype, device=device)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """[T, hidden] to [T, hidden], partial."""
        return gated_mlp(hidden, self.gate_up, self.down, self.activation)

    def pieces(self, name: str) -> Iterator[Piece]:
        rows = (self.columns, EVERY)
        yield Piece(self.gate_up[: self.width], f"{name}.gate_proj.weight", rows)
        yield Piece(self.gate_up[self.width :], f"{name}.up_proj.weight", rows)
        yield Piece(self.down, f"{name}.down_proj.weight", (EVERY, self.columns))


class SparseMoe:
    """Routed experts, split by id over ``groups.expert`` or by width over ``groups.tensor``.

    The router is on every rank, so all ranks agree on the choice without a message.
    """

    def __init__(
        self, spec: ModelSpec, groups: Groups, dtype: torch.dtype, device: torch.device
    ) -> None:
        moe = spec.moe
        self.activation = gated_activation(spec.activation)
        self.experts_per_token = moe.experts_per_token
        self.scale = moe.routed_scaling_factor
        self.gate = torch.empty(
            (moe.num_experts, spec.hidden_size), dtype=torch.float32, device=device
        )
        self.bias = torch.empty(moe.num_experts, dtype=torch.float32, device=device)

        by_id = groups.expert.size > 1
        self.experts = even_share(moe.num_experts, groups.expert, "num_local_experts")
        self.columns = even_share(
            moe.intermediate_size, SoloGroup() if by_id else groups.tensor, "intermediate_size"
        )
        count = self.experts.stop - self.experts.start
        self.width = self.columns.stop - self.columns.start
        self.gate_up = torch.empty(
            (count, 2 * self.width, spec.hidden_size), dtype=dtype, device=device
        )
        self.down = torch.empty((count, spec.hidden_size, self.width), dtype=dtype, device=device)
        self.shared = None
        if moe.shared_intermediate_size:
            self.shared = GatedMlp(
                spec.hidden_size,
                moe.shared_intermediate_size,
                self.activation,
                groups.tensor,
                dtype,
                device,
            )

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """[T, hidden] to [T, hidden], partial; summed in fp32, rounded once."""
        ids, weights = route(hidden, self.gate, self.bias, self.experts_per_token, self.scale)
        return run_experts(
            hidden,
            ids,
            weights,
            self.gate_up,
            self.down,
            self.activation,
            self.experts.start,
            None if self.shared is None else (self.shared.gate_up, self.shared.down),
            hidden.dtype,
        )

    def pieces(self, name: str) -> Iterator[Piece]:
        yield Piece(self.gate, f"{name}.gate.weight", (EVERY, EVERY))
        yield Piece(self.bias, f"{name}.e_score_correction_bias", (EVERY,))
        rows, columns = (self.columns, EVERY), (EVERY, self.columns)
        for place, expert in enumerate(range(self.experts.start, self.experts.stop)):
            source = f"{name}.experts.{expert}"
            yield Piece(self.gate_up[place, : self.width], f"{source}.w1.weight", rows)
            yield Piece(self.gate_up[place, self.width :], f"{source}.w3.weight", rows)
            yield Piece(self.down[place], f"{source}.w2.weight", columns)
        if self.shared is not None:
            yield from self.shared.pieces(f"{name}.shared_experts")
