"""Writes a trained model as a checkpoint in the published layout.

    python -m demo.export RUN OUT

RUN is a folder that ``demo.train`` wrote. OUT gets config.json with a nested text model, hub names
under ``language_model.``, the tokenizer, the chat template and generation settings: what any loader
of MiniMax-M3 reads. There is no vision tower: the demo has seen text only, so its architecture is
the text-only one of the family. Matrices are bf16; router and correction bias stay fp32.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from demo.data.render import TOKENIZER_FILES
from demo.model import DemoModel
from demo.shape import BLOCK_TOKENS, DemoShape
from mserve.checkpoint import NewTensor, write_shards

_MAX_SHARD_BYTES = 1 << 30
_BYTES = {torch.bfloat16: "bfloat16", torch.float32: "float32"}


def export(model: DemoModel, out: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write ``model`` to the folder ``out``, config.json last: a folder with one is whole."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = [_new_tensor(name, value, dtype) for name, value in hub_tensors(model)]
    write_shards(out, tensors, _MAX_SHARD_BYTES, lambda done, total: None)
    for name in ("tokenizer.json", "chat_template.jinja"):
        (out / name).write_bytes((TOKENIZER_FILES / name).read_bytes())
    ids = special_ids()
    _write(out / "tokenizer_config.json", _tokenizer_config(model.shape))
    _write(out / "generation_config.json", _generation_config(ids))
    _write(out / "config.json", config(model.shape, ids, _BYTES[dtype]))


def hub_tensors(model: DemoModel) -> Iterator[tuple[str, Tensor]]:
    """Every tensor under its published name."""
    for name, value in model.state_dict().items():
        head, _, rest = name.partition(".")
        if head != "layers":
            yield f"language_model.{_OUTSIDE[name]}.weight", value
            continue
        number, _, rest = rest.partition(".")
        layer = f"language_model.model.layers.{number}"
        moe = model.shape.is_sparse(int(number))
        if moe and rest in _EXPERTS:
            for expert, matrix in enumerate(value):
                yield f"{layer}.block_sparse_moe.experts.{expert}.{_EXPERTS[rest]}.weight", matrix
        elif rest == "mlp.bias":
            yield f"{layer}.block_sparse_moe.e_score_correction_bias", value
        else:
            yield f"{layer}.{(_MOE if moe else {}).get(rest) or _INSIDE[rest]}.weight", value


_OUTSIDE = {"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
_INSIDE = {
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    **{f"attention.{part}": f"self_attn.{part}_proj" for part in "qkvo"},
    **{f"attention.{part}_norm": f"self_attn.{part}_norm" for part in "qk"},
    **{f"attention.index.{part}": f"self_attn.index_{part}_proj" for part in "qk"},
    **{f"attention.index.{part}_norm": f"self_attn.index_{part}_norm" for part in "qk"},
    **{f"mlp.{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")},
}
_EXPERTS = {"mlp.gate": "w1", "mlp.up": "w3", "mlp.down": "w2"}
_MOE = {
    "mlp.router": "block_sparse_moe.gate",
    **{
        f"mlp.shared_{part}": f"block_sparse_moe.shared_experts.{part}_proj"
        for part in ("gate", "up", "down")
    },
}


def config(shape: DemoShape, ids: dict[str, int], dtype: str) -> dict[str, Any]:
    """The content of config.json."""
    return {
        "architectures": ["MiniMaxM3SparseForConditionalGeneration"],
        "model_type": "minimax_m3_vl",
        **ids,
        "dtype": dtype,
        "tie_word_embeddings": False,
        "text_config": _text_config(shape, ids, dtype),
    }


def _text_config(shape: DemoShape, ids: dict[str, int], dtype: str) -> dict[str, Any]:
    sparse = [int(shape.is_sparse(number)) for number in range(shape.num_layers)]
    return {
        "architectures": ["MiniMaxM3SparseForCausalLM"],
        "model_type": "minimax_m3_vl_text",
        **ids,
        "attention_output_gate": False,
        "dense_intermediate_size": shape.dense_size,
        "dtype": dtype,
        "head_dim": shape.head_dim,
        "hidden_act": "swigluoai",
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.expert_size,
        "max_position_embeddings": shape.max_position_embeddings,
        "moe_layer_freq": sparse,
        "n_shared_experts": 1,
        "num_attention_heads": shape.num_heads,
        "num_experts_per_tok": shape.experts_per_token,
        "num_hidden_layers": shape.num_layers,
        "num_key_value_heads": shape.num_kv_heads,
        "num_local_experts": shape.num_experts,
        "num_mtp_modules": 0,
        "partial_rotary_factor": shape.rotary_dim / shape.head_dim,
        "qk_norm_type": "per_head",
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_theta": shape.rope_theta,
        "rotary_dim": shape.rotary_dim,
        "routed_scaling_factor": shape.routed_scaling_factor,
        "scoring_func": "sigmoid",
        "shared_intermediate_size": shape.shared_size,
        "sparse_attention_config": {
            "sparse_attention_freq": sparse,
            "sparse_block_size": BLOCK_TOKENS,
            "sparse_disable_index_value": sparse,
            "sparse_index_dim": shape.index_head_dim,
            "sparse_init_block": 0,
            "sparse_local_block": 1,
            "sparse_num_index_heads": shape.num_kv_heads,
            "sparse_score_type": "max",
            "sparse_topk_blocks": shape.topk_blocks,
            "use_sparse_attention": True,
        },
        "swiglu_alpha": shape.swiglu_alpha,
        "swiglu_limit": shape.swiglu_limit,
        "tie_word_embeddings": False,
        "use_cache": True,
        "use_gemma_norm": True,
        "use_qk_norm": True,
        "use_routing_bias": True,
        "vocab_size": shape.vocab_size,
    }


def special_ids() -> dict[str, int]:
    """The ids that begin and end a text, read from the tokenizer."""
    added = json.loads((TOKENIZER_FILES / "tokenizer.json").read_text(encoding="utf-8"))[
        "added_tokens"
    ]
    ids = {token["content"]: token["id"] for token in added}
    return {"bos_token_id": ids["]~!b["], "eos_token_id": ids["[e~["]}


def _tokenizer_config(shape: DemoShape) -> dict[str, Any]:
    return {
        "add_bos_token": False,
        "bos_token": "]~!b[",
        "clean_up_tokenization_spaces": False,
        "eos_token": "[e~[",
        "model_max_length": shape.max_position_embeddings,
        "pad_token": "]!p~[",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "]!d~[",
    }


def _generation_config(ids: dict[str, int]) -> dict[str, Any]:
    """The family's sampling, but cooler: a model this small has no taste to show."""
    return {**ids, "do_sample": True, "temperature": 0.3, "top_p": 0.95}


