"""config.json to ModelSpec: both spellings, what is refused, and how it is said."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mserve.checkpoint import (
    IndexSpec,
    LayerSpec,
    expected_tensors,
    kv_layout,
    parse_config,
    read_sampling_defaults,
    read_spec,
)
from mserve.core import CheckpointError

FILE = Path("somewhere/config.json")

M2 = {
    "architectures": ["MiniMaxM2ForCausalLM"],
    "attn_type_list": [1] * 62,
    "bos_token_id": 200034,
    "eos_token_id": 200020,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 3072,
    "intermediate_size": 1536,
    "max_position_embeddings": 196608,
    "model_type": "minimax_m2",
    "num_attention_heads": 48,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 62,
    "num_key_value_heads": 8,
    "num_local_experts": 256,
    "num_mtp_modules": 3,
    "qk_norm_type": "per_layer",
    "rms_norm_eps": 1e-06,
    "rope_theta": 5000000,
    "rotary_dim": 64,
    "scoring_func": "sigmoid",
    "shared_intermediate_size": 0,
    "tie_word_embeddings": False,
    "use_qk_norm": True,
    "use_routing_bias": True,
    "vocab_size": 200064,
}

_FREQ = [0] * 3 + [1] * 57
_M3_COMMON = {
    "bos_token_id": 200034,
    "dense_intermediate_size": 12288,
    "eos_token_id": 200020,
    "head_dim": 128,
    "hidden_size": 6144,
    "intermediate_size": 3072,
    "max_position_embeddings": 1048576,
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 60,
    "num_key_value_heads": 4,
    "num_local_experts": 128,
    "rms_norm_eps": 1e-06,
    "rotary_dim": 64,
    "routed_scaling_factor": 2.0,
    "shared_intermediate_size": 3072,
    "swiglu_alpha": 1.702,
    "swiglu_limit": 7.0,
    "vocab_size": 200064,
}
M3 = {
    "architectures": ["MiniMaxM3SparseForConditionalGeneration"],
    "model_type": "minimax_m3_vl",
    "tie_word_embeddings": False,
    "vision_config": {"hidden_size": 1280},
    "text_config": {
        **_M3_COMMON,
        "attention_output_gate": False,
        "hidden_act": "swigluoai",
        "moe_layer_freq": _FREQ,
        "n_shared_experts": 1,
        "partial_rotary_factor": 0.5,
        "qk_norm_type": "per_head",
        "rope_theta": 5000000,
        "sparse_attention_config": {
            "sparse_attention_freq": _FREQ,
            "sparse_block_size": 128,
            "sparse_disable_index_value": _FREQ,
            "sparse_index_dim": 128,
            "sparse_init_block": 0,
            "sparse_local_block": 1,
            "sparse_num_index_heads": 4,
            "sparse_score_type": "max",
            "sparse_topk_blocks": 16,
            "use_sparse_attention": True,
        },
        "use_gemma_norm": True,
    },
}
M3_FLAT = {
    "architectures": ["MiniMaxM3VLForCausalLM"],
    "model_type": "minimax_m3_vl_text",
    **_M3_COMMON,
    "hidden_act": "silu",
    "index_block_size": 128,
    "index_head_dim": 128,
    "index_local_blocks": 1,
    "index_n_heads": 4,
    "index_topk_blocks": 16,
    "layer_types": ["full_attention"] * 3 + ["minimax_m3_sparse"] * 57,
    "mlp_layer_types": ["dense"] * 3 + ["sparse"] * 57,
    "rope_parameters": {
        "partial_rotary_factor": 0.5,
        "rope_theta": 5000000.0,
        "rope_type": "default",
    },
}


def changed(config: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with one nested key set, or removed where ``value`` is ``...``."""
    config = copy.deepcopy(config)
    *parents, key = path.split(".")
    place = config
    for parent in parents:
        place = place[parent]
    if value is ...:
        del place[key]
    else:
        place[key] = value
    return config


def assert_short(error: CheckpointError, *named: str) -> None:
    lines = f"{error.message}\n{error.hint or ''}".strip().splitlines()
    assert len(lines) <= 5
    for name in named:
        assert name in error.message


def test_the_published_m3() -> None:
    spec = parse_config(FILE, M3)
    assert spec.family == "m3"
    assert spec.layers == (LayerSpec("full", "dense"),) * 3 + (LayerSpec("sparse", "moe"),) * 57
    assert spec.index == IndexSpec(
        num_heads=4, head_dim=128, topk_blocks=16, local_blocks=1, init_blocks=0
    )
    assert (spec.rotary_dim, spec.rope_theta) == (64, 5e6)
    assert spec.activation.beta == 1.0  # absent from the file
    assert spec.moe.routed_scaling_factor == 2.0
    assert spec.moe.shared_intermediate_size == 3072
    assert spec.eos_token_ids == (200020,)


