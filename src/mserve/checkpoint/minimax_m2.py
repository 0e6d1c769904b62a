"""MiniMax-M2, M2.1, M2.5 and M2.7: the keys of config.json and what they mean.

Every layer is full attention and mixture of experts, QK-norm runs over the whole projected width,
norms are plain RMSNorm. One spelling of the keys, apart from rope (``rope.py``).
"""

from __future__ import annotations

from mserve.checkpoint.keys import Keys
from mserve.checkpoint.rope import read_rope
from mserve.checkpoint.shared_keys import (
    check_shared_keys,
    read_dtype,
    read_heads,
    read_num_experts,
)
from mserve.checkpoint.spec import ActivationSpec, LayerSpec, ModelSpec, MoeSpec


def read_minimax_m2(config: Keys) -> ModelSpec:
    """The spec of an M2; ``CheckpointError`` for a key we cannot honour."""
    num_layers = config.integer("num_hidden_layers")
    check_shared_keys(config)
    config.expect("hidden_act", "silu")
    config.expect("qk_norm_type", "per_layer")
    config.expect("shared_intermediate_size", 0)
    config.expect_all("attn_type_list", 1, num_layers)
    heads = read_heads(config)
    rope = read_rope(config, heads.head_dim)
    num_experts, experts_per_token = read_num_experts(config)
    vocab_size = config.integer("vocab_size")
    bos = config.token_ids("bos_token_id", vocab_size)
    return ModelSpec(
        family="m2",
        vocab_size=vocab_size,
        hidden_size=config.integer("hidden_size"),
        num_heads=heads.num_heads,
        num_kv_heads=heads.num_kv_heads,
        head_dim=heads.head_dim,
        rotary_dim=rope.rotary_dim,
        rope_theta=rope.theta,
        rms_norm_eps=config.number("rms_norm_eps"),
        max_position_embeddings=config.integer("max_position_embeddings"),
        qk_norm="full_width",
        activation=ActivationSpec(kind="silu"),
        layers=(LayerSpec("full", "moe"),) * num_layers,
        dense_intermediate_size=0,
        moe=MoeSpec(
            num_experts=num_experts,
            experts_per_token=experts_per_token,
            intermediate_size=config.integer("intermediate_size"),
            shared_intermediate_size=0,
            routed_scaling_factor=1.0,
        ),
        index=None,
        dtype=read_dtype(config),
        bos_token_id=bos[0] if bos else None,
        eos_token_ids=config.token_ids("eos_token_id", vocab_size),
        num_mtp_layers=config.integer("num_mtp_modules", 0, at_least=0),
    )
