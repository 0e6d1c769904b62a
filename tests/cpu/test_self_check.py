"""A kernel that is wrong on this machine or checkpoint must not serve."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import torch

from mserve.checkpoint import QuantSpec
from mserve.core import CheckpointError, SetupError
from mserve.kernels import choose, use_kernels
from mserve.layers import check_kernels
from mserve.models import Model
from mserve.testing.tiny_models import load_model, m2_spec, m3_spec, new_cache, random_tensors
from mserve.weights import Converting

# a width that MXFP8 can store: a multiple of 32
M2, M3 = m2_spec(hidden_size=64), m3_spec(hidden_size=64)


def check(
    spec: Any,
    dtype: str = "float32",
    stored: str = "plain",
    cached: str | None = None,
    odd: dict[str, str] | None = None,
) -> list[int]:
    """The check of a model of ``spec`` whose matrices are converted to ``stored``, but those whose
    names end in a key of ``odd`` to its value, over a cache of type ``cached``, or ``dtype``."""
    return run_check(model_of(spec, dtype, stored, odd or {}), spec, cached or dtype)


def model_of(spec: Any, dtype: str, stored: str, odd: dict[str, str]) -> Model:
    tensors = random_tensors(spec, seed=1)
    exceptions = {name: odd[end] for name in tensors for end in odd if name.endswith(end)}
    assert set(odd) <= {end for end in odd for name in exceptions if name.endswith(end)}
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
