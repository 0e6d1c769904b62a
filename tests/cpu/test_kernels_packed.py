"""The packed formats' kernels, and the rules by which values are packed, against plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mserve.kernels import (
    StaticInputs,
    dequantize_mxfp8,
    linear_fp8_block,
    linear_int8,
    linear_int8_static,
    linear_mxfp8,
)
from mserve.testing import formats as oracle
from mserve.weights.fp8_block import quantize_fp8_block
from mserve.weights.int8 import quantize_int8
from mserve.weights.mxfp8 import quantize_mxfp8

quick = settings(deadline=None, max_examples=40)
seeds = st.integers(0, 2**32 - 1)
tokens = st.sampled_from([0, 1, 2, 5])
heights = st.sampled_from([1, 3, 127, 128, 129, 300])


def e4m3(codes: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(codes).view(torch.float8_e4m3fn)


def codes_of(values: torch.Tensor) -> np.ndarray:
    return values.view(torch.uint8).numpy()


def random_values(random: np.random.Generator, rows: int, columns: int, spread: int) -> np.ndarray:
    """Values of many sizes, with zero groups, subnormals of the formats and exact ties."""
    powers = random.integers(-spread, spread + 1, (rows, columns))
    values = random.standard_normal((rows, columns)) * 2.0**powers
    values[random.random((rows, columns)) < 0.1] = 0.0
    if rows > 2:
        values[1] = 0.0
        values[2] = 448.0 * 2.0 ** random.integers(-6, 6)
    bits = torch.from_numpy(values.astype(np.float32)).bfloat16().float()
    return bits.numpy()


def close(ours: torch.Tensor, theirs: np.ndarray) -> None:
    """fp32 sums in another order."""
    scale = np.abs(theirs).max(initial=1e-30)
    assert np.abs(ours.float().numpy() - theirs).max(initial=0.0) <= 1e-5 * scale


def exact_linear(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) @ weight.astype(np.float64).T


@quick
@given(seed=seeds, rows=tokens, height=heights, groups=st.integers(1, 5))
def test_linear_mxfp8(seed: int, rows: int, height: int, groups: int) -> None:
    random = np.random.default_rng(seed)
    codes = random.integers(0, 127, (height, 32 * groups), dtype=np.uint8)
    codes |= random.integers(0, 2, codes.shape, dtype=np.uint8) << 7
    scales = random.integers(117, 137, (height, groups), dtype=np.uint8)
    x = random.standard_normal((rows, 32 * groups)).astype(np.float32)
    output = linear_mxfp8(torch.from_numpy(x), e4m3(codes), torch.from_numpy(scales))
    assert output.shape == (rows, height)
    close(output, exact_linear(x, oracle.mxfp8_decode(codes, scales)))


def test_every_mxfp8_element_under_every_scale() -> None:
    """All 256 x 256 pairs bit for bit, subnormals, overflow and both kinds of NaN among them."""
    codes = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    scales = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 8, axis=1)
    ours = dequantize_mxfp8(e4m3(codes), torch.from_numpy(scales)).numpy()
    theirs = oracle.mxfp8_decode(codes, scales)
    np.testing.assert_array_equal(ours, theirs)
    assert np.isnan(ours[255]).all()
    assert np.isnan(ours[:, [127, 255]]).all()
    assert 0 < np.abs(ours[0, 1]) < 1e-40


def test_a_nan_scale_reaches_its_rows_and_no_others() -> None:
    scales = torch.full((4, 2), 127, dtype=torch.uint8)
    scales[2, 1] = 255
    weight = torch.ones((4, 64)).to(torch.float8_e4m3fn)
    output = linear_mxfp8(torch.ones((3, 64)), weight, scales)
    assert output[:, 2].isnan().all()
    assert (output[:, [0, 1, 3]] == 64).all()


@quick
@given(
    seed=seeds,
    rows=tokens,
    part_rows=st.lists(heights, min_size=1, max_size=3),
    columns=st.sampled_from([1, 64, 128, 200, 384]),
)
def test_linear_fp8_block(seed: int, rows: int, part_rows: list[int], columns: int) -> None:
    """Parts with blocks of their own give what each gives alone."""
    random = np.random.default_rng(seed)
    parts = [
        oracle.fp8_block_encode(random_values(random, height, columns, 3)) for height in part_rows
    ]
    x = random.standard_normal((rows, columns)).astype(np.float32)
    weight = np.concatenate([codes for codes, _ in parts])
    factors = torch.from_numpy(np.concatenate([factors for _, factors in parts]))
    output = linear_fp8_block(torch.from_numpy(x), e4m3(weight), factors, tuple(part_rows))
    whole = np.concatenate([oracle.fp8_block_decode(*part) for part in parts])
    close(output, exact_linear(x, whole))


@pytest.mark.parametrize("tile_bytes", [1, 4 * 40 * 130])
def test_tiles_of_any_size_give_the_same(tile_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    values = random_values(random, 300, 160, 3)
    x = torch.from_numpy(random.standard_normal((3, 160)).astype(np.float32))
    mx = (e4m3(oracle.mxfp8_encode(values)[0]), torch.from_numpy(oracle.mxfp8_encode(values)[1]))
    codes, factors = oracle.fp8_block_encode(values)
    block = (e4m3(codes), torch.from_numpy(factors), (300,))
    integers, scale = map(torch.from_numpy, oracle.int8_encode(values))
    before = [
        linear_mxfp8(x, *mx),
        linear_fp8_block(x, *block),
        linear_int8(x, integers, scale[:, 0]),
    ]
    monkeypatch.setattr("mserve.kernels.tiles._TILE_BYTES", tile_bytes)
    after = [
        linear_mxfp8(x, *mx),
        linear_fp8_block(x, *block),
        linear_int8(x, integers, scale[:, 0]),
    ]
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@quick
@given(seed=seeds, rows=tokens, height=heights, columns=st.sampled_from([1, 7, 256, 6144]))
def test_linear_int8_is_exact_but_for_its_last_products(
    seed: int, rows: int, height: int, columns: int
) -> None:
    random = np.random.default_rng(seed)
    weight = random.integers(-128, 128, (height, columns), dtype=np.int8)
    factors = random.random(height, dtype=np.float32)
    x = random_values(random, rows, columns, 4)
    output = linear_int8(torch.from_numpy(x), torch.from_numpy(weight), torch.from_numpy(factors))
    np.testing.assert_allclose(
        output.numpy(), oracle.int8_linear(x, weight, factors), rtol=1e-6, atol=0
    )


@quick
@given(seed=seeds, rows=tokens, height=heights, offset=st.integers(-128, 127))
def test_linear_int8_static(seed: int, rows: int, height: int, offset: int) -> None:
    random = np.random.default_rng(seed)
    weight = random.integers(-128, 128, (height, 96), dtype=np.int8)
    bias = random.integers(-(2**30), 2**30, height, dtype=np.int32)
    deq_scale = random.random(height, dtype=np.float32)
    x = (8 * random.standard_normal((rows, 96))).astype(np.float32)
    scale = float(np.float32(random.random() + 0.01))
    output = linear_int8_static(
        torch.from_numpy(x),
        torch.from_numpy(weight),
        StaticInputs(torch.tensor([scale]), torch.tensor([float(offset)]), (height,)),
        torch.from_numpy(bias),
        torch.from_numpy(deq_scale),
    )
    expected = oracle.int8_linear_static(x, weight, scale, offset, bias, deq_scale)
    np.testing.assert_allclose(output.numpy(), expected, rtol=1e-6, atol=0)


def test_int8_keeps_zeros_and_what_is_no_number() -> None:
    x = torch.zeros((3, 32))
    x[1, 4] = torch.nan
    x[2] = 1e-44  # a token whose factor is subnormal
    output = linear_int8(x, torch.ones((5, 32), dtype=torch.int8), torch.ones(5))
    assert (output[0] == 0).all()
    assert output[1].isnan().all()
    assert output[2].isfinite().all()


@pytest.mark.parametrize("out_dtype", [None, torch.float32])
def test_bf16_in_is_summed_in_fp32_and_rounded_once(out_dtype: torch.dtype | None) -> None:
    random = np.random.default_rng(3)
    values = random_values(random, 64, 256, 0)
    x = torch.from_numpy(random.standard_normal((4, 256)).astype(np.float32)).bfloat16()
    codes, scales = oracle.mxfp8_encode(values)
    exact = torch.from_numpy(exact_linear(x.float().numpy(), oracle.mxfp8_decode(codes, scales)))
    output = linear_mxfp8(x, e4m3(codes), torch.from_numpy(scales), out_dtype)
    assert output.dtype == (out_dtype or torch.bfloat16)
    if out_dtype is None:
        assert (output == exact.float().bfloat16()).float().mean() > 0.99
    else:
        close(output, exact.numpy())


@quick
@given(seed=seeds, rows=st.sampled_from([1, 5]), groups=st.integers(1, 3))
def test_mxfp8_rounds_like_the_definition(seed: int, rows: int, groups: int) -> None:
    random = np.random.default_rng(seed)
    values = random_values(random, rows, 32 * groups, 20)
    packed, scales = quantize_mxfp8(torch.from_numpy(values))
    codes, expected = oracle.mxfp8_encode(values)
    np.testing.assert_array_equal(scales.numpy(), expected)
    np.testing.assert_array_equal(codes_of(packed), codes)
    error = np.abs(oracle.mxfp8_decode(codes, expected).astype(np.float64) - values)
    step = 2.0 ** (np.repeat(expected, 32, -1).astype(np.float64) - 127)
    assert (error <= np.maximum(np.abs(values) / 16, step * 2.0**-10)).all()


def test_mxfp8_of_the_smallest_and_of_no_numbers() -> None:
    values = torch.zeros((4, 32))
    values[0, 0] = 1e-44  # below what scale 0 can hold
    values[1, 0] = torch.inf
    values[2, 0] = torch.nan
    values[3, 0] = 3e38
    packed, scales = quantize_mxfp8(values)
    assert scales[:, 0].tolist()[:3] == [0, 255, 255]
    restored = dequantize_mxfp8(packed, scales)
    assert (restored[0] == 0).all()
    assert restored[1:3].isnan().all()
    assert abs(restored[3, 0] / 3e38 - 1) < 1 / 16


@quick
@given(seed=seeds, rows=heights, columns=st.sampled_from([1, 128, 200]))
def test_fp8_blocks_round_like_the_definition(seed: int, rows: int, columns: int) -> None:
    values = random_values(np.random.default_rng(seed), rows, columns, 6)
    packed, factors = quantize_fp8_block(torch.from_numpy(values))
    codes, expected = oracle.fp8_block_encode(values)
    np.testing.assert_array_equal(factors.numpy(), expected)
    np.testing.assert_array_equal(codes_of(packed), codes)
    error = np.abs(oracle.fp8_block_decode(codes, expected) - values)
    factor = expected[np.arange(rows)[:, None] // 128, np.arange(columns) // 128]
    assert (error <= np.maximum(np.abs(values) / 15.9, factor * 2.0**-9)).all()


@quick
@given(seed=seeds, rows=st.sampled_from([1, 7]), columns=st.sampled_from([1, 33, 256]))
def test_int8_rounds_like_the_definition(seed: int, rows: int, columns: int) -> None:
    values = random_values(np.random.default_rng(seed), rows, columns, 6)
    packed, factors = quantize_int8(torch.from_numpy(values))
    integers, expected = oracle.int8_encode(values)
    np.testing.assert_array_equal(factors.numpy(), expected)
    np.testing.assert_array_equal(packed.numpy(), integers)
    assert (np.abs(integers * expected - values) <= expected * 0.5001).all()
