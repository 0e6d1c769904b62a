"""MiniMax-M3, the text model.

What is special: most layers are block-sparse (MSA): an index branch chooses, per KV group, the
few blocks of 128 tokens that the main branch reads; queries and keys are normed per head; norm
weights are centred on zero; a few first layers have a dense MLP, the others routed experts beside
a shared one. Which layer is which is data.

Checkpoint names, after ``language_model.``: as M2, with ``self_attn.index_{q,k}_{proj,norm}`` on
sparse layers, ``mlp.{gate,up,down}_proj`` on dense ones, ``block_sparse_moe.shared_experts``.
"""

from __future__ import annotations

from functools import partial

import torch

from mserve.checkpoint.spec import ModelSpec
from mserve.kernels import rope_angles
from mserve.layers import (
    Attention,
    BlockIndex,
    Decoder,
    DecoderLayer,
    Embedding,
    GatedMlp,
    GemmaRmsNorm,
    Head,
    PerHeadNorm,
    SparseMoe,
    gated_activation,
    head_share,
)
from mserve.parallel import Groups


def minimax_m3(
    spec: ModelSpec, groups: Groups, dtype: torch.dtype, device: torch.device
) -> Decoder:
    """This rank's share of an M3, parameters unset."""
    return Decoder(
        embedding=Embedding(spec.vocab_size, spec.hidden_size, groups.tensor, dtype, device),
        layers=tuple(
            _layer(number, spec, groups, dtype, device) for number in range(len(spec.layers))
        ),
        norm=GemmaRmsNorm(spec.hidden_size, spec.rms_norm_eps, device),
        head=Head(spec.vocab_size, spec.hidden_size, groups.tensor, dtype, device),
        angles=partial(rope_angles, theta=spec.rope_theta, rotary_dim=spec.rotary_dim),
    )


def _layer(
    number: int, spec: ModelSpec, groups: Groups, dtype: torch.dtype, device: torch.device
) -> DecoderLayer:
    sparse_mlp = spec.layers[number].mlp == "moe"
    return DecoderLayer(
        attention_norm=GemmaRmsNorm(spec.hidden_size, spec.rms_norm_eps, device),
        attention=_attention(number, spec, groups, dtype, device),
        mlp_norm=GemmaRmsNorm(spec.hidden_size, spec.rms_norm_eps, device),
        mlp=(
            SparseMoe(spec, groups, dtype, device)
            if sparse_mlp
            else _dense_mlp(spec, groups, dtype, device)
        ),
        mlp_name="block_sparse_moe" if sparse_mlp else "mlp",
        group=groups.tensor,
    )


def _attention(
    number: int, spec: ModelSpec, groups: Groups, dtype: torch.dtype, device: torch.device
) -> Attention:
    share = head_share(spec.num_heads, spec.num_kv_heads, groups.tensor)
    qk_norm = PerHeadNorm(
        share.num_heads, share.num_kv_heads, spec.head_dim, spec.rms_norm_eps, device
    )
    index = None
    if spec.layers[number].attention == "sparse":
        assert spec.index is not None
        index = BlockIndex(spec.index, share, spec.rms_norm_eps, device)
    return Attention(number, spec, share, qk_norm, index, dtype, device)


def _dense_mlp(
    spec: ModelSpec, groups: Groups, dtype: torch.dtype, device: torch.device
) -> GatedMlp:
    return GatedMlp(
        spec.hidden_size,
        spec.dense_intermediate_size,
        gated_activation(spec.activation),
        groups.tensor,
        dtype,
        device,
    )
