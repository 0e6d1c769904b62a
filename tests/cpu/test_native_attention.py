"""Native block selection and attention: against the references, and against their own chunks.

The strongest property comes last in each part: whatever the chunking, batch or number of threads,
a token's selection and attention have the same bits.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mserve import kernels
from mserve.core import BLOCK_TOKENS
from mserve.kernels import native
from mserve.testing.native import each_isa, native_library  # noqa: F401 - fixtures

quick = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
seeds = st.integers(0, 2**31)
dtypes = st.sampled_from([torch.bfloat16, torch.float32])
BOUND = {torch.bfloat16: 2e-2, torch.float32: 2e-5}


class Cache:
    """Planes of one pool with room between blocks, and tables of distinct blocks for spans."""

    def __init__(self, seed, dtype, spans, num_blocks, groups, width):
        self.random = torch.Generator().manual_seed(seed)
        self.dtype = dtype
        total = spans * num_blocks + 1
        size = groups * BLOCK_TOKENS * width
        pool = torch.randn((total, 3 * size + 32), generator=self.random).to(dtype)
        planes = [pool[:, i * size : (i + 1) * size] for i in range(3)]
        planes = [plane.unflatten(1, (groups, BLOCK_TOKENS, width)) for plane in planes]
        self.keys, self.values = planes[:2]
        self.index_keys = planes[2][:, :1]
        table = torch.randperm(total, generator=self.random)[: spans * num_blocks]
        self.blocks = table.view(spans, num_blocks)

    def normal(self, *shape):
        return torch.randn(shape, generator=self.random).to(self.dtype)


def positions_of(starts, length):
    return torch.tensor(starts)[:, None] + torch.arange(length)


shapes = st.fixed_dictionaries(
    {
        "starts": st.lists(st.integers(0, 1500), min_size=1, max_size=3),
        "length": st.sampled_from([1, 2, 5, 40, 200]),
        "groups": st.integers(1, 3),
        "per_group": st.sampled_from([1, 3, 16]),
        "width": st.sampled_from([8, 34, 128]),
    }
)


@quick
@given(
    seed=seeds, dtype=dtypes, shape=shapes, chosen_width=st.integers(1, 12), sparse=st.booleans()
)
def test_attention(each_isa, seed, dtype, shape, chosen_width, sparse):  # noqa: F811
    starts, length, groups, width = (shape[k] for k in ("starts", "length", "groups", "width"))
    num_blocks = (max(starts) + length - 1) // BLOCK_TOKENS + 1
    cache = Cache(seed, dtype, len(starts), num_blocks, groups, width)
    query = cache.normal(len(starts), length, groups * shape["per_group"], width)
    positions = positions_of(starts, length)
    place = (query, cache.keys, cache.values, cache.blocks, positions)
    scale = width**-0.5
    if sparse:
        chosen = random_choice(cache.random, positions, groups, chosen_width)
        output = native.sparse_attention(*place, chosen, scale)
        expected = kernels.sparse_attention(*place, chosen, scale)
    else:
        output = native.paged_attention(*place, scale)
        expected = kernels.paged_attention(*place, scale)
    torch.testing.assert_close(output, expected, rtol=BOUND[dtype], atol=BOUND[dtype])


def random_choice(random, positions, groups, width):
    """[S, L, G, K]: the own block and random earlier ones, ascending, then -1."""
    own = positions // BLOCK_TOKENS
    chosen = torch.full((*positions.shape, groups, width), -1)
    for span, token, group in torch.cartesian_prod(*map(torch.arange, chosen.shape[:3])).tolist():
        last = int(own[span, token])
        earlier = torch.randperm(last, generator=random)[: width - 1]
        ids = torch.cat([earlier, torch.tensor([last])]).sort().values
        chosen[span, token, group, : len(ids)] = ids
    return chosen


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("sparse", [False, True])
def test_attention_of_a_token_has_the_same_bits_in_any_chunk(each_isa, dtype, sparse):  # noqa: F811
    length, groups, per_group, width = 1300, 2, 4, 32
    cache = Cache(7, dtype, 1, 11, groups, width)
    query = cache.normal(1, length, groups * per_group, width)
    positions = positions_of([20], length)
    chosen = random_choice(cache.random, positions, groups, 10)

    def attend(first, last):
        place = (cache.keys, cache.values, cache.blocks, positions[:, first:last])
        rows = query[:, first:last]
        if sparse:
            part = chosen[:, first:last].contiguous()
            return native.sparse_attention(rows, *place[:3], place[3].contiguous(), part, 0.2)
        return native.paged_attention(rows, *place[:3], place[3].contiguous(), 0.2)

    whole = attend(0, length)
    for first, last in [(0, 100), (100, 133), (133, 1299), (1299, 1300), (1100, 1101), (640, 650)]:
        assert torch.equal(attend(first, last), whole[:, first:last])
    native.set_num_threads(3)
    assert torch.equal(attend(1290, 1300), whole[:, 1290:])


def test_spans_together_have_the_bits_of_each_alone(each_isa):  # noqa: F811
    starts = [3, 700, 1400, 130]
    cache = Cache(8, torch.bfloat16, 4, 12, 2, 64)
    query = cache.normal(4, 1, 8, 64)
    positions = positions_of(starts, 1)
    together = native.paged_attention(
        query, cache.keys, cache.values, cache.blocks, positions, 0.125
    )
    for span in range(4):
        one = slice(span, span + 1)
        alone = native.paged_attention(
            query[one], cache.keys, cache.values, cache.blocks[one], positions[one], 0.125
        )
        assert torch.equal(alone, together[one])


def test_attention_reads_nothing_after_its_last_token(each_isa):  # noqa: F811
    cache = Cache(9, torch.bfloat16, 1, 2, 1, 32)
    query, positions = cache.normal(1, 3, 2, 32), positions_of([150], 3)
    place = (query, cache.keys, cache.values, cache.blocks, positions, 0.2)
    before = native.paged_attention(*place)
    last = int(cache.blocks[0, 1])
    cache.keys[last, :, 153 - BLOCK_TOKENS :] = float("nan")
    cache.values[last, :, 153 - BLOCK_TOKENS :] = float("nan")
    assert torch.equal(native.paged_attention(*place), before)


def test_large_scores_do_not_overflow(each_isa):  # noqa: F811
    cache = Cache(10, torch.float32, 1, 3, 1, 16)
    query, positions = cache.normal(1, 4, 2, 16) * 1e4, positions_of([300], 4)
    place = (query, cache.keys, cache.values, cache.blocks, positions, 1.0)
    output = native.paged_attention(*place)
    assert torch.isfinite(output).all()
    torch.testing.assert_close(output, kernels.paged_attention(*place), rtol=1e-3, atol=1e-3)


def index_case(seed, dtype, shape):
    """A cache, and index queries of the tokens that stand at the positions given beside them."""
    starts, length, groups, width = (shape[k] for k in ("starts", "length", "groups", "width"))
    num_blocks = (max(starts) + length - 1) // BLOCK_TOKENS + 1
    cache = Cache(seed, dtype, len(starts), num_blocks, 1, width)
    query = cache.normal(len(starts), length, groups, width)
    return cache, query, positions_of(starts, length)


@quick
@given(
    seed=seeds,
    dtype=dtypes,
    shape=shapes,
    topk=st.integers(1, 8),
    local=st.integers(0, 3),
    init=st.integers(0, 2),
)
def test_selection_is_the_reference_s(each_isa, seed, dtype, shape, topk, local, init):  # noqa: F811
    cache, query, positions = index_case(seed, dtype, shape)
    # A block written twice scores the same bits: a tie, won by the lower number.
    cache.index_keys[cache.blocks[:, -1]] = cache.index_keys[cache.blocks[:, 0]]
    arguments = (query, cache.index_keys, cache.blocks, positions)
    rule = {"topk_blocks": topk, "local_blocks": local, "init_blocks": init}
    chosen = native.select_blocks(*arguments, **rule)
    expected = kernels.select_blocks(*arguments, **rule)
    assert torch.equal(chosen, expected) or only_near_ties(chosen, expected, *arguments)


@quick
@given(
    seed=seeds,
    dtype=dtypes,
    shape=shapes,
    topk=st.integers(1, 8),
    local=st.integers(0, 2),
    init=st.integers(0, 1),
    nans=st.sampled_from([0.002, 0.1, 0.995]),
)
def test_keys_that_are_no_number_are_passed_over(
    each_isa,  # noqa: F811
    seed,
    dtype,
    shape,
    topk,
    local,
    init,
    nans,
):
    """Values are small integers, so that all scores are exact; some blocks have no score."""
    cache, query, positions = index_case(seed, dtype, shape)
    query = query.round()
    keys = cache.index_keys.copy_(cache.index_keys.round())
    keys[torch.rand(keys.shape[:3], generator=cache.random) < nans] = torch.nan
    keys[cache.blocks[:, :3]] = torch.nan
    arguments = (query, keys, cache.blocks, positions)
    rule = {"topk_blocks": topk, "local_blocks": local, "init_blocks": init}
    chosen = native.select_blocks(*arguments, **rule)
    assert torch.equal(chosen, kernels.select_blocks(*arguments, **rule))


def only_near_ties(chosen, expected, query, plane, blocks, positions):
    """Whether the differing blocks' exact scores are within fp32 rounding of each other."""
    for span, token, group in (chosen != expected).any(-1).nonzero().tolist():
        ours, theirs = (
            set(chosen[span, token, group].tolist()),
            set(expected[span, token, group].tolist()),
        )
        visible = int(positions[span, token]) + 1
        keys = plane[blocks[span], 0].flatten(0, 1)[:visible].double()
        scores = keys @ query[span, token, group].double()
        best = [scores[b * BLOCK_TOKENS : (b + 1) * BLOCK_TOKENS].max() for b in ours ^ theirs]
        if max(best) - min(best) > 1e-5 * scores.abs().max():
            return False
    return True


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_selection_of_a_token_is_the_same_in_any_chunk(each_isa, dtype):  # noqa: F811
    length = 2200
    cache = Cache(11, dtype, 1, 18, 1, 16)
    query, positions = cache.normal(1, length, 2, 16), positions_of([50], length)
    rule = {"topk_blocks": 4, "local_blocks": 1, "init_blocks": 0}

    def select(first, last):
        part = (query[:, first:last], cache.index_keys, cache.blocks)
        return native.select_blocks(*part, positions[:, first:last].contiguous(), **rule)

    whole = select(0, length)
    for first, last in [(0, 1), (0, 700), (700, 703), (703, 2200), (2199, 2200)]:
        assert torch.equal(select(first, last), whole[:, first:last])


def test_scores_have_the_same_order_on_every_instruction_set(native_library):  # noqa: F811
    cache = Cache(12, torch.bfloat16, 2, 40, 1, 64)
    # Keys of few distinct values: scores that are equal, or apart by their last bits.
    cache.index_keys.copy_((cache.index_keys * 2).round() / 2)
    query, positions = (cache.normal(2, 60, 4, 64) * 2).round() / 2, positions_of([4000, 5000], 60)
    rule = {"topk_blocks": 16, "local_blocks": 1, "init_blocks": 0}
    before, selections = native.isa(), []
    for name in native.available_isas():
        native.use_isa(name)
        selections.append(
            native.select_blocks(query, cache.index_keys, cache.blocks, positions, **rule)
        )
    native.use_isa(before)
    assert all(torch.equal(selection, selections[0]) for selection in selections)
