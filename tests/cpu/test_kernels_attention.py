"""Attention kernels against a dense masked softmax in double precision."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mserve.core import BLOCK_TOKENS
from mserve.kernels import paged_attention, sparse_attention, write_kv
from mserve.kernels.attend import attend, join

quick = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_planes(num_blocks: int, groups: int, width: int, random: torch.Generator):
    """Keys and values as strided views of one pool, as in the cache."""
    pool = torch.randn((num_blocks, 2, groups, BLOCK_TOKENS, width), generator=random)
    return pool[:, 0], pool[:, 1]


def dense(query, keys, values, visible, scale):
    """``query`` [L, H, D], ``keys`` [n, G, D], ``visible`` [L, H, n]."""
    per_group = query.shape[1] // keys.shape[1]
    keys = keys.double().repeat_interleave(per_group, 1)
    values = values.double().repeat_interleave(per_group, 1)
    scores = torch.einsum("lhd,nhd->lhn", query.double(), keys) * scale
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    return torch.einsum("lhn,nhd->lhd", weights, values).float()


def sequence(plane, blocks):
    """Tokens of a span in order, [n, G, D]."""
    return plane[blocks].transpose(1, 2).flatten(0, 1)


@quick
@given(
    seed=seeds,
    starts=st.lists(st.integers(0, 700), min_size=1, max_size=3),
    length=st.integers(1, 70),
    groups=st.integers(1, 2),
    per_group=st.integers(1, 3),
)
def test_paged_attention_is_causal_softmax(seed, starts, length, groups, per_group):
    random = generator(seed)
    num_blocks = (max(starts) + length - 1) // BLOCK_TOKENS + 1
    table = torch.randperm(len(starts) * num_blocks, generator=random).view(-1, num_blocks)
    keys, values = make_planes(table.numel(), groups, 8, random)
    query = torch.randn((len(starts), length, groups * per_group, 8), generator=random)
    positions = torch.tensor(starts)[:, None] + torch.arange(length)
    output = paged_attention(query, keys, values, table, positions, 0.3)
    for span in range(len(starts)):
        visible = torch.arange(num_blocks * BLOCK_TOKENS) <= positions[span, :, None, None]
        expected = dense(
            query[span], sequence(keys, table[span]), sequence(values, table[span]), visible, 0.3
        )
        torch.testing.assert_close(output[span], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [1, 300])
def test_paged_attention_joins_segments_of_a_long_context(length):
    random = generator(1)
    num_blocks = 600
    table = torch.randperm(num_blocks, generator=random)[None]
    keys, values = make_planes(num_blocks, 1, 8, random)
    query = torch.randn((1, length, 2, 8), generator=random)
    # The longer span begins before a segment's edge and ends after it.
    start = num_blocks * BLOCK_TOKENS - 1 if length == 1 else 512 * BLOCK_TOKENS - 100
    positions = start + torch.arange(length)[None]
    output = paged_attention(query, keys, values, table, positions, 0.5)
    visible = torch.arange(num_blocks * BLOCK_TOKENS) <= positions[0, :, None, None]
    expected = dense(query[0], sequence(keys, table[0]), sequence(values, table[0]), visible, 0.5)
    torch.testing.assert_close(output[0], expected, rtol=1e-4, atol=1e-5)


@quick
@given(
    seed=seeds,
    starts=st.lists(st.integers(0, 1500), min_size=1, max_size=2),
    length=st.sampled_from([1, 3, 40, 200]),
    groups=st.integers(1, 2),
    per_group=st.integers(1, 3),
    topk=st.integers(1, 4),
)
def test_sparse_attention_is_softmax_over_chosen_blocks(
    seed, starts, length, groups, per_group, topk
):
    """Both orders of work: long single spans go by block, the others by row."""
    random = generator(seed)
    num_blocks = (max(starts) + length - 1) // BLOCK_TOKENS + 1
    table = torch.randperm(len(starts) * num_blocks, generator=random).view(-1, num_blocks)
    keys, values = make_planes(table.numel(), groups, 8, random)
    query = torch.randn((len(starts), length, groups * per_group, 8), generator=random)
    positions = torch.tensor(starts)[:, None] + torch.arange(length)
    chosen = torch.full((len(starts), length, groups, topk), -1)
    allowed = torch.zeros((len(starts), length, groups, num_blocks), dtype=torch.bool)
    for span, token, group in torch.cartesian_prod(
        torch.arange(len(starts)), torch.arange(length), torch.arange(groups)
    ).tolist():
        own = int(positions[span, token]) // BLOCK_TOKENS
        past = torch.randperm(own, generator=random)[: topk - 1]
        picked = torch.cat([past, torch.tensor([own])]).sort().values
        chosen[span, token, group, : len(picked)] = picked
        allowed[span, token, group, picked] = True
    output = sparse_attention(query, keys, values, table, positions, chosen, 0.3)
    for span in range(len(starts)):
        causal = torch.arange(num_blocks * BLOCK_TOKENS) <= positions[span, :, None, None]
        visible = allowed[span].repeat_interleave(BLOCK_TOKENS, -1) & causal
        expected = dense(
            query[span],
            sequence(keys, table[span]),
            sequence(values, table[span]),
            visible.repeat_interleave(per_group, 1),
            0.3,
        )
        torch.testing.assert_close(output[span], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [1, 40])
def test_sparse_attention_reads_only_chosen_blocks(length):
    """Whatever lies in other blocks, even NaN, changes nothing: cost and meaning in one."""
    random = generator(5)
    table = torch.randperm(30, generator=random)[None]
    keys, values = make_planes(30, 1, 8, random)
    query = torch.randn((1, length, 2, 8), generator=random)
    positions = 29 * BLOCK_TOKENS + torch.arange(length)[None]
    chosen = torch.tensor([4, 17, 29]).expand(1, length, 1, 3)
    before = sparse_attention(query, keys, values, table, positions, chosen, 0.3)
    for block in set(range(30)) - {4, 17, 29}:
        keys[table[0, block]] = torch.nan
        values[table[0, block]] = torch.nan
    after = sparse_attention(query, keys, values, table, positions, chosen, 0.3)
    assert torch.equal(before, after)
    assert before.isfinite().all()


@pytest.mark.parametrize("rows", [3, 100])
def test_attend_gives_nothing_to_a_row_without_keys(rows):
    random = generator(2)
    query = torch.randn((1, 1, rows, 8), generator=random)
    key, value = torch.randn((2, 1, 1, 50, 8), generator=random)
    visible = torch.ones((1, 1, rows, 50), dtype=torch.bool)
    visible[:, :, 1] = False
    output, log_sum = attend(query, key, value, visible, 1.0)
    assert (output[0, 0, 1] == 0).all()
    assert log_sum[0, 0, 1] == -torch.inf
    seen = attend(query, key, value, None, 1.0)
    joined = join((output, log_sum), seen)
    torch.testing.assert_close(joined[0][0, 0, 1], seen[0][0, 0, 1])
    assert joined[0].isfinite().all()
    nothing = join((output[:, :, 1:2], log_sum[:, :, 1:2]), (output[:, :, 1:2], log_sum[:, :, 1:2]))
    assert (nothing[0] == 0).all()


def test_attend_is_right_where_attention_is_sharp():
    """Trained heads look at one key: what rounds their scores, some 60 here, moves its share."""
    random = generator(3)
    query, key = (5 * torch.randn((2, 1, 40, 16), generator=random)).bfloat16()[:, None]
    value = torch.randn((1, 1, 40, 16), generator=random).bfloat16()
    output, _ = attend(query, key, value, None, 0.25)
    weights = (query.double() @ key.double().transpose(-1, -2) * 0.25).softmax(-1)
    expected = (weights @ value.double()).float()
    assert weights.amax(-1).median() > 0.9
    torch.testing.assert_close(output, expected, rtol=0, atol=2**-7)


@quick
@given(seed=seeds, tokens=st.integers(1, 30), groups=st.integers(1, 3))
def test_write_kv_touches_its_slots_only(seed, tokens, groups):
    random = generator(seed)
    keys, _ = make_planes(4, groups, 6, random)
    slots = torch.randperm(4 * BLOCK_TOKENS, generator=random)[:tokens]
    values = torch.randn((tokens, groups, 6), generator=random)
    expected = keys.clone()
    for slot, value in zip(slots.tolist(), values, strict=True):
        expected[slot // BLOCK_TOKENS, :, slot % BLOCK_TOKENS] = value
    write_kv(keys, slots, values)
    assert torch.equal(keys, expected)