def _new_tensor(name: str, value: Tensor, dtype: torch.dtype) -> NewTensor:
    kept = ".block_sparse_moe.gate." in name or name.endswith("e_score_correction_bias")
    stored = value.detach().to(torch.float32 if kept else dtype).contiguous()

    def chunks() -> Iterator[bytes]:
        yield stored.view(torch.uint8).numpy().tobytes()

    return NewTensor(name, tuple(stored.shape), _BYTES[stored.dtype], chunks)


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def trained(run: Path) -> DemoModel:
    """The model of a run's last state."""
    state = load_file(run / "state.safetensors")
    weights = {
        name.removeprefix("model."): value
        for name, value in state.items()
        if name.startswith("model.")
    }
    model = DemoModel(DemoShape(vocab_size=len(weights["embedding"])))
    model.load_state_dict(weights)
    return model


@torch.no_grad()
def exported(folder: Path) -> DemoModel:
    """The model that ``export`` wrote to ``folder``, of the sizes of today."""
    files = sorted(folder.glob("*.safetensors"))
    tensors = {name: value for file in files for name, value in load_file(file).items()}
    vocab_size = len(tensors["language_model.model.embed_tokens.weight"])
    model = DemoModel(DemoShape(vocab_size=vocab_size))
    for name, value in hub_tensors(model):
        value.copy_(tensors[name])
    return model


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m demo.export", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    export(trained(given.run), given.out)


if __name__ == "__main__":
    main()
