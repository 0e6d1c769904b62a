"""A kernel that is wrong on this machine or checkpoint must not serve."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mserve.core import SetupError
from mserve.kernels import choose, use_kernels
from mserve.layers import check_kernels
from mserve.testing.tiny_models import load_model, m2_spec, m3_spec, new_cache, random_tensors

M2, M3 = m2_spec(), m3_spec()


def check(spec: Any, dtype: str = "float32") -> list[int]:
    use_kernels("native")
    model = load_model(spec, random_tensors(spec, seed=1), dtype=getattr(torch, dtype))
    with torch.inference_mode():
        return check_kernels(model, new_cache(spec, 32, dtype))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("spec", [M2, M3], ids=["m2", "m3"])
def test_right_kernels_pass_and_every_kind_of_layer_is_run(spec: Any, dtype: str) -> None:
    checked = check(spec, dtype)
    assert {spec.layers[number] for number in checked} == set(spec.layers)


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


def test_a_cache_write_that_writes_nothing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose.write_kv, "native", lambda plane, slots, values: None)
    with pytest.raises(SetupError, match="write_kv"):
        check(M3)


def test_the_choice_of_kernels_is_as_before() -> None:
    use_kernels("native")
    before = [op.run for op in choose.OPS]
    check(M3)
    assert [op.run for op in choose.OPS] == before
