"""config.json of a toy in the published spelling: flat for M2, nested for M3.

Knows keys; what they mean is read back by ``mserve.checkpoint``, so the two cannot drift apart.
"""

from __future__ import annotations

from typing import Any

from mserve.core import BLOCK_TOKENS
from mserve.toy.shape import NUM_SPECIAL_TOKENS, Arch, ToyShape

_ROPE_THETA = 5_000_000
_RMS_NORM_EPS = 1e-6

# Ids count from the first special token; the published vocabulary has it at 200,000.
_EOS_OFFSET = 20
_IMAGE_OFFSET = 25
_VIDEO_OFFSET = 26
_BOS_OFFSET = 34

VISION: dict[str, Any] = {
    "model_type": "minimax_m3_vl_vision",
    "hidden_act": "gelu",
    "hidden_size": 64,
    "image_size": 56,
    "img_token_compression_config": {
        "image_token_compression_method": "patch_merge",
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
    "intermediate_size": 128,
    "layer_norm_eps": 1e-5,
    "num_attention_heads": 2,
    "num_channels": 3,
    "num_hidden_layers": 1,
    "patch_size": 14,
    "rope_theta": 10000.0,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
"""A vision tower of one small layer, so that an M3 toy is the whole published architecture."""


def config_json(arch: Arch, shape: ToyShape) -> dict[str, Any]:
    """The content of config.json."""
    return _m2(shape) if arch == "m2" else _m3(shape)


def generation_json(shape: ToyShape) -> dict[str, Any]:
    """The content of generation_config.json: the family's recommended sampling."""
    return {
        **_bos_eos(shape),
        "do_sample": True,
        "temperature": 1.0,
        "top_p": 0.95,
        "top_k": 40,
    }


def _m2(shape: ToyShape) -> dict[str, Any]:
    return {
        "architectures": ["MiniMaxM2ForCausalLM"],
        "model_type": "minimax_m2",
        **_common(shape),
        "attn_type_list": [1] * shape.num_layers,
        "hidden_act": "silu",
        "qk_norm_type": "per_layer",
        "shared_intermediate_size": 0,
    }


def _m3(shape: ToyShape) -> dict[str, Any]:
    special = _first_special(shape)
    return {
        "architectures": ["MiniMaxM3SparseForConditionalGeneration"],
        "model_type": "minimax_m3_vl",
        **_bos_eos(shape),
        "dtype": shape.dtype,
        "image_seq_length": 4,
        "image_token_index": special + _IMAGE_OFFSET,
        "video_token_index": special + _VIDEO_OFFSET,
        "projector_hidden_size": shape.hidden_size,
        "tie_word_embeddings": False,
        "text_config": _m3_text(shape),
        "vision_config": VISION,
    }


def _m3_text(shape: ToyShape) -> dict[str, Any]:
    num_dense = min(shape.num_dense_layers, shape.num_layers)
    sparse = [0] * num_dense + [1] * (shape.num_layers - num_dense)
    return {
        "architectures": ["MiniMaxM3SparseForCausalLM"],
        "model_type": "minimax_m3_vl_text",
        **_common(shape),
        "attention_output_gate": False,
        "dense_intermediate_size": shape.dense_intermediate_size,
        "hidden_act": "swigluoai",
        "moe_layer_freq": sparse,
        "n_shared_experts": 1,
        "num_mtp_modules": 0,
        "partial_rotary_factor": 0.5,
        "qk_norm_type": "per_head",
        "routed_scaling_factor": 2.0,
        "shared_intermediate_size": shape.intermediate_size,
        "sparse_attention_config": {
            "sparse_attention_freq": sparse,
            "sparse_block_size": BLOCK_TOKENS,
            "sparse_disable_index_value": sparse,
            "sparse_index_dim": shape.index_head_dim,
            "sparse_init_block": shape.init_blocks,
            "sparse_local_block": shape.local_blocks,
            "sparse_num_index_heads": shape.num_kv_heads,
            "sparse_score_type": "max",
            "sparse_topk_blocks": shape.topk_blocks,
            "use_sparse_attention": True,
        },
        "swiglu_alpha": 1.702,
        "swiglu_limit": 7.0,
        "use_gemma_norm": True,
    }


def _common(shape: ToyShape) -> dict[str, Any]:
    return {
        **_bos_eos(shape),
        "dtype": shape.dtype,
        "head_dim": shape.head_dim,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": shape.max_position_embeddings,
        "num_attention_heads": shape.num_heads,
        "num_experts_per_tok": shape.experts_per_token,
        "num_hidden_layers": shape.num_layers,
        "num_key_value_heads": shape.num_kv_heads,
        "num_local_experts": shape.num_experts,
        "rms_norm_eps": _RMS_NORM_EPS,
        "rope_theta": _ROPE_THETA,
        "rotary_dim": shape.head_dim // 2,
        "scoring_func": "sigmoid",
        "tie_word_embeddings": False,
        "use_cache": True,
        "use_qk_norm": True,
        "use_routing_bias": True,
        "vocab_size": shape.vocab_size,
    }


def _bos_eos(shape: ToyShape) -> dict[str, int]:
    special = _first_special(shape)
    return {"bos_token_id": special + _BOS_OFFSET, "eos_token_id": special + _EOS_OFFSET}


def _first_special(shape: ToyShape) -> int:
    return shape.vocab_size - NUM_SPECIAL_TOKENS
