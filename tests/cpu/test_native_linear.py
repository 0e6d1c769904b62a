"""Native linear layers, experts, router and norms against torch, and against themselves alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mserve import kernels
from mserve.kernels import native
from mserve.testing.native import each_isa, native_library  # noqa: F401 - fixtures

quick = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    # the fixture only chooses the instruction set, which holds for all examples
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
seeds = st.integers(0, 2**31)
dtypes = st.sampled_from([torch.bfloat16, torch.float32])


def normal(random: torch.Generator, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Rows of unit length, so that inner products are near 1."""
    return (torch.randn(shape, generator=random) * shape[-1] ** -0.5).to(dtype)


@quick
@given(
    seed=seeds,
    dtype=dtypes,
    rows=st.integers(0, 40),
    outer=st.integers(0, 70),
    inner=st.integers(1, 400),
)
def test_linear_is_the_exact_product(each_isa, seed, dtype, rows, outer, inner):  # noqa: F811
    random = torch.Generator().manual_seed(seed)
    x, weight = normal(random, dtype, rows, inner), normal(random, dtype, outer, inner)
    output = native.linear(x, weight, torch.float32)
    torch.testing.assert_close(
        output.double(), x.double() @ weight.double().T, rtol=1e-5, atol=1e-6
    )
    assert torch.equal(native.linear(x, weight, torch.bfloat16), output.bfloat16())
    if rows:
        alone = torch.cat([native.linear(row[None], weight, torch.float32) for row in x])
        assert torch.equal(alone, output)


