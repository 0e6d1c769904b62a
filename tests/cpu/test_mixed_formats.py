"""Layers whose matrices are not all stored alike: the same bits in any company, right values."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec
import pytest
import torch

from mserve import kernels
from mserve.checkpoint import ModelSpec, QuantSpec, WeightFormat, expected_tensors, is_matrix
from mserve.kernels import use_kernels
from mserve.testing.native import native_library  # noqa: F401 - a fixture
from mserve.testing.tiny_models import (
    Session,
    load_model,
    m3_spec,
    random_tensors,
    random_tokens,
    relative_error,
)

PROMPTS = [random_tokens(length, seed=length) for length in (5, 17, 33, 200, 3, 61, 90, 9, 1)]


def narrow(spec: ModelSpec) -> ModelSpec:
    """Experts of a width that leaves a vector half filled."""
    moe = msgspec.structs.replace(
        spec.moe, intermediate_size=44, shared_intermediate_size=52, experts_per_token=3
    )
    return msgspec.structs.replace(spec, moe=moe, dense_intermediate_size=76)


SPEC = narrow(m3_spec(hidden_size=64))
ODD_ONES_OUT = {
    "one down projection": ".experts.1.w2.",
    "every down projection": ".w2.",
    "the shared expert": ".shared_experts.",
    "half of the shared expert": ".shared_experts.down_proj.",
    "half of a dense layer": ".mlp.gate_proj.",
    "keys": ".k_proj.",
}


@pytest.fixture(autouse=True)
def native_kernels(native_library: None) -> Iterator[None]:  # noqa: F811
    use_kernels("native")
    yield
    use_kernels("reference")


def mixed(stored: WeightFormat, odd: str, other: WeightFormat) -> Session:
    """A model in fp32 whose matrices are ``stored`` so, but those with ``odd`` in their names."""
    names = [name for name in expected_tensors(SPEC) if is_matrix(name) and odd in name]
    assert names
    quantization = QuantSpec(stored, dict.fromkeys(names, other), on_load=True)
    spec = msgspec.structs.replace(SPEC, quantization=quantization)
    return Session(spec, load_model(spec, random_tensors(SPEC, seed=1)))


@pytest.mark.parametrize("odd", ODD_ONES_OUT.values(), ids=ODD_ONES_OUT)
@pytest.mark.parametrize(("stored", "other"), [("fp8", "plain"), ("plain", "int8")])
def test_a_prompt_gets_the_same_bits_alone_and_together(
    stored: WeightFormat, other: WeightFormat, odd: str
) -> None:
    session = mixed(stored, odd, other)
    alone = torch.cat([session.prompt(prompt) for prompt in PROMPTS])
    together = session.logits([(prompt, 0, session.blocks(len(prompt))) for prompt in PROMPTS])
    assert torch.equal(alone, together)


@pytest.mark.parametrize("odd", ODD_ONES_OUT.values(), ids=ODD_ONES_OUT)
def test_both_kernels_give_the_same_scores(odd: str) -> None:
    session = mixed("fp8", odd, "plain")
    ours = session.prompt(PROMPTS[3])
    use_kernels("reference")
    assert relative_error(ours, session.prompt(PROMPTS[3])) < 1e-4


def test_routed_experts_go_together_beside_a_shared_one_stored_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called = []
    run: Callable[..., torch.Tensor] = kernels.run_experts.run
    monkeypatch.setattr(
        kernels.run_experts, "run", lambda *args: called.append(args[0].shape) or run(*args)
    )
    mixed("fp8", ".shared_experts.", "plain").prompt(PROMPTS[0])
    assert called == [(len(PROMPTS[0]), SPEC.hidden_size)]
