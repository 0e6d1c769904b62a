"""Random models of transformers and their tensors under the published names: an independent
opinion for tests.

Knows transformers' names and config keys. Needs that dev extra; nothing that serves imports this.
"""

from __future__ import annotations

import itertools

import torch
from transformers import MiniMaxM2Config, MiniMaxM2ForCausalLM, PreTrainedModel
from transformers.models.minimax_m3_vl.configuration_minimax_m3_vl import MiniMaxM3VLTextConfig
from transformers.models.minimax_m3_vl.modeling_minimax_m3_vl import MiniMaxM3VLForCausalLM

from mserve.checkpoint.spec import ModelSpec
from mserve.testing.tiny_models import randomise


def transformers_model(spec: ModelSpec, seed: int) -> PreTrainedModel:
    """A random model of ``spec`` in fp32. ``init_blocks`` is ignored: transformers has no such
    thing."""
    shared = {
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.moe.intermediate_size,
        "num_hidden_layers": len(spec.layers),
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_kv_heads,
        "head_dim": spec.head_dim,
        "rms_norm_eps": spec.rms_norm_eps,
        "max_position_embeddings": spec.max_position_embeddings,
        "num_local_experts": spec.moe.num_experts,
        "num_experts_per_tok": spec.moe.experts_per_token,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": spec.rope_theta,
            "partial_rotary_factor": spec.rotary_dim / spec.head_dim,
        },
        "bos_token_id": None,
        "eos_token_id": 0,
    }
    if spec.family == "m2":
        model: PreTrainedModel = MiniMaxM2ForCausalLM(MiniMaxM2Config(**shared))
    else:
        assert spec.index is not None
        model = MiniMaxM3VLForCausalLM(
            MiniMaxM3VLTextConfig(
                **shared,
                dense_intermediate_size=spec.dense_intermediate_size,
                shared_intermediate_size=spec.moe.shared_intermediate_size,
                routed_scaling_factor=spec.moe.routed_scaling_factor,
                rotary_dim=spec.rotary_dim,
                swiglu_alpha=spec.activation.alpha,
                swiglu_limit=spec.activation.limit,
                mlp_layer_types=[
                    "sparse" if layer.mlp == "moe" else "dense" for layer in spec.layers
                ],
                layer_types=[
                    "minimax_m3_sparse" if layer.attention == "sparse" else "full_attention"
                    for layer in spec.layers
                ],
                index_n_heads=spec.index.num_heads,
                index_head_dim=spec.index.head_dim,
                index_topk_blocks=spec.index.topk_blocks,
                index_local_blocks=spec.index.local_blocks,
            )
        )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
            if "inv_freq" not in name:
                randomise(name, tensor, spec, generator)
    return model.eval()


def hub_tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The model's tensors under the published names, without ``language_model.``."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        name = name.replace(".indexer.", ".index_")
        if name.endswith("e_score_correction_bias"):
            layer = name.split(".mlp.")[0]
            tensors[f"{layer}.block_sparse_moe.e_score_correction_bias"] = tensor
        elif name.endswith("mlp.experts.gate_up_proj"):
            for expert, both in enumerate(tensor):
                source = f"{name.split('.mlp.')[0]}.block_sparse_moe.experts.{expert}"
                tensors[f"{source}.w1.weight"], tensors[f"{source}.w3.weight"] = both.chunk(2)
        elif name.endswith("mlp.experts.down_proj"):
            for expert, down in enumerate(tensor):
                source = f"{name.split('.mlp.')[0]}.block_sparse_moe.experts.{expert}"
                tensors[f"{source}.w2.weight"] = down
        elif name.endswith("gate_up_proj.weight"):
            name = name.replace(".mlp.shared_experts.", ".block_sparse_moe.shared_experts.")
            gate, up = tensor.chunk(2)
            tensors[name.replace("gate_up_proj", "gate_proj")] = gate
            tensors[name.replace("gate_up_proj", "up_proj")] = up
        else:
            name = name.replace(".mlp.gate.", ".block_sparse_moe.gate.")
            name = name.replace(".mlp.shared_experts.", ".block_sparse_moe.shared_experts.")
            tensors[name] = tensor
    return tensors
