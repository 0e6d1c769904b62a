"""Planes of the KV cache in every form: what is written, what is read, and attention over it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mserve.core import BLOCK_TOKENS, KVLayout, Plane
from mserve.kernels import (
    CachePlane,
    ScaledPlane,
    paged_attention,
    select_blocks,
    sparse_attention,
    use_kernels,
    write_kv,
)
from mserve.layers import KVCache
from mserve.testing import formats as oracle

quick = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31)
DTYPES = ("float32", "bfloat16", "float8_e4m3fn", "int8")


@pytest.fixture(scope="module", autouse=True)
def reference() -> None:
    """These are about the reference; a test before may have chosen another."""
    use_kernels("reference")


def plane_of(dtype: str, num_blocks: int, heads: int, width: int) -> CachePlane:
    """A plane between two others in a pool, cleared."""
    planes = [Plane(0, "key", 1, 8, "float32"), Plane(1, "key", heads, width, dtype)]
    if dtype == "int8":
        planes.append(Plane(1, "key_scale", heads, 1, "float32"))
    layout = KVLayout((*planes, Plane(1, "value", 1, 8, "float32")))
    cache = KVCache(layout, num_blocks, torch.device("cpu"))
    cache.clear(torch.arange(num_blocks))
    return cache.plane(1, "key")


def filled(dtype: str, vectors: torch.Tensor) -> tuple[CachePlane, torch.Tensor]:
    """A plane written with ``vectors`` [blocks, G, BLOCK_TOKENS, W], and the same in fp32."""
    num_blocks, heads, _, width = vectors.shape
    plane = plane_of(dtype, num_blocks, heads, width)
    write_kv(plane, torch.arange(num_blocks * BLOCK_TOKENS), vectors.transpose(1, 2).flatten(0, 1))
    return plane, values_of(plane)


def values_of(plane: CachePlane) -> torch.Tensor:
    if isinstance(plane, ScaledPlane):
        return plane.values.float() * plane.scales
    return plane.float()


def stored(dtype: str, values: np.ndarray) -> np.ndarray:
    """What each vector [..., W] becomes, by definition."""
    if dtype == "float8_e4m3fn":
        return oracle.E4M3[oracle.e4m3_codes(values)]
    if dtype == "int8":
        integers, factors = oracle.int8_encode(values)
        return integers * factors
    return torch.from_numpy(values).to(getattr(torch, dtype)).float().numpy()


@quick
@given(
    seed=seeds, dtype=st.sampled_from(DTYPES), tokens=st.integers(1, 40), heads=st.integers(1, 3)
)
def test_write_kv_stores_its_slots_by_definition(
    seed: int, dtype: str, tokens: int, heads: int
) -> None:
    random = np.random.default_rng(seed)
    plane = plane_of(dtype, 4, heads, 24)
    slots = random.permutation(4 * BLOCK_TOKENS)[:tokens]
    values = random.standard_normal((tokens, heads, 24)) * 2.0 ** random.integers(-8, 10)
    values[0, 0] = 0.0
    values = values.astype(np.float32)
    expected = np.zeros((4, heads, BLOCK_TOKENS, 24), dtype=np.float32)
    expected[slots // BLOCK_TOKENS, :, slots % BLOCK_TOKENS] = stored(dtype, values)
    write_kv(plane, torch.from_numpy(slots), torch.from_numpy(values))
    np.testing.assert_array_equal(values_of(plane).numpy(), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_no_number_stays_none_and_keeps_to_its_token(dtype: str) -> None:
    plane = plane_of(dtype, 1, 2, 8)
    vectors = torch.ones((3, 2, 8))
    vectors[1, 0, 3] = torch.nan
    write_kv(plane, torch.tensor([5, 6, 7]), vectors)
    values = values_of(plane)
    assert values[0, 0, 6, 3].isnan()
    assert (values[0, :, [5, 7]] == 1).all()
    assert values[0, 1, 5:8].eq(1).all()
    assert values[0, 1].sum() == 3 * 8


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [1, 60])
@pytest.mark.parametrize("query_dtype", [torch.float32, torch.bfloat16])
def test_attention_reads_what_was_stored(dtype: str, length: int, query_dtype: torch.dtype) -> None:
    """Full, sparse in both orders of work, and selection: as over the stored values in fp32."""
    random = torch.Generator().manual_seed(length)
    draw = [torch.randn((9, 2, BLOCK_TOKENS, 16), generator=random) for _ in range(3)]
    (keys, plain_keys), (values, plain_values), (index, _) = (
        filled(dtype, vectors.to(query_dtype)) for vectors in draw
    )
    plain = [tensor.to(query_dtype) for tensor in (plain_keys, plain_values)]
    if isinstance(index, ScaledPlane):
        index = ScaledPlane(index.values[:, :1], index.scales[:, :1])
    else:
        index = index[:, :1]
    query = torch.randn((1, length, 4, 16), generator=random).to(query_dtype)
    blocks = torch.randperm(9, generator=random)[None]
    positions = 9 * BLOCK_TOKENS - length + torch.arange(length)[None]
    chosen = torch.tensor([0, 3, 8]).expand(1, length, 2, 3)
    place = (blocks, positions)
    torch.testing.assert_close(
        paged_attention(query, keys, values, *place, 0.3),
        paged_attention(query, *plain, *place, 0.3),
    )
    torch.testing.assert_close(
        sparse_attention(query, keys, values, *place, chosen, 0.3),
        sparse_attention(query, *plain, *place, chosen, 0.3),
    )
    exact_index = values_of(index)
    rule = {"topk_blocks": 3, "local_blocks": 1, "init_blocks": 0}
    assert torch.equal(
        select_blocks(query[:, :, :2], index, *place, **rule),
        select_blocks(query[:, :, :2], exact_index, *place, **rule),
    )
