"""Feed-forward halves: a gated MLP, and routed experts with an optional shared one.

Each returns this rank's part of a sum over ranks, so a layer half costs one all-reduce whatever
is inside. Legend: T tokens, E experts on this rank, I their width on this rank.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from mserve.checkpoint.spec import ActivationSpec, ModelSpec
from mserve.kernels import GatedActivation, route
from mserve.layers.shard import EVERY, even_share
from mserve.parallel import Group, Groups, SoloGroup
from mserve.weights import Part, Piece, Storage, gated_mlp, run_experts


def gated_activation(spec: ActivationSpec) -> GatedActivation:
    return GatedActivation(spec.kind, spec.alpha, spec.limit, spec.beta)


class GatedMlp:
    """down(activation(gate, up)), its width split over ``group``. ``name`` is the checkpoint's."""

    def __init__(
        self,
        name: str,
        hidden_size: int,
        intermediate_size: int,
        activation: GatedActivation,
        group: Group,
        storage: Storage,
    ) -> None:
        self.activation = activation
        hidden = slice(0, hidden_size)
        width = even_share(intermediate_size, group, "intermediate size")
        self.gate_up = storage.matrix(
            Part(f"{name}.gate_proj.weight", width, hidden),
            Part(f"{name}.up_proj.weight", width, hidden),
        )
        self.down = storage.matrix(Part(f"{name}.down_proj.weight", hidden, width))

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """[T, hidden] to [T, hidden], partial."""
        return gated_mlp(hidden, self.gate_up, self.down, self.activation)

    def pieces(self) -> Iterator[Piece]:
        yield from self.gate_up.pieces()
        yield from self.down.pieces()


class SparseMoe:
    """Routed experts, split by id over ``groups.expert`` or by width over ``groups.tensor``.

    The router is on every rank, so all ranks agree on the choice without a message. ``name`` is
    the checkpoint's.
    """

    def __init__(self, name: str, spec: ModelSpec, groups: Groups, storage: Storage) -> None:
        moe, device = spec.moe, storage.device
        self.name = name
        self.activation = gated_activation(spec.activation)
        self.experts_per_token = moe.experts_per_token
        self.scale = moe.routed_scaling_factor
        self.gate = torch.empty(
            (moe.num_experts, spec.hidden_size), dtype=torch.float32, device=device
        )
        self.bias = torch.empty(moe.num_experts, dtype=torch.float32, device=device)

        hidden = slice(0, spec.hidden_size)
        by_id = groups.expert.size > 1
        ids = even_share(moe.num_experts, groups.expert, "num_local_experts")
        width = even_share(
            moe.intermediate_size, SoloGroup() if by_id else groups.tensor, "intermediate_size"
        )
        self.first_expert = ids.start
        experts = [f"{name}.experts.{number}" for number in range(ids.start, ids.stop)]
        self.gate_up = storage.stack(
            [
                [Part(f"{expert}.{half}.weight", width, hidden) for half in ("w1", "w3")]
                for expert in experts
            ]
        )
        self.down = storage.stack([[Part(f"{e}.w2.weight", hidden, width)] for e in experts])
        self.shared = None
        if moe.shared_intermediate_size:
            self.shared = GatedMlp(
                f"{name}.shared_experts",
                spec.hidden_size,
                moe.shared_intermediate_size,
                self.activation,
                groups.tensor,
                storage,
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
            self.first_expert,
            None if self.shared is None else (self.shared.gate_up, self.shared.down),
        )

    def pieces(self) -> Iterator[Piece]:
        yield Piece(self.gate, f"{self.name}.gate.weight", (EVERY, EVERY))
        yield Piece(self.bias, f"{self.name}.e_score_correction_bias", (EVERY,))
        yield from self.gate_up.pieces()
        yield from self.down.pieces()
        if self.shared is not None:
            yield from self.shared.pieces()