def test_the_published_m2() -> None:
    spec = parse_config(FILE, M2)
    assert spec.family == "m2"
    assert spec.layers == (LayerSpec("full", "moe"),) * 62
    assert spec.index is None
    assert spec.moe.shared_intermediate_size == 0
    assert spec.moe.routed_scaling_factor == 1.0
    assert spec.qk_norm == "full_width"
    assert spec.num_mtp_layers == 3


@pytest.mark.parametrize(("config", "billions"), [(M3, 426.17), (M2, 228.69)])
def test_parameters_add_up_to_the_published_count(config: dict[str, Any], billions: float) -> None:
    total = 0
    for shape in expected_tensors(parse_config(FILE, config)).values():
        count = 1
        for size in shape:
            count *= size
        total += count
    assert total / 1e9 == pytest.approx(billions, abs=0.01)


@pytest.mark.parametrize(
    ("config", "ranks", "bytes_per_token"),
    [
        (M3, 1, 137_472),
        (M3, 2, 76_032),
        (M3, 4, 45_312),
        (M3, 8, 45_312),
        (M2, 1, 253_952),
        (M2, 4, 63_488),
        (M2, 8, 31_744),
    ],
)
def test_cache_bytes_per_token(config: dict[str, Any], ranks: int, bytes_per_token: int) -> None:
    layout = kv_layout(parse_config(FILE, config), ranks=ranks, dtype="bfloat16")
    assert layout.block_bytes == 128 * bytes_per_token


def test_all_spellings_of_m3_mean_the_same() -> None:
    nested = parse_config(FILE, M3)
    text_only = {"architectures": ["MiniMaxM3SparseForCausalLM"], **M3["text_config"]}
    assert parse_config(FILE, M3_FLAT) == nested
    assert parse_config(FILE, text_only) == nested
    resaved = {**M3, "text_config": M3_FLAT}
    assert parse_config(FILE, resaved) == nested


layer_flags = st.lists(st.booleans(), min_size=1, max_size=12)


@settings(deadline=None)
@given(attention=layer_flags, data=st.data())
def test_any_layer_pattern_survives_both_spellings(
    attention: list[bool], data: st.DataObject
) -> None:
    size = len(attention)
    moe = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
    index = {
        "topk": data.draw(st.integers(4, 40)),
        "local": data.draw(st.integers(0, 2)),
        "init": data.draw(st.integers(0, 2)),
    }
    nested = copy.deepcopy(M3["text_config"])
    nested |= {"num_hidden_layers": size, "moe_layer_freq": [int(flag) for flag in moe]}
    nested["sparse_attention_config"] |= {
        "sparse_attention_freq": [int(flag) for flag in attention],
        "sparse_disable_index_value": [int(flag) for flag in attention],
        "sparse_topk_blocks": index["topk"],
        "sparse_local_block": index["local"],
        "sparse_init_block": index["init"],
    }
    flat = M3_FLAT | {
        "num_hidden_layers": size,
        "layer_types": ["minimax_m3_sparse" if f else "full_attention" for f in attention],
        "mlp_layer_types": ["sparse" if flag else "dense" for flag in moe],
        "index_topk_blocks": index["topk"],
        "index_local_blocks": index["local"],
        "index_init_blocks": index["init"],
    }
    spec = parse_config(FILE, {**M3, "text_config": nested})
    assert spec == parse_config(FILE, flat)
    assert [layer.attention == "sparse" for layer in spec.layers] == attention
    assert [layer.mlp == "moe" for layer in spec.layers] == moe
    assert (spec.index is not None) == any(attention)
    if spec.index is not None:
        assert spec.index.topk_blocks == index["topk"]
        assert spec.index.init_blocks == index["init"]


SPARSE = "text_config.sparse_attention_config."


