"""Native kernels over INT8 weights: the reference's very integers, and rows alone as in company.

A product is exact until its last two roundings, which both sides do alike: results are equal bit
for bit. Experts have an activation between two products, whose last bit may move a value that lies
between two integers to the other one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mserve import kernels
from mserve.kernels import GatedActivation, Int8Matrix, Int8StaticMatrix, native
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
Integers = Int8Matrix | Int8StaticMatrix
FORMS = ["dynamic", "static"]
SILU = GatedActivation("silu")


def random_matrix(
    random: np.random.Generator, form: str, experts: int, part_rows: tuple[int, ...], width: int
) -> Integers:
    """A stack whose values are near ``width ** -0.5`` at most, with saturated and zero rows."""
    rows = sum(part_rows)
    packed = torch.from_numpy(random.integers(-128, 128, (experts, rows, width), dtype=np.int8))
    packed[:, 1::7], packed[:, 2::7], packed[:, 3::7] = -128, 127, 0
    scale = torch.from_numpy(random.random((experts, rows), dtype=np.float32)) / 128 / width**0.5
    if form == "dynamic":
        return Int8Matrix(packed, scale)
    words = torch.empty((experts, Int8StaticMatrix.num_words(part_rows)))
    matrix = Int8StaticMatrix(packed, words, part_rows)
    matrix.deq_scale[:] = scale / 32
    bias = random.integers(-(2**31), 2**31, (experts, rows), dtype=np.int32) // 2**12
    matrix.quant_bias[:] = torch.from_numpy(bias)
    matrix.inputs.scale[:] = torch.from_numpy(random.random((experts, len(part_rows)))) / 8 + 0.01
    offsets = random.integers(-128, 128, (experts, len(part_rows)))
    matrix.inputs.offset[:] = torch.from_numpy(offsets)
    return matrix


def random_rows(random: np.random.Generator, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    rows = random.standard_normal(shape) * 4.0 ** random.integers(-3, 4, (*shape[:-1], 1))
    return torch.from_numpy(rows.astype(np.float32)).to(dtype)


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Bit for bit, but for the payload of NaN."""
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("form", FORMS)
@quick
@given(
    seed=seeds,
    dtype=dtypes,
    out_dtype=dtypes,
    rows=st.integers(0, 40),
    part_rows=st.lists(st.sampled_from([1, 3, 8, 61]), min_size=1, max_size=3).map(tuple),
    width=st.integers(1, 400),
)
def test_linear(each_isa, form, seed, dtype, out_dtype, rows, part_rows, width):  # noqa: F811
    random = np.random.default_rng(seed)
    matrix = random_matrix(random, form, 1, part_rows, width)[0]
    x = random_rows(random, dtype, rows, width)
    output = native.linear(x, matrix, out_dtype)
    assert_same(output, matrix.linear(x, out_dtype))
    for row in range(min(rows, 3)):
        assert_same(native.linear(x[row][None], matrix, out_dtype)[0], output[row])


@pytest.mark.parametrize("form", FORMS)
def test_linear_of_many_rows_and_columns(each_isa, form):  # noqa: F811
    random = np.random.default_rng(1)
    matrix = random_matrix(random, form, 1, (9, 4), 5003)[0]
    x = random_rows(random, torch.bfloat16, 270, 5003)
    assert_same(native.linear(x, matrix), matrix.linear(x))


def test_the_largest_sums_there_are(each_isa):  # noqa: F811
    """All values at one end or the other: 32 bits hold the whole, and the bias comes on top."""
    width = 2**17 - 1
    packed = torch.full((3, width), -128, dtype=torch.int8)
    packed[1] = 127
    packed[2, ::2] = 127
    words = torch.empty(Int8StaticMatrix.num_words((3,)))
    matrix = Int8StaticMatrix(packed, words, (3,))
    matrix.deq_scale[:], matrix.inputs.scale[:], matrix.inputs.offset[:] = 1.0, 1.0, 0.0
    matrix.quant_bias[:] = torch.tensor([2**31 - 1, -(2**31), 1])
    x = torch.tensor([[1e9], [-1e9]]).expand(2, width).contiguous()
    for one in (matrix, Int8Matrix(packed, torch.ones(3))):
        assert_same(native.linear(x, one), one.linear(x))
    wider = Int8Matrix(torch.zeros((1, width + 1), dtype=torch.int8), torch.ones(1))
    with pytest.raises(native.NativeError, match="wider"):
        native.linear(torch.zeros((1, width + 1)), wider)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", [0, 20, 99])
