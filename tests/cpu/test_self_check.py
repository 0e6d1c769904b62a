"""A kernel that is wrong on this machine or checkpoint must not serve."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import torch

from mserve.checkpoint import QuantSpec
from mserve.core import CheckpointError, SetupError
from mserve.kernels import Int8Matrix, choose, compare, use_kernels
from mserve.layers import check_kernels
from mserve.models import Model
from mserve.testing.tiny_models import load_model, m2_spec, m3_spec, new_cache, random_tensors
from mserve.weights.converting import Converting

# a width that MXFP8 can store: a multiple of 32
M2, M3 = m2_spec(hidden_size=64), m3_spec(hidden_size=64)


def check(
    spec: Any,
    dtype: str = "float32",
    stored: str = "plain",
    cached: str | None = None,
    odd: dict[str, str] | None = None,
) -> list[int]:
    """The check of a model of ``spec`` whose matrices are converted to ``stored``, but those with a
    key of ``odd`` in their names to its value, over a cache of type ``cached``, or ``dtype``."""
    return run_check(model_of(spec, dtype, stored, odd or {}), spec, cached or dtype)


def model_of(spec: Any, dtype: str, stored: str, odd: dict[str, str]) -> Model:
    tensors = random_tensors(spec, seed=1)
    exceptions = {name: odd[part] for name in tensors for part in odd if part in name}
    assert all(any(part in name for name in exceptions) for part in odd)
    quantization = QuantSpec(stored, exceptions, on_load=True)
    spec = msgspec.structs.replace(spec, quantization=quantization)
    return load_model(spec, tensors, dtype=getattr(torch, dtype))


def run_check(model: Model, spec: Any, cached: str) -> list[int]:
    use_kernels("native")
    with torch.inference_mode():
        return check_kernels(model, new_cache(spec, 32, cached))


@pytest.mark.parametrize("stored", ["plain", "mxfp8", "fp8", "int8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("spec", [M2, M3], ids=["m2", "m3"])
def test_right_kernels_pass_and_every_kind_of_layer_is_run(
    spec: Any, dtype: str, stored: str
) -> None:
    checked = check(spec, dtype, stored)
    assert {spec.layers[number] for number in checked} == set(spec.layers)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kernels_are_right_where_attention_is_sharp(dtype: str) -> None:
    """Trained heads look at one key; a score of 60 rounded to bf16 is off by an eighth."""
    model = model_of(M3, dtype, "plain", {})
    for layer in model.layers:
        layer.attention.qk_norm.weight.fill_(20.0)
    assert len(run_check(model, M3, dtype)) >= 2


@pytest.mark.parametrize("cached", ["float8_e4m3fn", "int8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kernels_are_right_over_packed_caches(dtype: str, cached: str) -> None:
    assert len(check(M3, dtype, cached=cached)) >= 2


@pytest.mark.parametrize("cached", ["float8_e4m3fn", "int8"])
@pytest.mark.parametrize(
    "op", [choose.select_blocks, choose.sparse_attention], ids=lambda op: op.name
)
def test_packed_caches_go_through_the_checked_kernels(
    op: choose.Op, cached: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = op.native
    monkeypatch.setattr(op, "native", lambda *args, **kwargs: halved(right(*args, **kwargs)))
    with pytest.raises(SetupError, match=op.name):
        check(M3, cached=cached)


def halved(result: Any) -> Any:
    if isinstance(result, tuple):
        return (result[0], *(part * 0.5 for part in result[1:]))
    return result * 0.5 if result.dtype.is_floating_point else result.flip(-1)


def poisoned(result: Any) -> Any:
    return halved(result) * torch.nan if isinstance(result, torch.Tensor) else halved(result)


@pytest.mark.parametrize("spoil", [halved, poisoned])
@pytest.mark.parametrize(
    "op", [op for op in choose.OPS if op is not choose.write_kv], ids=lambda op: op.name
)
def test_a_wrong_kernel_is_named(
    op: choose.Op, spoil: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = op.native
    monkeypatch.setattr(op, "native", lambda *args, **kwargs: spoil(right(*args, **kwargs)))
    with pytest.raises(SetupError, match=op.name):
        check(M2)
        check(M3)
        check(M3, odd={"mlp.down_proj.weight": "mxfp8"})


def wrong_where(monkeypatch: pytest.MonkeyPatch, op: choose.Op, where: Callable[..., bool]) -> None:
    """``op`` runs natively, and is wrong for the arguments that ``where`` says."""
    right = op.native

    def run(*args: Any, **kwargs: Any) -> Any:
        result = right(*args, **kwargs)
        return halved(result) if where(*args, **kwargs) else result

    monkeypatch.setattr(op, "native", run)


ROW_COUNTS: dict[str, Callable[[int], bool]] = {
    "one row": lambda rows: rows == 1,
    "a few rows": lambda rows: rows == 3,
    "many rows": lambda rows: rows >= 16,
}


@pytest.mark.parametrize("rows", ROW_COUNTS.values(), ids=ROW_COUNTS)
@pytest.mark.parametrize("stored", ["plain", "mxfp8", "fp8", "int8"])
@pytest.mark.parametrize(
    "op", [choose.linear, choose.gated_mlp, choose.run_experts], ids=lambda op: op.name
)
def test_a_product_that_is_wrong_for_some_number_of_rows_is_named(
    op: choose.Op, stored: str, rows: Callable[[int], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong_where(monkeypatch, op, lambda x, *_: rows(len(x)))
    with pytest.raises(SetupError, match=op.name):
        check(M3, "bfloat16", stored)


@pytest.mark.parametrize("stored", ["plain", "mxfp8"])
def test_an_expert_of_many_rows_is_checked(stored: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many experts there are, one at least gets as many rows as tiles have."""
    wrong_where(
        monkeypatch, choose.run_experts, lambda x, ids, *_: int(ids.flatten().bincount().max()) > 32
    )
    with pytest.raises(SetupError, match="run_experts"):
        check(m3_spec(hidden_size=64, num_experts=64), "bfloat16", stored)