def test_linear_of_a_long_inner_dimension_and_many_rows(each_isa):  # noqa: F811
    random = torch.Generator().manual_seed(1)
    x, weight = torch.randn(300, 5000, generator=random), normal(random, torch.float32, 9, 5000)
    for dtype in (torch.float32, torch.bfloat16):
        rows, columns = x.to(dtype), weight.to(dtype)
        output = native.linear(rows, columns, torch.float32)
        expected = rows.double() @ columns.double().T
        torch.testing.assert_close(output.double(), expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(native.linear(rows[-1:], columns, torch.float32), output[-1:])


def test_linear_rounds_to_nearest_even_and_keeps_nan_and_inf(each_isa):  # noqa: F811
    values = torch.tensor([1.0, 1.00390625, 1.01171875, -3.3895e38, 3.4e38, 1e-40])
    special = torch.tensor([float("inf"), float("-inf"), float("nan")])
    one = torch.ones(1, 1)
    for value in values:
        output = native.linear(value.view(1, 1), one, torch.bfloat16)
        assert torch.equal(output[0, 0], value.bfloat16())
    for value in [*values.to(torch.bfloat16), *special.to(torch.bfloat16)]:
        output = native.linear(value.view(1, 1), one.bfloat16(), torch.bfloat16)
        expected = torch.nn.functional.linear(value.view(1, 1).float(), one).bfloat16()
        if abs(value.item()) < 1e-38:  # products of bf16 pairs flush subnormals to zero
            assert output.item() in (0.0, value.item())
        else:
            torch.testing.assert_close(output, expected, rtol=0, atol=0, equal_nan=True)


def test_linear_takes_rows_that_lie_apart(each_isa):  # noqa: F811
    random = torch.Generator().manual_seed(2)
    wide, weight = normal(random, torch.bfloat16, 5, 96), normal(random, torch.bfloat16, 16, 40)
    part = wide[:, 8:48]
    assert torch.equal(native.linear(part, weight), native.linear(part.contiguous(), weight))


def test_what_the_library_cannot_take_is_refused(each_isa):  # noqa: F811
    x = torch.ones(2, 8)
    with pytest.raises(native.NativeError, match="bfloat16 or float32"):
        native.linear(x, x.bfloat16())
    with pytest.raises(native.NativeError, match="not contiguous"):
        native.linear(x, torch.ones(8, 8)[:, ::2].expand(-1, 4))
    with pytest.raises(native.NativeError, match="width"):
        native.linear(x, torch.ones(4, 9))


SILU = kernels.GatedActivation("silu")
SWIGLU = kernels.GatedActivation("swiglu_oai", alpha=1.702, limit=7.0, beta=1.0)


def exact_activation(gate_up, activation):
    gate, up = gate_up.double().chunk(2, dim=-1)
    if activation.kind == "silu":
        return gate * gate.sigmoid() * up
    gate, up = gate.clamp(max=activation.limit), up.clamp(-activation.limit, activation.limit)
    return (up + activation.beta) * gate * (activation.alpha * gate).sigmoid()


def exact_experts(x, ids, weights, gate_up, down, activation, first_expert, shared):
    """One choice after the other in double precision."""

    def expert(row, gate_up, down):
        return down.double() @ exact_activation(gate_up.double() @ row.double(), activation)

    total = torch.zeros(x.shape, dtype=torch.float64)
    for token, choices in enumerate(ids.tolist()):
        for choice, weight in zip(choices, weights[token].tolist(), strict=True):
            if 0 <= choice - first_expert < len(down):
                place = choice - first_expert
                total[token] += weight * expert(x[token], gate_up[place], down[place])
        if shared is not None:
            total[token] += expert(x[token], *shared)
    return total


@quick
@given(
    seed=seeds,
    dtype=dtypes,
    tokens=st.integers(0, 40),
    inner=st.sampled_from([1, 8, 51, 700, 1024]),
    activation=st.sampled_from([SILU, SWIGLU]),
)
def test_activation_rounds_once(each_isa, seed, dtype, tokens, inner, activation):  # noqa: F811
    gate_up = 5 * torch.randn(tokens, 2 * inner, generator=torch.Generator().manual_seed(seed))
    gate_up = gate_up.to(dtype)
    found = native.activate(gate_up, activation)
    exact = exact_activation(gate_up, activation)
    rounding = torch.finfo(dtype).eps / 2 * 1.01 + 2e-6
    assert ((found - exact).abs() <= exact.abs() * rounding + 1e-30).all()
    for token in range(0, tokens, 7):
        assert torch.equal(native.activate(gate_up[token : token + 1], activation)[0], found[token])


def expected_size(values: torch.Tensor) -> float:
    return values.abs().max().item() if values.numel() else 0.0


@quick
@given(
    seed=seeds,
    dtype=dtypes,
    tokens=st.integers(0, 20),
    experts=st.integers(1, 40),
    chosen=st.integers(1, 8),
    hidden=st.sampled_from([16, 40, 129]),
    inner=st.sampled_from([8, 32, 51]),
    activation=st.sampled_from([SILU, SWIGLU]),
    first_expert=st.integers(0, 3),
    shared=st.booleans(),
    repeats=st.booleans(),
)
def test_experts(
    each_isa,  # noqa: F811
    seed,
    dtype,
    tokens,
    experts,
    chosen,
    hidden,
    inner,
    activation,
    first_expert,
    shared,
    repeats,
):
    random = torch.Generator().manual_seed(seed)
    # Some choices fall outside of this rank's experts.
    total = first_expert + experts + 2
    chosen = min(chosen, total)
    x = (torch.randn(tokens, hidden, generator=random) * 2).to(dtype)
    gate_up = normal(random, dtype, experts, 2 * inner, hidden)
    down = normal(random, dtype, experts, hidden, inner)
    if repeats:  # no router does that, and the sum has a meaning all the same
        ids = torch.randint(total, (tokens, chosen), generator=random).sort().values
    else:
        ids = torch.rand(tokens, total, generator=random).argsort()[:, :chosen].sort().values
    weights = torch.rand(tokens, chosen, generator=random)
    shared_weights = None
    if shared:
        shared_weights = (
            normal(random, dtype, 2 * (inner + 3), hidden),
            normal(random, dtype, hidden, inner + 3),
        )
    arguments = (gate_up, down, activation, first_expert, shared_weights)
    output = native.run_experts(x, ids, weights, *arguments)
    expected = exact_experts(x, ids, weights, *arguments)
    # The inner values are rounded to dtype; everything else is fp32.
    bound = {torch.bfloat16: 1e-2, torch.float32: 1e-5}[dtype] * max(1.0, expected_size(expected))
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=bound)
    rounded = native.run_experts(x, ids, weights, *arguments, out_dtype=torch.bfloat16)
    assert torch.equal(rounded, output.bfloat16())
    for token in range(min(tokens, 3)):
        one = slice(token, token + 1)
        alone = native.run_experts(x[one], ids[one], weights[one], *arguments)
        assert torch.equal(alone, output[one])