def test_zeros_and_what_is_no_number(each_isa, form, place):  # noqa: F811
    random = np.random.default_rng(2)
    matrix = random_matrix(random, form, 1, (5, 8), 100)[0]
    x = torch.zeros((6, 100))
    x[1, place] = torch.nan
    x[2, place] = torch.inf
    x[3, place] = -torch.inf
    x[4] = 1e-44  # a factor too small for its own division
    x[5, place] = 3e38
    output = native.linear(x, matrix)
    assert_same(output, matrix.linear(x))
    assert output[1].isnan().all()


def test_ties_go_to_the_even_integer(each_isa):  # noqa: F811
    x = torch.arange(-127, 127.5, 0.5)[None]
    identity = Int8Matrix(torch.eye(x.shape[1], dtype=torch.int8), torch.ones(x.shape[1]))
    assert_same(native.linear(x, identity), x.round())


def run(experts_op: Any, rows: slice, case: dict[str, Any], **changed: Any) -> torch.Tensor:
    case = {**case, **changed}
    return experts_op(
        case["x"][rows], case["ids"][rows], case["weights"][rows], case["gate_up"], case["down"],
        case["activation"], case["first_expert"], case["shared"], case["out_dtype"],
    )  # fmt: skip


def random_case(
    random: np.random.Generator,
    form: str,
    dtype: torch.dtype,
    tokens: int,
    experts: int,
    chosen: int,
    hidden: int,
    inner: int,
    *,
    shared: bool,
    kind: str = "silu",
    first_expert: int = 0,
) -> dict[str, Any]:
    pair = None
    if shared:
        pair = (
            random_matrix(random, form, 1, (inner + 5,) * 2, hidden)[0],
            random_matrix(random, form, 1, (hidden,), inner + 5)[0],
        )
    order = random.permuted(np.tile(np.arange(experts + 3), (tokens, 1)), axis=1)
    ids = torch.from_numpy(np.sort(order[:, :chosen], axis=1))
    return {
        "x": random_rows(random, dtype, tokens, hidden),
        "ids": ids,
        "weights": torch.from_numpy(random.random((tokens, ids.shape[1]), dtype=np.float32)),
        "gate_up": random_matrix(random, form, experts, (inner, inner), hidden),
        "down": random_matrix(random, form, experts, (hidden,), inner),
        "activation": GatedActivation(kind, alpha=1.702, limit=7.0, beta=1.0),
        "first_expert": first_expert,
        "shared": pair,
        "out_dtype": torch.float32,
    }


def errors(case: dict[str, Any], output: torch.Tensor) -> torch.Tensor:
    """Of each token, relative to its largest value: [T]. The reference takes x in fp32, for
    natively nothing is rounded to bf16 on the way."""
    reference = kernels.choose.run_experts_in_torch
    expected = run(reference, slice(None), case, x=case["x"].float())
    largest = expected.abs().amax(-1).clamp_min(1e-30)
    return (output - expected).abs().amax(-1) / largest


@pytest.mark.parametrize("form", FORMS)
@quick
@given(
    seed=seeds,
    dtype=dtypes,
    tokens=st.integers(0, 20),
    experts=st.integers(1, 8),
    chosen=st.integers(1, 4),
    hidden=st.sampled_from([1, 33, 160]),
    inner=st.sampled_from([1, 7, 32, 192]),
    kind=st.sampled_from(["silu", "swiglu_oai"]),
    first_expert=st.integers(0, 2),
    shared=st.booleans(),
)
def test_experts(
    each_isa,  # noqa: F811
    form,
    seed,
    dtype,
    tokens,
    experts,
    chosen,
    hidden,
    inner,
    kind,
    first_expert,
    shared,
):
    random = np.random.default_rng(seed)
    case = random_case(
        random, form, dtype, tokens, experts, chosen, hidden, inner,
        shared=shared, kind=kind, first_expert=first_expert,
    )  # fmt: skip
    output = run(native.run_experts, slice(None), case)
    assert (errors(case, output) < 2e-2).all()
    rounded = run(native.run_experts, slice(None), case, out_dtype=torch.bfloat16)
    assert_same(rounded, output.bfloat16())
    for token in range(min(tokens, 3)):
        alone = run(native.run_experts, slice(token, token + 1), case)
        assert torch.equal(alone[0], output[token])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_experts_of_many_tokens_are_exact_but_for_a_few_steps(each_isa, form, dtype):  # noqa: F811
    """More tokens of an expert than a block of rows holds, and few that met another integer."""
    random = np.random.default_rng(5)
    case = random_case(random, form, dtype, 270, 2, 2, 65, 24, shared=True)
    output = run(native.run_experts, slice(None), case)
    assert (errors(case, output) < 2e-2).all()
    assert (errors(case, output) < 1e-5).float().mean() > 0.9
    assert torch.equal(run(native.run_experts, slice(269, 270), case)[0], output[269])