STEPS: dict[str, Callable[[int, int], bool]] = {
    "decoding alone": lambda spans, length: (spans, length) == (1, 1),
    "decoding together": lambda spans, length: spans > 1 and length == 1,
    "a short span": lambda spans, length: (spans, length) == (1, 3),
    "prefill alone": lambda spans, length: spans == 1 and length > 32,
    "prefill together": lambda spans, length: spans > 1 and length > 1,
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize(
    "op",
    [choose.select_blocks, choose.paged_attention, choose.sparse_attention],
    ids=lambda op: op.name,
)
def test_attention_that_is_wrong_for_some_steps_is_named(
    op: choose.Op, step: Callable[[int, int], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong_where(monkeypatch, op, lambda query, *_, **__: step(*query.shape[:2]))
    with pytest.raises(SetupError, match=op.name):
        check(M3, "bfloat16")


@pytest.mark.parametrize(("num_rows", "right"), [(1, True), (2, False)])
def test_one_nearly_tied_choice_of_many_is_no_fault(
    num_rows: int, right: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    native_route = choose.route.native

    def run(hidden: torch.Tensor, *args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        ids, weights = native_route(hidden, *args)
        if len(hidden) == 40:
            ids[:num_rows, -1] ^= 1
            weights[:num_rows] += 0.1
        return ids, weights

    monkeypatch.setattr(choose.route, "native", run)
    if right:
        check(M3)
    else:
        with pytest.raises(SetupError, match="route"):
            check(M3)


@pytest.mark.parametrize("tallest", [16384, 16])
@pytest.mark.parametrize("spec", [M2, M3], ids=["m2", "m3"])
def test_both_ends_of_a_model_are_checked(
    spec: Any, tallest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head whole, and as one that is too tall for that."""
    monkeypatch.setattr(compare, "_TALLEST", tallest)
    model = model_of(spec, "bfloat16", "plain", {})
    ends = {
        choose.embedding: lambda ids, weight: True,
        choose.linear: lambda x, weight, *_: weight is model.head.weight,
        choose.gemma_rms_norm if spec is M3 else choose.rms_norm: (
            lambda x, weight, eps: weight is model.norm.weight
        ),
    }
    run_check(model, spec, "bfloat16")
    for op, where in ends.items():
        with monkeypatch.context() as patch:
            wrong_where(patch, op, where)
            with pytest.raises(SetupError, match=op.name):
                run_check(model, spec, "bfloat16")


MIXED: dict[str, dict[str, str]] = {
    "a shared expert": {"layers.2.block_sparse_moe.shared_experts": "int8"},
    "one expert of many": {
        "layers.1.block_sparse_moe.experts.0.": "mxfp8",
        "layers.2.block_sparse_moe.experts.3.": "int8",
    },
    "keys": {"layers.1.self_attn.k_proj": "mxfp8", "layers.2.self_attn.k_proj": "int8"},
    "down projections": {"layers.2.block_sparse_moe.experts.0.w2": "int8"},
}


@pytest.mark.parametrize("odd", MIXED.values(), ids=MIXED)
def test_every_form_of_a_mixed_checkpoint_is_checked(
    odd: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = m3_spec(hidden_size=64, layers="fd sm sm", num_experts=32)
    assert check(spec, odd=odd) == [0, 1, 2]
    for op in (choose.linear, choose.gated_mlp):
        wrong_where(
            monkeypatch, op, lambda x, *weights: any(isinstance(w, Int8Matrix) for w in weights)
        )
    with pytest.raises(SetupError, match=r"linear|gated_mlp"):
        check(spec, odd=odd)


def test_layers_of_one_kind_are_checked_once() -> None:
    spec = m3_spec(hidden_size=64, layers="fd fd sm sm sm")
    odd = {f"layers.{number}.self_attn.k_proj": "int8" for number in (1, 3, 4)}
    assert check(spec, odd=odd) == [0, 1, 2, 3]


@pytest.mark.parametrize("stored", ["mxfp8", "fp8", "int8"])
@pytest.mark.parametrize(
    "op", [choose.linear, choose.gated_mlp, choose.run_experts], ids=lambda op: op.name
)
def test_packed_matrices_go_through_the_checked_kernels(
    op: choose.Op, stored: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = op.native
    monkeypatch.setattr(op, "native", lambda *args, **kwargs: halved(right(*args, **kwargs)))
    with pytest.raises(SetupError, match=op.name):
        check(M3, stored=stored)


@pytest.mark.parametrize("cached", ["float32", "float8_e4m3fn", "int8"])
def test_a_cache_write_that_writes_nothing_is_named(
    cached: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose.write_kv, "native", lambda plane, slots, values: None)
    with pytest.raises(SetupError, match="write_kv"):
        check(M3, cached=cached)


DAMAGES = {
    "a value": ("plain", "model.layers.0", "self_attn.q_proj", torch.nan),
    "an infinite value": ("plain", "model.layers.1", "self_attn.o_proj", torch.inf),
    "a norm": ("plain", "model.layers.0", "input_layernorm", torch.nan),
    "a power of two of mxfp8": ("mxfp8", "model.layers.0", "self_attn.q_proj", 255),
    "a factor of fp8": ("fp8", "model.layers.0", "self_attn.q_proj", torch.nan),
    "the embedding": ("plain", "model.embed_tokens", "", torch.nan),
    "the final norm": ("plain", "model.norm", "", torch.nan),
    "the head": ("plain", "lm_head", "", torch.inf),
    "a factor of int8": ("int8", "model.layers.0", "self_attn.q_proj", torch.inf),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("stored", "place", "part", "value"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_weights_are_not_blamed_on_the_kernels(
    stored: str, place: str, part: str, value: float, dtype: str
) -> None:
    model = model_of(M3, dtype, stored, {})
    name = ".".join(filter(None, (place, part, "weight")))
    (kept,) = [piece.destination for piece in model.pieces() if piece.source == name]
    (*_, last) = kept.stores if isinstance(kept, Converting) else (kept,)
    last.view(-1)[-1] = value
    with pytest.raises(CheckpointError, match=f"weights of {place} are damaged") as caught:
        run_check(model, M3, dtype)
    assert "download" in str(caught.value.hint)


def test_the_choice_of_kernels_is_as_before() -> None:
    use_kernels("native")
    before = [op.run for op in choose.OPS]
    check(M3)
    assert [op.run for op in choose.OPS] == before
