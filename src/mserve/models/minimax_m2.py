"""MiniMax-M2 (M2, M2.1, M2.5, M2.7).

What is special: every layer attends to all of its context and routes to experts, with no shared
one; queries and keys are normed over their full projected width, across all heads and ranks;
norms round before they multiply.

Checkpoint names: ``model.layers.{i}.self_attn.{q,k,v,o}_proj``, ``.q_norm``, ``.k_norm``,
``model.layers.{i}.block_sparse_moe.{gate, e_score_correction_bias, experts.{e}.w1|w2|w3}``.
"""

from __future__ import annotations

from functools import partial

import torch

from mserve.checkpoint.spec import ModelSpec
from mserve.kernels import rope_angles, rope_frequencies
from mserve.layers import (
    Attention,
    Decoder,
    DecoderLayer,
    Embedding,
    FullWidthNorm,
    Head,
    RmsNorm,
    SparseMoe,
    head_share,
)
from mserve.parallel import Groups
from mserve.weights import Storage


def minimax_m2(
    spec: ModelSpec, groups: Groups, dtype: torch.dtype, device: torch.device
) -> Decoder:
    """This rank's share of an M2, parameters unset."""
    storage = Storage(spec.quantization, dtype, device)
    return Decoder(
        embedding=Embedding(spec.vocab_size, spec.hidden_size, groups.tensor, dtype, device),
        layers=tuple(_layer(number, spec, groups, storage) for number in range(len(spec.layers))),
        norm=RmsNorm(spec.hidden_size, spec.rms_norm_eps, dtype, device),
        head=Head(spec.vocab_size, spec.hidden_size, groups.tensor, dtype, device),
        angles=partial(
            rope_angles, frequencies=rope_frequencies(spec.rope_theta, spec.rotary_dim, device)
        ),
    )


def _layer(number: int, spec: ModelSpec, groups: Groups, storage: Storage) -> DecoderLayer:
    name, device = f"model.layers.{number}", storage.device
    share = head_share(spec.num_heads, spec.num_kv_heads, groups.tensor)
    qk_norm = FullWidthNorm(
        spec.num_heads,
        spec.num_kv_heads,
        spec.head_dim,
        spec.rms_norm_eps,
        share,
        groups.tensor,
        storage.dtype,
        device,
    )
    return DecoderLayer(
        name=name,
        attention_norm=RmsNorm(spec.hidden_size, spec.rms_norm_eps, storage.dtype, device),
        attention=Attention(f"{name}.self_attn", number, spec, share, qk_norm, None, storage),
        mlp_norm=RmsNorm(spec.hidden_size, spec.rms_norm_eps, storage.dtype, device),
        mlp=SparseMoe(f"{name}.block_sparse_moe", spec, groups, storage),
        group=groups.tensor,
    )
