"""Tensor names: what a model must hold, and how each writer spells it.

The *logical name* is the published name without ``language_model.``:

    published        language_model.model.layers.3.block_sparse_moe.experts.5.w1.weight
    text-only        model.layers.3.block_sparse_moe.experts.5.w1.weight        = logical
    re-saved         model.language_model.layers.3.mlp.experts.gate_up_proj     rows of a stack

Names are compared by whole path components, never as text: ``index_q_proj`` ends in ``q_proj``, and
``gate_proj`` must not find ``gate_up_proj``. Knows names and shapes; does not know
files.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mserve.checkpoint.header import TensorSource
from mserve.checkpoint.spec import ModelSpec

Shape = tuple[int, ...]
_Path = tuple[str, ...]

_OTHER_TOWERS = frozenset({"vision_tower", "multi_modal_projector", "patch_merge_mlp"})
_CACHE_SCALES = frozenset(
    f"{side}_cache_{what}" for side in ("k", "v", "kv") for what in ("scale", "offset")
)
_NOWHERE = TensorSource(Path(), "", (), 0, 0)
_INDEXER = {"q_proj", "k_proj", "q_norm", "k_norm"}


def expected_tensors(spec: ModelSpec) -> dict[str, Shape]:
    """Logical name and shape of every tensor of the text model, in layer order."""
    hidden = spec.hidden_size
    tensors: dict[str, Shape] = {"model.embed_tokens.weight": (spec.vocab_size, hidden)}
    for number, layer in enumerate(spec.layers):
        prefix = f"model.layers.{number}."
        tensors[prefix + "input_layernorm.weight"] = (hidden,)
        for name, shape in _attention(spec, sparse=layer.attention == "sparse"):
            tensors[f"{prefix}self_attn.{name}.weight"] = shape
        tensors[prefix + "post_attention_layernorm.weight"] = (hidden,)
        mlp = _dense(spec) if layer.mlp == "dense" else _moe(spec)
        for name, shape in mlp:
            tensors[prefix + name] = shape
    tensors["model.norm.weight"] = (hidden,)
    tensors["lm_head.weight"] = (spec.vocab_size, hidden)
    return tensors


def _attention(spec: ModelSpec, *, sparse: bool) -> Iterator[tuple[str, Shape]]:
    hidden, head_dim = spec.hidden_size, spec.head_dim
    q_width, kv_width = spec.num_heads * head_dim, spec.num_kv_heads * head_dim
    full_width = spec.qk_norm == "full_width"
    yield "q_proj", (q_width, hidden)
    yield "k_proj", (kv_width, hidden)
    yield "v_proj", (kv_width, hidden)
    yield "o_proj", (hidden, q_width)
    yield "q_norm", (q_width if full_width else head_dim,)
    yield "k_norm", (kv_width if full_width else head_dim,)
    if sparse and spec.index is not None:
        index = spec.index
        yield "index_q_proj", (index.num_heads * index.head_dim, hidden)
        yield "index_k_proj", (index.head_dim, hidden)
        yield "index_q_norm", (index.head_dim,)
        yield "index_k_norm", (index.head_dim,)


def _gated_mlp(prefix: str, hidden: int, intermediate: int) -> Iterator[tuple[str, Shape]]:
    yield f"{prefix}.gate_proj.weight", (intermediate, hidden)
    yield f"{prefix}.up_proj.weight", (intermediate, hidden)
    yield f"{prefix}.down_proj.weight", (hidden, intermediate)


def _dense(spec: ModelSpec) -> Iterator[tuple[str, Shape]]:
    return _gated_mlp("mlp", spec.hidden_size, spec.dense_intermediate_size)


def _moe(spec: ModelSpec) -> Iterator[tuple[str, Shape]]:
    hidden, moe = spec.hidden_size, spec.moe
    yield "block_sparse_moe.gate.weight", (moe.num_experts, hidden)
    yield "block_sparse_moe.e_score_correction_bias", (moe.num_experts,)
    for expert in range(moe.num_experts):
        prefix = f"block_sparse_moe.experts.{expert}"
        yield f"{prefix}.w1.weight", (moe.intermediate_size, hidden)
        yield f"{prefix}.w2.weight", (hidden, moe.intermediate_size)
        yield f"{prefix}.w3.weight", (moe.intermediate_size, hidden)
    if moe.shared_intermediate_size:
        shared = "block_sparse_moe.shared_experts"
        yield from _gated_mlp(shared, hidden, moe.shared_intermediate_size)


def is_ignored(name: str, spec: ModelSpec) -> bool:
    """Whether ``name`` belongs to what this engine does not run: vision, projector, draft layers,
    and one vendor's factors for a cache of its own."""
    path = _without_prefix(tuple(name.split(".")))
    if path[-1] in _CACHE_SCALES:
        return True
    if spec.family == "m3" and (path[0] in _OTHER_TOWERS or "mtp" in path[:3]):
        return True
    if path[0] == "model" and len(path) > 1 and path[1] in _OTHER_TOWERS:
        return spec.family == "m3"
    number = _layer_number(path)
    last = len(spec.layers)
    return number is not None and last <= number < last + spec.num_mtp_layers


