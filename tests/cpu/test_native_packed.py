"""Native kernels over packed weights against exact sums, and against themselves alone.

Codes and factors are drawn as bytes, so every kind of number is there; the oracle decodes them in
numpy and sums in double precision.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mserve import kernels
from mserve.kernels import Fp8BlockMatrix, GatedActivation, Mxfp8Matrix, native
from mserve.testing import formats as oracle
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
Packed = Mxfp8Matrix | Fp8BlockMatrix
FORMATS = ["mxfp8", "fp8"]


def random_codes(random: np.random.Generator, *shape: int) -> np.ndarray:
    """All codes but the two of NaN."""
    codes = random.integers(0, 127, shape, dtype=np.uint8)
    return codes | random.integers(0, 2, shape, dtype=np.uint8) << 7


def e4m3(codes: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(codes).view(torch.float8_e4m3fn)


def random_matrix(
    random: np.random.Generator, form: str, experts: int, part_rows: tuple[int, ...], width: int
) -> Packed:
    """A stack whose values are near ``width ** -0.5`` at most."""
    codes = random_codes(random, experts, sum(part_rows), width)
    if form == "mxfp8":
        scales = random.integers(110, 119, (*codes.shape[:-1], width // 32), dtype=np.uint8)
        return Mxfp8Matrix(e4m3(codes), torch.from_numpy(scales))
    blocks = sum(-(-rows // 128) for rows in part_rows)
    factors = random.random((experts, blocks, -(-width // 128)), dtype=np.float32) / 4096
    return Fp8BlockMatrix(e4m3(codes), torch.from_numpy(factors), part_rows)


def decode(matrix: Packed) -> torch.Tensor:
    """Values of one matrix in double precision, by numpy."""
    codes, scale = matrix.packed.view(torch.uint8).numpy(), matrix.scale.numpy()
    if isinstance(matrix, Mxfp8Matrix):
        return torch.from_numpy(oracle.mxfp8_decode(codes, scale)).double()
    values, row, block = [], 0, 0
    for height in matrix.part_rows:
        end, last = row + height, block + -(-height // 128)
        values.append(oracle.fp8_block_decode(codes[row:end], scale[block:last]))
        row, block = end, last
    return torch.from_numpy(np.concatenate(values)).double()


def assert_sums(output: torch.Tensor, x: torch.Tensor, values: torch.Tensor) -> None:
    """fp32 sums, in any order, of products that are exact in fp32 but for one rounding each."""
    sizes = x.double().abs() @ values.abs().T
    assert ((output.double() - x.double() @ values.T).abs() <= 2e-6 * sizes + 1e-37).all()


@pytest.mark.parametrize("form", FORMATS)
@quick
@given(
    seed=seeds,
    dtype=dtypes,
    rows=st.integers(0, 40),
    part_rows=st.lists(st.sampled_from([1, 3, 8, 127, 130]), min_size=1, max_size=3).map(tuple),
    groups=st.integers(1, 40),
    odd=st.integers(0, 31),
)
def test_linear(each_isa, form, seed, dtype, rows, part_rows, groups, odd):  # noqa: F811
    random = np.random.default_rng(seed)
    width = 32 * groups + (odd if form == "fp8" else 0)
    matrix = random_matrix(random, form, 1, part_rows, width)[0]
    x = torch.from_numpy(random.standard_normal((rows, width)).astype(np.float32)).to(dtype)
    output = native.linear(x, matrix, torch.float32)
    assert_sums(output, x, decode(matrix))
    assert torch.equal(native.linear(x, matrix, torch.bfloat16), output.bfloat16())
    for row in range(min(rows, 3)):
        assert torch.equal(native.linear(x[row][None], matrix, torch.float32)[0], output[row])


@pytest.mark.parametrize("form", FORMATS)
def test_linear_of_many_rows_and_columns(each_isa, form):  # noqa: F811
    random = np.random.default_rng(1)
    matrix = random_matrix(random, form, 1, (9,), 5024)[0]
    x = torch.from_numpy(random.standard_normal((270, 5024)).astype(np.float32)).bfloat16()
    output = native.linear(x, matrix, torch.float32)
    assert_sums(output, x, decode(matrix))
    assert torch.equal(native.linear(x[-1:], matrix, torch.float32), output[-1:])


@pytest.mark.parametrize("rows", [1, 3, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_mxfp8_element_under_every_scale(each_isa, dtype, rows):  # noqa: F811
    """All 256 x 256 pairs, each alone times one. Products of bf16 flush subnormals to zero; all
    others are exact."""
    codes = np.zeros((256 * 256, 64), dtype=np.uint8)
    place = np.arange(256 * 256) * 7 % 64
    codes[np.arange(256 * 256), place] = np.tile(np.arange(256, dtype=np.uint8), 256)
    scales = np.full((256 * 256, 2), 127, dtype=np.uint8)
    scales[np.arange(256 * 256), place // 32] = np.repeat(np.arange(256, dtype=np.uint8), 256)
    expected = oracle.mxfp8_decode(codes, scales).astype(np.float64)
    expected = torch.from_numpy(expected[np.arange(256 * 256), place])
    matrix = Mxfp8Matrix(e4m3(codes), torch.from_numpy(scales))
    outputs = native.linear(torch.ones((rows, 64), dtype=dtype), matrix, torch.float32).double()
    bound = 2.0**-126 if dtype == torch.bfloat16 else 0.0
    for output in outputs:
        torch.testing.assert_close(output, expected, rtol=0, atol=bound, equal_nan=True)
        assert output[255 * 256 :].isnan().all()


@pytest.mark.parametrize("rows", [1, 3, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_block_fp8_element_in_every_place(each_isa, dtype, rows):  # noqa: F811
    codes = np.zeros((256 * 130, 130), dtype=np.uint8)
    row = np.arange(256 * 130)
    codes[row, row % 130] = row // 130
    factors = np.random.default_rng(0).random((260, 2), dtype=np.float32)
    matrix = Fp8BlockMatrix(e4m3(codes), torch.from_numpy(factors), (256 * 130,))
    outputs = native.linear(torch.ones((rows, 130), dtype=dtype), matrix, torch.float32)
    expected = oracle.E4M3[row // 130] * factors[row // 128, row % 130 // 128]
    for output in outputs:
        np.testing.assert_array_equal(output.numpy(), expected)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("rows", [1, 3, 7])
def test_subnormal_codes_outlive_a_process_that_flushes_subnormals(each_isa, form, rows):  # noqa: F811
    """Workers inherit that from the thread that starts them."""
    codes = np.zeros((64, 64), dtype=np.uint8)
    codes[:, 0] = np.arange(64) % 8
    matrix: Packed = Fp8BlockMatrix(e4m3(codes), torch.ones(1, 1), (64,))
    if form == "mxfp8":
        matrix = Mxfp8Matrix(e4m3(codes), torch.full((64, 2), 127, dtype=torch.uint8))
    threads = native.num_threads()
    torch.set_flush_denormal(True)
    try:
        native.set_num_threads(threads + 1)
        output = native.linear(torch.ones(rows, 64), matrix, torch.float32)
    finally:
        torch.set_flush_denormal(False)
        native.set_num_threads(threads)
    assert torch.equal(output, (torch.arange(64) % 8 * 2.0**-9).expand(rows, -1))


def normal_rows(random: np.random.Generator, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.from_numpy(random.standard_normal(shape).astype(np.float32)).to(dtype)


@pytest.mark.parametrize("form", FORMATS)
@quick
@given(
    seed=seeds,
    dtype=dtypes,
    tokens=st.integers(0, 20),
    experts=st.integers(1, 8),
    chosen=st.integers(1, 4),
    hidden=st.sampled_from([32, 160]),
    inner=st.sampled_from([32, 96, 192]),
    kind=st.sampled_from(["silu", "swiglu_oai"]),
    first_expert=st.integers(0, 2),
    shared=st.booleans(),
)
def test_experts_are_the_plain_ones_of_the_same_values(
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
    activation = GatedActivation(kind, alpha=1.702, limit=7.0, beta=1.0)
    gate_up = random_matrix(random, form, experts, (inner, inner), hidden)
    down = random_matrix(random, form, experts, (hidden,), inner)
    pair = None
    if shared:
        pair = (
            random_matrix(random, form, 1, (inner + 32,) * 2, hidden)[0],
            random_matrix(random, form, 1, (hidden,), inner + 32)[0],
        )
    x = normal_rows(random, dtype, tokens, hidden)
    order = random.permuted(np.tile(np.arange(experts + 3), (tokens, 1)), axis=1)
    ids = torch.from_numpy(np.sort(order[:, :chosen], axis=1))
    weights = torch.from_numpy(random.random((tokens, ids.shape[1]), dtype=np.float32))

    def run(experts_op: Any, rows: slice, *matrices: Any) -> torch.Tensor:
        *stacks, one = matrices
        return experts_op(x[rows], ids[rows], weights[rows], *stacks, activation, first_expert, one)

    everyone = slice(0, tokens)
    output = run(native.run_experts, everyone, gate_up, down, pair)

    def values(stack: Packed) -> torch.Tensor:
        return torch.stack([decode(stack[one]).float() for one in range(stack.shape[0])]).to(dtype)

    # the oracle: plain matrices of these values, which bf16 holds exactly in MXFP8 only
    plain_pair = pair and tuple(decode(matrix).float().to(dtype) for matrix in pair)
    expected = run(
        kernels.choose.run_experts_in_torch, everyone, values(gate_up), values(down), plain_pair
    )
    bound = (2e-2 if dtype == torch.bfloat16 else 1e-5) * max(
        1.0, expected.abs().max().item() if tokens else 0.0
    )
    torch.testing.assert_close(output, expected, rtol=0, atol=bound)
    stacks = (gate_up, down, activation, first_expert, pair)
    rounded = native.run_experts(x, ids, weights, *stacks, torch.bfloat16)
    assert torch.equal(rounded, output.bfloat16())
    for token in range(min(tokens, 3)):
        alone = run(native.run_experts, slice(token, token + 1), gate_up, down, pair)
        assert torch.equal(alone[0], output[token])


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("threads", [1, 3])
def test_threads_do_not_show(each_isa, form, threads):  # noqa: F811
    random = np.random.default_rng(3)
    matrix = random_matrix(random, form, 1, (100, 50), 256)[0]
    x = normal_rows(random, torch.bfloat16, 9, 256)
    before = native.linear(x, matrix)
    native.set_num_threads(threads)
    assert torch.equal(native.linear(x, matrix), before)


def test_what_does_not_fit_is_refused(each_isa):  # noqa: F811
    random = np.random.default_rng(4)
    matrix = random_matrix(random, "mxfp8", 1, (8,), 64)[0]
    with pytest.raises(native.NativeError, match="width"):
        native.linear(torch.ones(1, 32), matrix)
    with pytest.raises(native.NativeError, match="scales of shape"):
        native.linear(torch.ones(1, 64), Mxfp8Matrix(matrix.packed, matrix.scale[:4]))
    stack = random_matrix(random, "fp8", 2, (24, 40), 64)
    ids, weights = torch.zeros((1, 1), dtype=torch.int64), torch.ones(1, 1)
    silu, down = GatedActivation("silu"), random_matrix(random, "fp8", 2, (64,), 32)
    with pytest.raises(native.NativeError, match="halves"):
        native.run_experts(torch.ones(1, 64), ids, weights, stack, down, silu, 0)
    mixed = random_matrix(random, "mxfp8", 2, (64,), 64)
    with pytest.raises(native.NativeError, match="alike"):
        native.run_experts(torch.ones(1, 64), ids, weights, mixed, down, silu, 0)