@pytest.mark.parametrize(
    ("config", "path", "value"),
    [
        (M2, "architectures", ["LlamaForCausalLM"]),
        (M2, "attn_type_list", [1] * 61 + [0]),
        (M2, "attn_type_list", [1]),
        (M2, "hidden_act", "gelu"),
        (M2, "hidden_size", "3072"),
        (M2, "hidden_size", True),
        (M2, "num_hidden_layers", 0),
        (M2, "num_key_value_heads", 7),
        (M2, "num_experts_per_tok", 257),
        (M2, "qk_norm_type", "per_head"),
        (M2, "quantization_config", {"quant_method": "fp8"}),
        (M2, "rms_norm_eps", 0),
        (M2, "rope_scaling", {"rope_type": "yarn", "factor": 2.0}),
        (M2, "rotary_dim", 63),
        (M2, "rotary_dim", 256),
        (M2, "scoring_func", "softmax"),
        (M2, "shared_intermediate_size", 1536),
        (M2, "tie_word_embeddings", True),
        (M2, "use_qk_norm", False),
        (M2, "use_routing_bias", False),
        (M2, "eos_token_id", "end"),
        (M2, "eos_token_id", [5, 200064]),
        (M3, "text_config.bos_token_id", -1),
        (M2, "dtype", "float16"),
        (M3, "text_config.attention_output_gate", True),
        (M3, "text_config.hidden_act", "gelu"),
        (M3, "text_config.n_shared_experts", 2),
        (M3, "text_config.partial_rotary_factor", 0.25),
        (M3, "text_config.qk_norm_type", "per_layer"),
        (M3, "text_config.quantization_config", {"quant_method": "mxfp8"}),
        (M3, "text_config.use_gemma_norm", False),
        (M3, "text_config.moe_layer_freq", [1]),
        (M3, "tie_word_embeddings", True),
        (M3, "text_config", []),
        (M3, SPARSE + "sparse_attention_freq", "all"),
        (M3, SPARSE + "sparse_block_size", 64),
        (M3, SPARSE + "sparse_disable_index_value", [0] * 60),
        (M3, SPARSE + "sparse_index_dim", 32),
        (M3, SPARSE + "sparse_num_index_heads", 8),
        (M3, SPARSE + "sparse_score_type", "mean"),
        (M3, SPARSE + "sparse_topk_blocks", 0),
        (M3, SPARSE + "sparse_topk_blocks", 0.5),
        (M3, SPARSE + "sparse_init_block", 16),
        (M3, SPARSE + "use_sparse_attention", False),
        (M3_FLAT, "layer_types", ["sliding_attention"] * 60),
        (M3_FLAT, "mlp_layer_types", ["dense"] * 59),
        (M3_FLAT, "index_block_size", 256),
        (M3_FLAT, "rope_parameters.rope_type", "yarn"),
        (M3_FLAT, "rope_parameters.partial_rotary_factor", 1.0),
    ],
)
def test_a_value_we_cannot_honour_is_refused(config: dict[str, Any], path: str, value: Any) -> None:
    parse_config(FILE, config)
    with pytest.raises(CheckpointError) as caught:
        parse_config(FILE, changed(config, path, value))
    key = {"sparse_index_dim": "rotary_dim", "sparse_num_index_heads": "num_key_value_heads"}
    key |= {"partial_rotary_factor": "rotary_dim", "sparse_init_block": "sparse_topk_blocks"}
    name = path.rsplit(".", 1)[-1]
    assert_short(caught.value, str(FILE), key.get(name, name))


@pytest.mark.parametrize(
    ("config", "path"),
    [
        (M2, "vocab_size"),
        (M2, "num_hidden_layers"),
        (M2, "max_position_embeddings"),
        (M2, "rope_theta"),
        (M3, "text_config.dense_intermediate_size"),
        (M3, "text_config.rms_norm_eps"),
        (M3, SPARSE + "sparse_attention_freq"),
        (M3_FLAT, "layer_types"),
        (M3_FLAT, "mlp_layer_types"),
        (M3_FLAT, "index_topk_blocks"),
        (M3_FLAT, "index_n_heads"),
    ],
)
def test_a_missing_key_is_named(config: dict[str, Any], path: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        parse_config(FILE, changed(config, path, ...))
    assert_short(caught.value, str(FILE), path.rsplit(".", 1)[-1], "missing")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("layer_types", ["full_attention"] * 60),
        ("mlp_layer_types", ["sparse"] * 60),
        ("index_topk_blocks", 8),
        ("index_local_blocks", 2),
        ("rope_parameters", {"rope_theta": 1e4, "rope_type": "default"}),
    ],
)
def test_spellings_that_disagree_are_refused(key: str, value: Any) -> None:
    with pytest.raises(CheckpointError):
        parse_config(FILE, changed(M3, f"text_config.{key}", value))


def test_an_architecture_may_be_known_by_model_type() -> None:
    assert parse_config(FILE, changed(M2, "architectures", ...)).family == "m2"
    with pytest.raises(CheckpointError) as caught:
        parse_config(FILE, {"model_type": "llama"})
    assert_short(caught.value, "model_type", '"llama"', "minimax_m2")


def test_generation_config_gives_sampling_and_end_of_sequence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(M2))
    assert read_spec(tmp_path).eos_token_ids == (200020,)
    assert read_sampling_defaults(tmp_path).temperature == 1.0
    generation = {"eos_token_id": [7, 9], "temperature": 0.6, "top_p": 0.95, "top_k": 40}
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert read_spec(tmp_path).eos_token_ids == (7, 9)
    sampling = read_sampling_defaults(tmp_path)
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.6, 0.95, 40)


@pytest.mark.parametrize("content", ['{"temperature": -1}', '{"top_p": 7}', "[1]", "{", '"\xff"'])
def test_a_senseless_generation_config_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "generation_config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError) as caught:
        read_sampling_defaults(tmp_path)
    assert_short(caught.value, "generation_config.json")
