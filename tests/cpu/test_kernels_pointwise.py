"""Norms, rotation, activations and experts: the maths in double precision, the roundings exact."""

from __future__ import annotations

import itertools
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mserve.kernels import (
    GatedActivation,
    gemma_rms_norm,
    norm_rope,
    rms_norm,
    rope,
    rope_angles,
    rope_frequencies,
    run_experts,
    silu_gated,
    swiglu_oai,
)

DTYPES = [torch.float32, torch.bfloat16]
SILU = GatedActivation("silu")
quick = settings(max_examples=25, deadline=None, derandomize=True)


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def assert_rounded_once(ours: torch.Tensor, exact: torch.Tensor) -> None:
    """At most the nearest value of the dtype, but for fp32 noise at the edge of two values."""
    rounding = torch.finfo(ours.dtype).eps / 2 * 1.01 + 2e-6
    assert ((ours.double() - exact).abs() <= exact.abs() * rounding + 1e-7).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_gemma_norm_rounds_after_the_multiply(dtype):
    x, weight = random(50, 64, scale=3.0).to(dtype), random(64, seed=1)
    wide = x.double()
    exact = wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + weight.double())
    assert_rounded_once(gemma_rms_norm(x, weight, 1e-6), exact)


def test_plain_norm_rounds_before_the_multiply():
    x, weight = random(50, 64, scale=3.0).bfloat16(), random(64, seed=1).bfloat16()
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)
    assert torch.equal(rms_norm(x, weight, 1e-6), normed.bfloat16() * weight)
    rounded_late = (normed * weight.float()).bfloat16()
    assert not torch.equal(rms_norm(x, weight, 1e-6), rounded_late)


def turn(x: torch.Tensor, position: int, theta: float, rotary_dim: int) -> list[float]:
    """One head, in Python floats."""
    values = x.tolist()
    half = rotary_dim // 2
    turned = list(values)
    for i in range(half):
        angle = position * theta ** (-2 * i / rotary_dim)
        turned[i] = values[i] * math.cos(angle) - values[i + half] * math.sin(angle)
        turned[i + half] = values[i + half] * math.cos(angle) + values[i] * math.sin(angle)
    return turned


@pytest.mark.parametrize("dtype", DTYPES)
def test_rope_turns_the_first_dimensions_in_halves(dtype):
    x = random(4, 3, 16).to(dtype)
    positions = torch.tensor([0, 1, 77, 4001])
    cos, sin = rope_angles(positions, rope_frequencies(10_000.0, 8, positions.device))
    exact = torch.tensor(
        [
            [turn(head, int(position), 10_000.0, 8) for head in heads]
            for heads, position in zip(x, positions, strict=True)
        ],
        dtype=torch.float64,
    )
    turned = rope(x, cos, sin)
    # The angle itself is fp32: at 4001 radians it is off by up to 1.2e-4.
    tolerance = torch.finfo(dtype).eps + 5e-4
    assert (turned.double() - exact).abs().max() < tolerance * exact.abs().max()
    assert torch.equal(turned[..., 8:], x[..., 8:])
    assert torch.equal(turned[0], x[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_and_rope_together_round_once(dtype):
    x, weight = random(5, 3, 16, scale=2.0).to(dtype), random(3, 16, seed=1, scale=0.2)
    angles = rope_angles(torch.arange(5), rope_frequencies(10_000.0, 8, torch.device("cpu")))
    exact = rope(gemma_rms_norm(x.double().float(), weight, 1e-6), *angles).double()
    assert torch.equal(norm_rope(x, weight, 1e-6, *angles), exact.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_activations_round_once(dtype):
    gate_up = random(40, 64, scale=6.0).to(dtype)
    gate, up = gate_up.double().chunk(2, -1)
    assert_rounded_once(silu_gated(gate_up), gate * torch.sigmoid(gate) * up)
    assert (gate > 7).any()
    assert (gate < -7).any()
    capped = gate.clamp(max=7.0)
    exact = (up.clamp(-7.0, 7.0) + 1.0) * capped * torch.sigmoid(1.702 * capped)
    assert_rounded_once(swiglu_oai(gate_up, alpha=1.702, limit=7.0, beta=1.0), exact)


@quick
@given(
    seed=st.integers(0, 2**31),
    tokens=st.integers(1, 12),
    experts=st.integers(1, 6),
    parts=st.integers(1, 3),
)
def test_experts_sum_over_choices_and_over_ranks(seed, tokens, experts, parts):
    generator = torch.Generator().manual_seed(seed)
    k = int(torch.randint(1, experts + 1, (), generator=generator))
    hidden = torch.randn((tokens, 10), generator=generator)
    gate_up = torch.randn((experts, 12, 10), generator=generator)
    down = torch.randn((experts, 10, 6), generator=generator)
    ids = torch.stack([torch.randperm(experts, generator=generator)[:k] for _ in range(tokens)])
    weights = torch.rand((tokens, k), generator=generator)

    expected = torch.zeros((tokens, 10), dtype=torch.float64)
    for token in range(tokens):
        for expert, weight in zip(ids[token].tolist(), weights[token].tolist(), strict=True):
            gate, up = (gate_up[expert].double() @ hidden[token].double()).chunk(2)
            inner = gate * torch.sigmoid(gate) * up
            expected[token] += weight * (down[expert].double() @ inner)

    run = partial(run_experts, hidden, ids, weights, activation=SILU)
    whole = run(gate_up=gate_up, down=down, first_expert=0)
    torch.testing.assert_close(whole.double(), expected, rtol=1e-4, atol=1e-4)
    edges = [experts * part // parts for part in range(parts + 1)]
    split = sum(
        run(gate_up=gate_up[a:b], down=down[a:b], first_expert=a)
        for a, b in itertools.pairwise(edges)
    )
    torch.testing.assert_close(split, whole, rtol=1e-5, atol=1e-5)


def test_experts_sum_in_fp32():
    """A small share is not lost beside a large one, as it would be in bf16."""
    hidden = torch.ones((1, 1), dtype=torch.bfloat16)
    gate_up = torch.full((2, 2, 1), 30.0, dtype=torch.bfloat16)
    down = torch.ones((2, 1, 1), dtype=torch.bfloat16)
    ids, weights = torch.tensor([[0, 1]]), torch.tensor([[1.0, 2.0**-10]])
    total = run_experts(hidden, ids, weights, gate_up, down, SILU, 0)
    expert = silu_gated(torch.tensor([30.0, 30.0], dtype=torch.bfloat16)).item()
    assert total.dtype == torch.float32
    assert total.item() == expert * (1 + 2.0**-10)