def logical_tensors(
    name: str, source: TensorSource, spec: ModelSpec
) -> Iterator[tuple[str, TensorSource]]:
    """The tensors that one of a file is in our terms: itself under its logical name, or the
    parts of a stack. An unknown name comes back as it is."""
    path = _without_prefix(tuple(name.split(".")))
    number = _layer_number(path)
    if number is None or number >= len(spec.layers):
        yield ".".join(path), source
        return
    layer, rest = ".".join(path[:3]), path[3:]
    if spec.layers[number].mlp == "moe" and rest[:1] == ("mlp",):
        rest = ("block_sparse_moe", *rest[1:])
    if rest[:2] == ("self_attn", "indexer") and len(rest) > 2 and rest[2] in _INDEXER:
        rest = ("self_attn", f"index_{rest[2]}", *rest[3:])
    if rest == ("block_sparse_moe", "gate", "e_score_correction_bias"):
        rest = ("block_sparse_moe", "e_score_correction_bias")
    for tail, part in _unstacked(rest, source):
        yield f"{layer}.{'.'.join(tail)}", part


def logical_name(name: str, spec: ModelSpec) -> str:
    """The logical name of a tensor that is no stack."""
    return next(logical_tensors(name, _NOWHERE, spec))[0]


def _unstacked(rest: _Path, source: TensorSource) -> Iterator[tuple[_Path, TensorSource]]:
    """Split what transformers stacks: [gate; up] along rows, and experts along a new dimension."""
    stacked_experts = rest[:-1] == ("block_sparse_moe", "experts") and len(source.shape) == 3
    if stacked_experts and rest[-1] == "gate_up_proj" and source.shape[1] % 2 == 0:
        for expert in range(source.shape[0]):
            both = source.row(expert)
            half = both.shape[0] // 2
            yield (*rest[:-1], str(expert), "w1", "weight"), both.rows(0, half)
            yield (*rest[:-1], str(expert), "w3", "weight"), both.rows(half, 2 * half)
    elif stacked_experts and rest[-1] == "down_proj":
        for expert in range(source.shape[0]):
            yield (*rest[:-1], str(expert), "w2", "weight"), source.row(expert)
    elif rest[-2:] == ("gate_up_proj", "weight") and source.shape and source.shape[0] % 2 == 0:
        half = source.shape[0] // 2
        yield (*rest[:-2], "gate_proj", "weight"), source.rows(0, half)
        yield (*rest[:-2], "up_proj", "weight"), source.rows(half, 2 * half)
    else:
        yield rest, source


def without_prefix(name: str) -> str:
    """``name`` without what a writer puts before the text model's names."""
    return ".".join(_without_prefix(tuple(name.split("."))))


def _without_prefix(path: _Path) -> _Path:
    if path[0] == "language_model":
        return path[1:]
    if path[:2] == ("model", "language_model"):
        return ("model", *path[2:])
    return path


def _layer_number(path: _Path) -> int | None:
    if len(path) > 3 and path[:2] == ("model", "layers") and path[2].isdecimal():
        return int(path[2])
    return None