@quick
@given(
    seed=seeds,
    dtype=dtypes,
    tokens=st.integers(0, 30),
    experts=st.integers(1, 60),
    chosen=st.integers(1, 8),
    hidden=st.integers(1, 130),
)
def test_router_chooses_as_the_reference(each_isa, seed, dtype, tokens, experts, chosen, hidden):  # noqa: F811
    random = torch.Generator().manual_seed(seed)
    chosen = min(chosen, experts)
    x = torch.randn(tokens, hidden, generator=random).to(dtype)
    gate = torch.randn(experts, hidden, generator=random) * 0.3
    gate[experts // 2] = gate[0]  # an exact tie
    bias = torch.randn(experts, generator=random) * 0.1
    bias[experts // 2] = bias[0]
    ids, weights = native.route(x, gate, bias, chosen, 2.0)
    expected_ids, expected_weights = kernels.route(x, gate, bias, chosen, 2.0)
    assert torch.equal(ids, expected_ids)
    torch.testing.assert_close(weights, expected_weights, rtol=1e-5, atol=1e-6)
    for token in range(min(tokens, 3)):
        alone = native.route(x[token : token + 1], gate, bias, chosen, 2.0)
        assert torch.equal(alone[1], weights[token : token + 1])


def test_router_treats_nan_as_the_worst(each_isa):  # noqa: F811
    x = torch.tensor([[1.0]])
    gate = torch.tensor([[float("nan")], [-1.0], [2.0], [2.0]])
    ids, _ = native.route(x, gate, torch.zeros(4), 3, 1.0)
    assert ids.tolist() == [[1, 2, 3]]


@quick
@given(seed=seeds, dtype=dtypes, rows=st.integers(0, 9), width=st.integers(1, 300))
def test_norms(each_isa, seed, dtype, rows, width):  # noqa: F811
    random = torch.Generator().manual_seed(seed)
    x = (torch.randn(rows, width, generator=random) * 3).to(dtype)
    weight = torch.randn(width, generator=random)
    # One unit in the last place of bf16: the two may round a value in between differently.
    bound = {torch.bfloat16: 2**-7, torch.float32: 1e-6}[dtype]
    torch.testing.assert_close(
        native.gemma_rms_norm(x, weight, 1e-6),
        kernels.gemma_rms_norm(x, weight, 1e-6),
        rtol=bound,
        atol=1e-6,
    )
    weight = weight.to(dtype)
    torch.testing.assert_close(
        native.rms_norm(x, weight, 1e-6), kernels.rms_norm(x, weight, 1e-6), rtol=bound, atol=1e-6
    )


@quick
@given(
    seed=seeds,
    dtype=dtypes,
    tokens=st.integers(0, 9),
    heads=st.integers(1, 5),
    width=st.sampled_from([2, 16, 24, 128]),
    part=st.integers(0, 2),
)
def test_norm_and_rotation(each_isa, seed, dtype, tokens, heads, width, part):  # noqa: F811
    random = torch.Generator().manual_seed(seed)
    rows = torch.randn(tokens, heads * width + 7, generator=random).to(dtype)
    x = rows[:, 3 : 3 + heads * width].unflatten(-1, (heads, width))
    weight = torch.randn(heads, width, generator=random)
    angles = torch.randn(tokens, width // 2 * part // 2, generator=random)
    arguments = (weight, 1e-6, angles.cos(), angles.sin())
    bound = {torch.bfloat16: 2**-7, torch.float32: 2e-6}[dtype]
    torch.testing.assert_close(
        native.norm_rope(x, *arguments), kernels.norm_rope(x, *arguments), rtol=bound, atol=bound
    )


@pytest.mark.parametrize("threads", [1, 3, 8])
def test_threads_do_not_show(each_isa, threads):  # noqa: F811
    random = torch.Generator().manual_seed(3)
    x, weight = normal(random, torch.bfloat16, 7, 96), normal(random, torch.bfloat16, 50, 96)
    gate_up = normal(random, torch.bfloat16, 4, 64, 96)
    down = normal(random, torch.bfloat16, 4, 96, 32)
    ids = torch.tensor([[0, 1], [1, 2], [2, 3], [0, 3], [0, 1], [1, 3], [2, 3]])
    weights = torch.rand(7, 2, generator=random)

    def outputs() -> tuple[torch.Tensor, torch.Tensor]:
        experts = native.run_experts(x, ids, weights, gate_up, down, SILU, 0)
        return native.linear(x, weight), experts

    first = outputs()
    native.set_num_threads(threads)
    assert native.num_threads() == threads
    for _ in range(20):
        again = outputs()
        assert torch.equal(first[0], again[0])
        assert torch.equal(first[1], again[1])


@quick
@given(
    seed=seeds,
    dtype=dtypes,
    tokens=st.integers(0, 9),
    heads=st.integers(1, 5),
    split=st.integers(0, 5),
    width=st.sampled_from([2, 24, 128]),
)
def test_norm_over_all_heads_and_rotation(each_isa, seed, dtype, tokens, heads, split, width):  # noqa: F811
    random = torch.Generator().manual_seed(seed)
    rows = torch.randn(tokens, heads * width + 7, generator=random).to(dtype)[:, 3:-4]
    split = min(split, heads) * width
    means = native.mean_squares(rows, split, (7, 300))
    expected = kernels.mean_squares(rows, split, (7, 300))
    torch.testing.assert_close(means, expected, rtol=1e-5, atol=1e-5)
    weight = torch.randn(heads * width, generator=random).to(dtype)
    angles = torch.randn(tokens, width // 4, generator=random)
    arguments = (means[:, 1], weight, 1e-6, angles.cos(), angles.sin())
    x = rows.unflatten(-1, (heads, width))
    bound = {torch.bfloat16: 2**-7, torch.float32: 2e-6}[dtype]
    torch.testing.assert_close(
        native.rms_norm_rope(x, *arguments),
        kernels.rms_norm_rope(x, *arguments),
        rtol=bound,
        atol=bound * 4,
    )


@quick
@given(seed=seeds, dtype=dtypes, tokens=st.integers(0, 9), heads=st.integers(1, 3))
def test_cache_write_changes_its_slots_only(each_isa, seed, dtype, tokens, heads):  # noqa: F811
    random = torch.Generator().manual_seed(seed)
    pool = torch.randn(3, heads * 128 * 6 + 16, generator=random).to(dtype)
    expected = pool.clone()
    slots = torch.randperm(3 * 128, generator=random)[:tokens]
    values = torch.randn(tokens, heads * 6 + 5, generator=random).to(dtype)[:, 5:]
    values = values.unflatten(-1, (heads, 6))
    for write, blocks in ((native.write_kv, pool), (kernels.write_kv, expected)):
        write(blocks[:, : heads * 128 * 6].unflatten(1, (heads, 128, 6)), slots, values)
    assert torch.equal(pool, expected)