@pytest.mark.parametrize("form", FORMS)
def test_a_gated_mlp_is_a_shared_expert_alone(each_isa, form):  # noqa: F811
    random = np.random.default_rng(6)
    gate_up = random_matrix(random, form, 1, (24, 24), 40)[0]
    down = random_matrix(random, form, 1, (40,), 24)[0]
    x = random_rows(random, torch.float32, 7, 40)
    expected = kernels.choose.gated_mlp_in_torch(x, gate_up, down, SILU)
    found = native.gated_mlp(x, gate_up, down, SILU)
    assert ((found - expected).abs().amax(-1) <= 2e-2 * expected.abs().amax(-1)).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("threads", [1, 3])
def test_threads_do_not_show(each_isa, form, threads):  # noqa: F811
    random = np.random.default_rng(3)
    matrix = random_matrix(random, form, 1, (100, 50), 256)[0]
    case = random_case(random, form, torch.bfloat16, 9, 5, 3, 256, 40, shared=True)
    x = random_rows(random, torch.bfloat16, 600, 256)  # enough for a region to quantize them
    before = native.linear(x, matrix), run(native.run_experts, slice(None), case)
    native.set_num_threads(threads)
    after = native.linear(x, matrix), run(native.run_experts, slice(None), case)
    assert all(map(torch.equal, before, after))


@pytest.mark.parametrize("form", FORMS)
def test_a_recorded_step_quantizes_what_the_input_holds_now(native_library, form):  # noqa: F811
    random = np.random.default_rng(7)
    case = random_case(random, form, torch.float32, 2, 4, 2, 64, 32, shared=True)
    matrix = random_matrix(random, form, 1, (30, 34), 64)[0]
    x = case["x"]

    def step() -> tuple[torch.Tensor, ...]:
        return (native.linear(run(native.run_experts, slice(None), case), matrix),)

    (found,), tape = native.record(step, native.Arena())
    assert tape is not None
    x.copy_(random_rows(random, torch.float32, *x.shape))
    tape.play()
    assert torch.equal(found, step()[0])


def test_what_does_not_fit_is_refused(each_isa):  # noqa: F811
    random = np.random.default_rng(4)
    matrix = random_matrix(random, "dynamic", 1, (8,), 64)[0]
    with pytest.raises(native.NativeError, match="width"):
        native.linear(torch.ones(1, 32), matrix)
    with pytest.raises(native.NativeError, match="scales of shape"):
        native.linear(torch.ones(1, 64), Int8Matrix(matrix.packed, matrix.scale[:4]))
    stack = random_matrix(random, "static", 2, (24, 40), 64)
    down = random_matrix(random, "static", 2, (64,), 32)
    ids, weights = torch.zeros((1, 1), dtype=torch.int64), torch.ones(1, 1)
    with pytest.raises(native.NativeError, match="halves"):
        native.run_experts(torch.ones(1, 64), ids, weights, stack, down, SILU, 0)
    mixed = random_matrix(random, "dynamic", 2, (64,), 64)
    with pytest.raises(native.NativeError, match="alike"):
        native.run_experts(torch.ones(1, 64), ids, weights, mixed, down, SILU, 0)


def test_a_caller_that_flushes_subnormals_does_not_show(each_isa):  # noqa: F811
    """Neither in what one thread does alone nor in what all do."""
    matrix = Int8Matrix(torch.ones(16, 4096, dtype=torch.int8), torch.full((16,), 1e30))
    x = torch.full((40, 4096), 1e-41)
    expected = native.linear(x, matrix, torch.float32)
    assert expected.all()
    torch.set_flush_denormal(True)
    try:
        together = native.linear(x, matrix, torch.float32)
        alone = native.linear(x[:1], matrix, torch.float32)
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(together, expected)
    assert torch.equal(alone, expected[:1])
