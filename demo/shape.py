"""The sizes of the demo model.

Few enough parameters to learn on two processor cores within hours, few enough chosen blocks that a
context over a thousand tokens drops some. Knows numbers; does not know tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

BLOCK_TOKENS = 128


@dataclass(frozen=True, slots=True)
class DemoShape:
    """An M3, small. The first ``num_dense_layers`` have full attention and a dense MLP."""

    vocab_size: int
    hidden_size: int = 192
    num_layers: int = 6
    num_dense_layers: int = 1
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    rotary_dim: int = 32
    rope_theta: float = 50_000.0
    num_experts: int = 8
    experts_per_token: int = 2
    expert_size: int = 96
    shared_size: int = 192
    dense_size: int = 512
    routed_scaling_factor: float = 2.0
    index_head_dim: int = 64
    topk_blocks: int = 8
    max_position_embeddings: int = 32_768
    rms_norm_eps: float = 1e-6
    swiglu_alpha: float = 1.702
    swiglu_limit: float = 7.0

    def is_sparse(self, layer: int) -> bool:
        """Whether layer ``layer`` selects blocks and routes to experts."""
        return layer >= self.num_dense_layers
