"""Writes a draft as published EAGLE3 heads lie: config.json and one file, names without prefix.

The embedding is the target's and is not written; ``d2t`` maps the draft's smaller vocabulary to
the target's, ``t2d`` tells which of the target's tokens it has.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from demo.data import tokenizer
from demo.draft.model import Draft, DraftShape
from demo.export import special_ids

_FILE = "model.safetensors"


def export_draft(draft: Draft, out: Path) -> None:
    """Write ``draft`` in bf16 to the folder ``out``, config.json last."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.to(torch.bfloat16) for name, value in draft.named_parameters()}
    known = torch.zeros(tokenizer().vocab_size, dtype=torch.bool)
    known[draft.target_ids] = True
    save_file({**tensors, "d2t": draft.d2t, "t2d": known}, out / _FILE, {"format": "pt"})
    content = json.dumps(config(draft.shape), indent=2)
    (out / "config.json").write_text(content + "\n", encoding="utf-8")


def load_draft(folder: Path) -> Draft:
    """A draft that ``export_draft`` wrote, in fp32."""
    read = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    shape = DraftShape(
        target_size=read["target_hidden_size"],
        hidden_size=read["hidden_size"],
        num_heads=read["num_attention_heads"],
        num_kv_heads=read["num_key_value_heads"],
        head_dim=read["head_dim"],
        mlp_size=read["intermediate_size"],
        vocab_size=read["draft_vocab_size"],
        rope_theta=read["rope_theta"],
        rms_norm_eps=read["rms_norm_eps"],
        taps=tuple(read["eagle_aux_hidden_state_layer_ids"]),
    )
    state = load_file(folder / _FILE)
    state.pop("t2d")
    draft = Draft(shape, state["d2t"])
    draft.load_state_dict({n: x if n == "d2t" else x.float() for n, x in state.items()})
    return draft


def config(shape: DraftShape) -> dict[str, Any]:
    """The content of config.json."""
    return {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        **special_ids(),
        "attention_bias": False,
        "draft_vocab_size": shape.vocab_size,
        "dtype": "bfloat16",
        # Of the residual streams that enter these layers. As vLLM reads it; SGLang adds one.
        "eagle_aux_hidden_state_layer_ids": list(shape.taps),
        "eagle_config": {"use_aux_hidden_state": True},
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.mlp_size,
        "max_position_embeddings": shape.max_position_embeddings,
        "num_attention_heads": shape.num_heads,
        "num_hidden_layers": 1,
        "num_key_value_heads": shape.num_kv_heads,
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_theta": shape.rope_theta,
        "target_hidden_size": shape.target_size,
        "tie_word_embeddings": False,
        "vocab_size": tokenizer().vocab_size,
    }
