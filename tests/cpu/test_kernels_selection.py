"""Which blocks and which experts: against plain Python, over random shapes with many ties."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mserve.core import BLOCK_TOKENS
from mserve.kernels import exact_top_k, route, select_blocks

seeds = st.integers(0, 2**31)
quick = settings(max_examples=40, deadline=None, derandomize=True)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@quick
@given(seed=seeds, rows=st.integers(1, 5), width=st.integers(1, 40), levels=st.integers(1, 6))
def test_top_k_prefers_higher_score_then_lower_id(seed, rows, width, levels):
    random = generator(seed)
    scores = torch.randint(0, levels, (rows, width), generator=random).float()
    scores[scores == 0] = -torch.inf
    k = int(torch.randint(1, width + 1, (), generator=random))
    expected = [
        sorted(sorted(range(width), key=lambda i, row=row: (-row[i], i))[:k])
        for row in scores.tolist()
    ]
    assert exact_top_k(scores, k).tolist() == expected


def test_top_k_counts_nan_as_never_and_signed_zeros_as_equal():
    scores = torch.tensor([[float("nan"), -0.0, 0.0, -1.0]])
    assert exact_top_k(scores, 1).tolist() == [[1]]
    assert exact_top_k(scores, 3).tolist() == [[1, 2, 3]]


def naive_selection(query, keys, position, topk, local, init):
    """Blocks that one token and group choose: Python loops over all tokens up to its own."""
    own = position // BLOCK_TOKENS
    if own < topk:
        return list(range(own + 1))
    scores = {}
    for token, dot in enumerate((keys[: position + 1] @ query).tolist()):
        if not math.isnan(dot):
            block = token // BLOCK_TOKENS
            scores[block] = max(dot, scores.get(block, dot))
    forced = {block for block in range(own + 1) if block > own - local or block < init}
    ranked = sorted(forced | scores.keys(), key=lambda b: (b not in forced, -scores.get(b, 0), b))
    return sorted(ranked[:topk])


@quick
@given(
    seed=seeds,
    starts=st.lists(st.integers(0, 900), min_size=1, max_size=3),
    length=st.integers(1, 5),
    groups=st.integers(1, 3),
    topk=st.integers(2, 5),
    local=st.integers(0, 2),
    init=st.integers(0, 1),
    ties=st.booleans(),
    nans=st.sampled_from([0.0, 0.002, 0.995]),
)
def test_selection_matches_plain_python(
    seed, starts, length, groups, topk, local, init, ties, nans
):
    random = generator(seed)
    width, topk = 4, max(topk, local + init)
    num_blocks = (max(starts) + length - 1) // BLOCK_TOKENS + 1
    table = torch.randperm(len(starts) * num_blocks, generator=random).view(-1, num_blocks)
    if ties:
        # Small integers: exact in fp32, and equal for many blocks.
        plane = torch.randint(-1, 2, (table.numel(), 1, BLOCK_TOKENS, width), generator=random)
        query = torch.randint(-1, 2, (len(starts), length, groups, width), generator=random)
    else:
        plane = torch.randn((table.numel(), 1, BLOCK_TOKENS, width), generator=random)
        query = torch.randn((len(starts), length, groups, width), generator=random)
    plane, query = plane.float(), query.float()
    plane[torch.rand(plane.shape[:3], generator=random) < nans] = torch.nan
    positions = torch.tensor(starts)[:, None] + torch.arange(length)
    chosen = select_blocks(
        query, plane, table, positions, topk_blocks=topk, local_blocks=local, init_blocks=init
    )
    for span, start in enumerate(starts):
        keys = plane[table[span], 0].flatten(0, 1)
        for token in range(length):
            for group in range(groups):
                expected = naive_selection(
                    query[span, token, group], keys, start + token, topk, local, init
                )
                got = chosen[span, token, group].tolist()
                assert got == expected + [-1] * (len(got) - len(expected))


def test_selection_is_the_same_in_any_chunking_and_over_long_contexts():
    """Long enough for several segments of keys and several chunks of rows."""
    random = generator(3)
    length, groups, width = 70 * BLOCK_TOKENS + 5, 2, 4
    table = torch.randperm(71, generator=random)[None]
    plane = torch.randn((71, 1, BLOCK_TOKENS, width), generator=random)
    query = torch.randn((1, length, groups, width), generator=random)
    positions = torch.arange(length)[None]
    rule = {"topk_blocks": 4, "local_blocks": 1, "init_blocks": 1}
    whole = select_blocks(query, plane, table, positions, **rule)
    for start, end in ((0, 100), (500, 1700), (8800, 8801), (length - 3, length)):
        held = (end - 1) // BLOCK_TOKENS + 1
        part = select_blocks(
            query[:, start:end], plane, table[:, :held], positions[:, start:end], **rule
        )
        assert torch.equal(part, whole[:, start:end, :, : part.shape[-1]])
    assert (whole[:, 600:] >= 0).all()
    assert (whole[:, :, :, 0] == 0).all()


@quick
@given(seed=seeds, tokens=st.integers(1, 6), experts=st.integers(2, 9), ties=st.booleans())
def test_router_weighs_without_bias_what_it_chose_with_bias(seed, tokens, experts, ties):
    random = generator(seed)
    k = int(torch.randint(1, experts + 1, (), generator=random))
    hidden = torch.randn((tokens, 8), generator=random)
    gate = torch.randn((experts, 8), generator=random)
    bias = torch.randn(experts, generator=random)
    if ties:
        gate, bias = gate[:1].expand(experts, -1).clone(), torch.zeros(experts)
    ids, weights = route(hidden, gate, bias, k, 2.5)
    scores = torch.sigmoid((hidden.double()[:, None] * gate.double()).sum(-1))
    for token in range(tokens):
        biased = (scores[token] + bias.double()).tolist()
        if ties:
            expected = list(range(k))
        else:
            expected = sorted(sorted(range(experts), key=lambda e: (-biased[e], e))[:k])
        assert ids[token].tolist() == expected
        share = scores[token, expected] / scores[token, expected].sum() * 2.5
        torch.testing.assert_close(weights[token].double(), share, rtol=1e-5, atol=1e-6)
